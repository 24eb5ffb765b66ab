"""The tools that are compared, each behind the same few calls.

A tool that watches its folder by itself has nothing to do in `sync`; one that is run by hand does
its work there, and its time counts.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Protocol

from benchmarks.lab import Site, missing_tool
from tests.support.processes import Device

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0


class Tool(Protocol):
    """One way to keep folders the same; the first site is the one where things happen."""

    name: str

    def missing(self) -> str | None:
        """How to install what is not there, None when the tool can run."""
        ...

    def start(self, sites: list[Site]) -> None:
        """Start on all hosts; what lies in the first folder goes to the others."""
        ...

    def settle(self) -> None:
        """Return when the first host knows all that lies in its folder."""
        ...

    def sync(self) -> None:
        """Something changed at the first site."""
        ...

    def restart(self) -> None:
        """Stop and start on the first host; returns when it is up to date with its folder."""
        ...

    def stop(self) -> None:
        """Idempotent."""
        ...

    def pids(self) -> list[int]:
        """The processes that count."""
        ...


class Processes:
    """Started by us, ended by their ids."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def spawn(self, site: Site, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        """Run a command on a host until `stop`."""
        with (site.base / "log").open("ab") as log:
            process = subprocess.Popen(
                site.host.wrap(command), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
            )  # fmt: skip
        self._running.append(process)
        return process

    def run(self, site: Site, command: list[str], **environment: str) -> None:
        """Run a command on a host to its end."""
        process = self.spawn(site, command, **environment)
        code = process.wait()
        if code:
            raise RuntimeError(
                f"{command[0]} ended with {code}: {(site.base / 'log').read_text()[-2000:]}"
            )

    def pids(self) -> list[int]:
        """Of all, the ended ones too."""
        return [process.pid for process in self._running]

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for those that do not heed it."""
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._running:
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Shoal:
    """Found by mDNS, joined by invitation, as people do."""

    name = "shoal"

    def __init__(self) -> None:
        self._devices: list[Device] = []

    def missing(self) -> str | None:
        return None

    def start(self, sites: list[Site]) -> None:
        for number, site in enumerate(sites):
            device = Device(site.base, f"d{number}", site.host)
            device.home, device.directory = site.home, site.folder
            self._devices.append(device)
        first, *others = self._devices
        first.up()
        for other in others:
            other.join(first.invite())

    def settle(self) -> None:
        self._devices[0].wait(devices=1, timeout_s=600)

    def sync(self) -> None:
        pass

    def restart(self) -> None:
        self._devices[0].stop()
        self._devices[0].up()
        self.settle()

    def stop(self) -> None:
        for device in self._devices:
            if device.running:
                device.stop()
        self._devices.clear()

    def pids(self) -> list[int]:
        return [device.pid for device in self._devices if device.running]


class Rsync:
    """A daemon on the receivers, run by hand after each change. Nothing is encrypted."""

    name = "rsync"
    compress: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._processes = Processes()
        self._sites: list[Site] = []

    def missing(self) -> str | None:
        return "apt-get install rsync" if missing_tool("rsync") else None

    def start(self, sites: list[Site]) -> None:
        self._sites = sites
        for site in sites[1:]:
            config = site.home / "rsyncd.conf"
            config.write_text(
                f"use chroot = no\nuid = 0\ngid = 0\npid file = {site.home}/pid\n"
                f"[folder]\npath = {site.folder}\nread only = no\n"
            )
            self._processes.spawn(
                site, ["rsync", "--daemon", "--no-detach", "--sockopts=TCP_NODELAY",
                       f"--address={site.host.address}", f"--config={config}"]
            )  # fmt: skip
        time.sleep(0.5)
        self.sync()

    def settle(self) -> None:
        pass

    def sync(self) -> None:
        for site in self._sites[1:]:
            self._processes.run(
                self._sites[0],
                ["rsync", "-a", "--modify-window=-1", "--delete", "--inplace", "--no-whole-file",
                 *self.compress, "--sockopts=TCP_NODELAY", f"{self._sites[0].folder}/",
                 f"rsync://{site.host.address}/folder/"],
            )  # fmt: skip

    def restart(self) -> None:
        self.sync()

    def stop(self) -> None:
        self._processes.stop()

    def pids(self) -> list[int]:
        return self._processes.pids()


class RsyncZ(Rsync):
    """The same, compressing."""

    name = "rsync -z"
    compress = ("-z",)


class Unison:
    """A socket server on the receivers, run by hand after each change. Nothing is encrypted."""

    name = "unison"

    def __init__(self) -> None:
        self._processes = Processes()
        self._sites: list[Site] = []

    def missing(self) -> str | None:
        return "apt-get install unison" if missing_tool("unison") else None

    def start(self, sites: list[Site]) -> None:
        self._sites = sites
        for site in sites[1:]:
            self._processes.spawn(
                site, ["unison", "-socket", "5001"], UNISON=str(site.home), HOME=str(site.home)
            )
        time.sleep(0.5)
        self.sync()

    def settle(self) -> None:
        pass

    def sync(self) -> None:
        home = str(self._sites[0].home)
        for site in self._sites[1:]:
            self._processes.run(
                self._sites[0],
                ["unison", str(self._sites[0].folder),
                 f"socket://{site.host.address}:5001/{site.folder}", "-batch", "-auto", "-times",
                 "-confirmbigdel=false", "-ui", "text", "-silent"],
                UNISON=home, HOME=home,
            )  # fmt: skip

    def restart(self) -> None:
        self.sync()

    def stop(self) -> None:
        self._processes.stop()

    def pids(self) -> list[int]:
        return self._processes.pids()


class Syncthing:
    """Its own watcher, with a delay of 1 s, the shortest that it takes; fixed addresses."""

    name = "syncthing"

    def __init__(self) -> None:
        self._processes = Processes()
        self._sites: list[Site] = []
        self._first: subprocess.Popen[bytes] | None = None

    def missing(self) -> str | None:
        return "apt-get install syncthing" if missing_tool("syncthing") else None

    def start(self, sites: list[Site]) -> None:
        self._sites = sites
        ids = [self._generate(site) for site in sites]
        for site in sites:
            self._configure(site, ids)
        for site in sites:
            process = self._launch(site)
            self._first = self._first or process
        self._wait_ready()

    def _launch(self, site: Site) -> subprocess.Popen[bytes]:
        return self._processes.spawn(
            site,
            ["syncthing", "serve", f"--home={site.home}", "--no-browser", "--no-restart",
             "--no-upgrade"],
            HOME=str(site.home), STNOUPGRADE="1",
        )  # fmt: skip

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while b"Ready to synchronize" not in (self._sites[0].base / "log").read_bytes():
            if time.monotonic() > deadline:
                raise RuntimeError("syncthing did not start")
            time.sleep(0.05)

    def _generate(self, site: Site) -> str:
        done = subprocess.run(
            ["syncthing", "generate", f"--home={site.home}", "--no-default-folder",
             "--skip-port-probing"],
            capture_output=True, text=True, check=True,
            env={**os.environ, "HOME": str(site.home)},
        )  # fmt: skip
        found = re.search(r"[A-Z2-7]{7}(-[A-Z2-7]{7}){7}", done.stdout + done.stderr)
        if found is None:
            raise RuntimeError(f"syncthing told no id: {done.stdout}{done.stderr}")
        return found.group()

    def _configure(self, site: Site, ids: list[str]) -> None:
        path = site.home / "config.xml"
        tree = ET.parse(path)
        root = tree.getroot()
        for old in root.findall("device") + root.findall("folder"):
            root.remove(old)
        folder = ET.SubElement(
            root, "folder", id="bench", label="bench", path=str(site.folder), type="sendreceive",
            rescanIntervalS="3600", fsWatcherEnabled="true", fsWatcherDelayS="1",
        )  # fmt: skip
        for identity, other in zip(ids, self._sites, strict=True):
            ET.SubElement(folder, "device", id=identity)
            device = ET.SubElement(root, "device", id=identity, name=other.host.name)
            ET.SubElement(device, "address").text = f"tcp://{other.host.address}:22000"
        options = root.find("options")
        if options is None:
            options = ET.SubElement(root, "options")
        settings = {
            "listenAddress": f"tcp://{site.host.address}:22000",
            "globalAnnounceEnabled": "false",
            "localAnnounceEnabled": "false",
            "relaysEnabled": "false",
            "natEnabled": "false",
            "crashReportingEnabled": "false",
            "urAccepted": "-1",
            "autoUpgradeIntervalH": "0",
            "startBrowser": "false",
            "reconnectionIntervalS": "1",
        }
        for name, value in settings.items():
            for old in options.findall(name):
                options.remove(old)
            ET.SubElement(options, name).text = value
        tree.write(path)

    def settle(self) -> None:
        pass

    def sync(self) -> None:
        pass

    def restart(self) -> None:
        assert self._first is not None
        self._first.send_signal(signal.SIGTERM)
        self._first.wait(STOP_TIMEOUT_S)
        (self._sites[0].base / "log").write_bytes(b"")
        self._first = self._launch(self._sites[0])
        self._wait_ready()

    def stop(self) -> None:
        self._processes.stop()

    def pids(self) -> list[int]:
        return self._processes.pids()


TOOLS: dict[str, type[Tool]] = {
    tool.name: tool for tool in (Shoal, Syncthing, Rsync, RsyncZ, Unison)
}


def versions() -> dict[str, str]:
    """What is compared, in its own words."""
    commands = {
        "syncthing": ["syncthing", "--version"],
        "rsync": ["rsync", "--version"],
        "unison": ["unison", "-version"],
        "kernel": ["uname", "-r"],
    }
    found = {}
    for name, command in commands.items():
        if missing_tool(command[0]) is None:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found[name] = done.stdout.splitlines()[0].strip()
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    found["shoal"] = done.stdout.strip()
    return found
