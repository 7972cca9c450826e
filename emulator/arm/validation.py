"""All that a PUT or a PATCH is checked for, in Azure's order: name, body, region, what is taken or fixed, own rules."""

from __future__ import annotations

from emulator.arm import body as bodies
from emulator.arm import conflicts, regions, role_assignments, rules
from emulator.arm.ids import ResourceId
from emulator.arm.schema import ArmError, Body, check_name
from emulator.state import State

# How a resource provider calls a body that it cannot read; the others say BadRequest.
CODES = {
    **dict.fromkeys(
        (
            "microsoft.resources",
            "microsoft.authorization",
            "microsoft.managedidentity",
            "microsoft.storage",
            "microsoft.containerregistry",
        ),
        "InvalidRequestContent",
    ),
    "microsoft.machinelearningservices": "ValidationError",
    "microsoft.operationalinsights": "InvalidParameter",
}


def check(state: State, rid: ResourceId, body: Body, before: Body | None) -> None:
    """Raise ArmError as the resource provider would for the first thing that is wrong with a PUT."""
    check_name(rid)
    check_body(rid, body)
    regions.check(rid, body, before)
    conflicts.check(state, rid, body, before)
    role_assignments.check(state, rid, body, before)
    rules.check(state, rid, body, before)


def check_body(rid: ResourceId, body: Body, *, partial: bool = False) -> None:
    """Raise ArmError for a body that the type does not take; `partial` is a PATCH, which need not be whole."""
    try:
        bodies.check(rid, body, partial=partial)
    except bodies.BodyError as error:
        if isinstance(error, bodies.Missing) and error.path == "location":
            message = "The location property is required for this definition."
            raise ArmError(400, "LocationRequired", message) from None
        code = CODES.get(rid.namespace.lower(), "BadRequest")
        text = str(error)
        if code == "InvalidRequestContent":
            text = f"The request content was invalid and could not be deserialized: '{text}'."
        raise ArmError(400, code, text) from None
