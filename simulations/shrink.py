"""Makes a failing world small: leaves out whatever is not needed for the same failure.

Delta debugging over the steps, in chunks that halve; then over what can be made plainer. Slow is
fine: a world takes a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from simulations.script import Act, DeviceSpec, Script, Step
from simulations.world import run_script


def shrink(script: Script, check: str) -> Script:
    """The smallest script found that fails the same check."""

    def fails(candidate: Script) -> bool:
        failure = run_script(candidate).failure
        return failure is not None and failure.check == check

    before = None
    while before != script:
        before = script
        script = _fewer_steps(script, fails)
        for plainer in _plainer(script):
            if fails(plainer):
                script = plainer
    return script


def _fewer_steps(script: Script, fails: Callable[[Script], bool]) -> Script:
    steps = [(number, step) for number, act in enumerate(script.acts) for step in act.steps]
    size = max(1, len(steps) // 2)
    while size:
        at = 0
        while at < len(steps):
            fewer = steps[:at] + steps[at + size :]
            candidate = _with_steps(script, fewer)
            if fails(candidate):
                steps = fewer
            else:
                at += size
        size //= 2
    return _with_steps(script, steps)


def _with_steps(script: Script, steps: list[tuple[int, Step]]) -> Script:
    numbers = sorted({number for number, _ in steps})
    acts = tuple(Act(tuple(step for at, step in steps if at == number)) for number in numbers)
    return replace(script, acts=acts)


def _plainer(script: Script) -> Iterator[Script]:
    """Scripts that differ in one thing, which is plainer there."""
    for number, spec in enumerate(script.devices):
        if spec != DeviceSpec():
            devices = list(script.devices)
            devices[number] = DeviceSpec()
            yield replace(script, devices=tuple(devices))
    last = len(script.devices) - 1
    if last > 1 and not any(last in (step.device, *step.args[:1]) for step in _steps(script)):
        yield replace(script, devices=script.devices[:-1])
    for one, act in enumerate(script.acts):
        for two, step in enumerate(act.steps):
            if step.intrude is not None:
                steps = list(act.steps)
                steps[two] = replace(step, intrude=None)
                acts = list(script.acts)
                acts[one] = Act(tuple(steps))
                yield replace(script, acts=tuple(acts))


def _steps(script: Script) -> Iterator[Step]:
    for act in script.acts:
        yield from act.steps


def story(script: Script) -> str:
    """What happens in a script and what comes of it, for people, and the script as it is."""
    result = run_script(script)
    told = [line for line in result.trace if not line.split(" ", 1)[1].startswith(" ")]
    return "\n".join(
        [f"the story, in {script.steps} steps:", *told, str(result.failure), repr(script)]
    )
