"""People and their devices over the control API: `POST /people/VERB` with `dir` and what it takes.

`answer` checks that and calls the facade. Pure but for that call.
"""

from __future__ import annotations

from typing import Any, Final

from crdt.errors import CallerError
from node.control.facade import DEEDS_DEFAULT, DEEDS_MAX, PeopleFacade, Role

TEXT_SIZE_MAX: Final = 4096  # characters of a name, an id or a path


async def answer(facade: PeopleFacade, verb: str, directory: str, body: dict[str, Any]) -> object:
    """Check what a verb takes, and ask the node.

    Raises:
        CallerError: there is no such verb, or `body` lacks something.
    """
    match verb:
        case "devices":
            return await facade.devices(directory)
        case "remove":
            return await facade.remove(directory, text_of(body, "device"))
        case "role":
            may_invite = body.get("may_invite")
            if may_invite is not None and not isinstance(may_invite, bool):
                raise CallerError("`may_invite` must be true or false")
            device = text_of(body, "device")
            return await facade.set_role(directory, device, role_of(body), may_invite)
        case "revert":
            return await facade.revert(directory)
        case "select":
            lives_here = body.get("lives_here")
            if lives_here is not None and not isinstance(lives_here, bool):
                raise CallerError("`lives_here` must be true or false")
            return await facade.select(directory, lives_here)
        case "say":
            return await facade.say_code(directory, role_of(body))
        case "recovery":
            return await facade.recovery(directory)
        case "log":
            limit = body.get("limit", DEEDS_DEFAULT)
            if type(limit) is not int or not 1 <= limit <= DEEDS_MAX:
                raise CallerError(f"`limit` must be a number from 1 to {DEEDS_MAX}")
            return await facade.deeds(directory, limit)
        case "hook":
            command = body.get("command")
            if command is not None and not isinstance(command, str):
                raise CallerError("`command` must be a text")
            return await facade.hook(command)
        case "invitations":
            return await facade.invitations(directory)
        case "revoke":
            return await facade.revoke(directory, text_of(body, "invitation"))
        case _:
            raise CallerError(f"there is nothing to do called '{verb[:100]}'")


def text_of(body: dict[str, Any], name: str) -> str:
    """The field `name`, which must be a text that is not empty."""
    value = body.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= TEXT_SIZE_MAX:
        raise CallerError(f"`{name}` must be a text of 1 to {TEXT_SIZE_MAX} characters")
    return value


def role_of(body: dict[str, Any]) -> Role:
    """The field `role`."""
    try:
        return Role(str(body.get("role")))
    except ValueError:
        raise CallerError(f"a role is one of: {', '.join(Role)}; nothing was changed") from None
