"""`pulumi refresh`: what Azure holds now becomes what the stack knows."""

from __future__ import annotations

from emulator.pulumi_cli.engine import Engine
from emulator.pulumi_cli.errors import CliError
from emulator.pulumi_cli.goal import Step
from emulator.pulumi_cli.state import Resource
from emulator.pulumi_provider.arm import ArmError
from emulator.pulumi_provider.provider import ProviderError


def refresh(engine: Engine) -> None:
    """Read every resource again: what is gone leaves the state, what somebody changed shows at the next up."""
    engine.targets.check(engine.stack.snapshot.resources)
    try:
        for one in list(engine.stack.snapshot.resources):
            if engine.targets.include(one.urn):
                _refresh(engine, one)
        for one in list(engine.stack.snapshot.pending):
            _resolve(engine, one)
    except (ArmError, ProviderError, OSError) as error:
        raise CliError(f"refreshing: {error}") from None


def _refresh(engine: Engine, one: Resource) -> None:
    found = engine.provider.read(one.type, one.id, one.inputs, one.outputs) if one.custom else (one.inputs, one.outputs)
    if found is None:
        with engine.stack.changing() as snapshot:
            snapshot.resources.remove(one)
        engine.step(Step("delete", one, None))
        return
    inputs, outputs = found
    differing = engine.provider.diff(one.type, one.name, one.inputs, inputs).paths if one.custom else {}
    with engine.stack.changing():
        one.inputs, one.outputs = inputs, outputs
    engine.step(Step("update" if differing else "same", one, one, differing))


def _resolve(engine: Engine, one: Resource) -> None:
    """A creation that was cut off has come about, or not."""
    found = engine.provider.read(one.type, one.id, {}, {})
    with engine.stack.changing() as snapshot:
        snapshot.pending.remove(one)
        if found is not None:
            one.outputs = found[1]
            snapshot.resources.append(one)
    if found is not None:
        engine.step(Step("create", None, one))
