"""Events for whoever listens: the web page and `shoal logs --follow`.

Publishing never waits and never fails. A listener that is too slow misses events; since a `status`
event says no more than "look again", it misses no state. Bounded by QUEUE_MAX and LISTENERS_MAX.
"""

from __future__ import annotations

from typing import Final

import trio

from crdt.errors import WorldError
from node.control.facade import Event

QUEUE_MAX: Final = 4_096  # events that wait for one listener; the deeds of one entry fit
LISTENERS_MAX: Final = 32  # a person has a few pages open, not dozens


class EventBus:
    """One for a node."""

    def __init__(self) -> None:
        self._listeners: set[trio.MemorySendChannel[Event]] = set()

    @property
    def listeners(self) -> int:
        """How many listen, as far as is known without publishing."""
        return sum(map(_is_open, self._listeners))

    def publish(self, event: Event) -> None:
        """Hand `event` to every listener that has room for it. On the trio loop only."""
        for listener in list(self._listeners):
            try:
                listener.send_nowait(event)
            except trio.WouldBlock:
                pass
            except trio.BrokenResourceError:  # the listener closed its end
                self._listeners.discard(listener)
                listener.close()

    def subscribe(self) -> trio.MemoryReceiveChannel[Event]:
        """Events from now on, until the channel is closed by the listener or by `close`.

        Raises:
            WorldError: LISTENERS_MAX listen already.
        """
        if len(self._listeners) >= LISTENERS_MAX:
            for gone in [one for one in self._listeners if not _is_open(one)]:
                self._listeners.discard(gone)
                gone.close()
        if len(self._listeners) >= LISTENERS_MAX:
            raise WorldError(f"{LISTENERS_MAX} programs listen to this node already; close some")
        send, receive = trio.open_memory_channel[Event](QUEUE_MAX)
        self._listeners.add(send)
        return receive

    def close(self) -> None:
        """End every subscription."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()


def _is_open(listener: trio.MemorySendChannel[Event]) -> bool:
    return listener.statistics().open_receive_channels > 0
