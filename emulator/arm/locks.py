"""Management locks: a lock on a scope holds for everything below it.

learn.microsoft.com/azure/azure-resource-manager/management/lock-resources
"""

from __future__ import annotations

from emulator.arm.ids import ResourceId, scope_of
from emulator.arm.schema import ArmError
from emulator.state import State

LOCK = "Microsoft.Authorization/locks"


def check(state: State, rid: ResourceId, method: str) -> None:
    """Raise ArmError 409 ScopeLocked if a lock forbids `method` on the resource, or its deletion on one below it."""
    if method in ("GET", "HEAD") or rid.type.lower() == LOCK.lower():
        return
    deleting = method == "DELETE"
    asked = f"{rid}/".lower()
    held = []
    for lock in state.of_type(LOCK):
        scope = scope_of(lock["id"])
        above = asked.startswith(f"{scope}/".lower())
        below = deleting and f"{scope}/".lower().startswith(asked)
        if (above or below) and (deleting or lock["properties"]["level"].lower() == "readonly"):
            held.append(scope)
    if held:
        operation = "delete" if deleting else "write"
        message = (
            f"The scope '{rid}' cannot perform {operation} operation because following scope(s) are locked: "
            f"'{', '.join(held)}'. Please remove the lock and try again."
        )
        raise ArmError(409, "ScopeLocked", message)
