"""Between Pulumi's Python SDK and the engine: the requests of the running program become goals."""

from __future__ import annotations

import sys
from typing import Any

from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from pulumi.runtime import mocks
from pulumi.runtime.proto import engine_pb2, provider_pb2, resource_pb2
from pulumi.runtime.settings import get_project, get_stack

from emulator.pulumi_cli.engine import Engine, Goal
from emulator.pulumi_cli.errors import CliError
from emulator.pulumi_provider import wire
from emulator.pulumi_provider.arm import ArmError
from emulator.pulumi_provider.provider import ProviderError
from emulator.pulumi_provider.values import has_unknown

STACK_TYPE = "pulumi:pulumi:Stack"


class _NoMocks(mocks.Mocks):
    """MockMonitor wants one; everything that would ask it is answered by the engine."""

    def call(self, args: mocks.MockCallArgs) -> tuple[dict[Any, Any], None]:
        raise AssertionError("the engine answers this itself")

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        raise AssertionError("the engine answers this itself")


class EngineMonitor(mocks.MockMonitor):
    """The SDK's in-process monitor, with a real engine behind it instead of mocks."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(_NoMocks())
        self.engine = engine
        self.outputs: dict[str, Any] = {}
        self.secret_outputs: set[str] = set()

    def RegisterResource(self, request: Any) -> Any:
        urn = self._urn(request)
        if request.type == STACK_TYPE:
            return resource_pb2.RegisterResourceResponse(urn=urn)
        if request.type.startswith("pulumi:providers:"):
            # Explicit providers carry settings that ARM_* holds here; the resources are made all the same.
            return resource_pb2.RegisterResourceResponse(urn=urn, id="local")
        inputs, _ = wire.decode(request.object)
        identifier, outputs = self.engine.register(_goal(request, urn, inputs))
        return resource_pb2.RegisterResourceResponse(urn=urn, id=identifier, object=wire.encode(outputs))

    def RegisterResourceOutputs(self, request: Any) -> Any:
        if f"::{STACK_TYPE}::" in request.urn:
            self.outputs, self.secret_outputs = wire.decode(request.outputs)
        return empty_pb2.Empty()

    def ReadResource(self, request: Any) -> Any:
        try:
            found = self.engine.provider.read(request.type, request.id, {}, {})
        except (ArmError, ProviderError) as error:
            raise CliError(f"reading {request.type} {request.name}: {error}") from None
        if found is None:
            raise CliError(f"reading {request.type} {request.name}: there is no resource {request.id}")
        return resource_pb2.ReadResourceResponse(urn=self._urn(request), properties=wire.encode(found[1]))

    def Invoke(self, request: Any) -> Any:
        arguments, _ = wire.decode(request.args)
        if has_unknown(arguments):
            return resource_pb2.ResourceInvokeResponse()
        try:
            values = self.engine.provider.invoke(request.tok, arguments)
        except (ArmError, ProviderError, OSError) as error:
            # Not a failure of the engine: the program may have another way, or a better sentence.
            return resource_pb2.ResourceInvokeResponse(failures=[provider_pb2.CheckFailure(reason=str(error))])
        return resource_pb2.ResourceInvokeResponse(**{"return": wire.encode(values)})

    def _urn(self, request: Any) -> str:
        """urn:pulumi:STACK::PROJECT::PARENT'S TYPES$TYPE::NAME; the stack itself is nobody's qualified parent."""
        kind = request.type
        if request.parent and f"::{STACK_TYPE}::" not in request.parent:
            kind = f"{request.parent.split('::')[2]}${kind}"
        return f"urn:pulumi:{get_stack()}::{get_project()}::{kind}::{request.name}"


class Diagnostics:
    """The SDK's engine service as far as programs use it: their log lines, to stderr and into the event log."""

    def __init__(self, *, debug: bool = False) -> None:
        self.debug = debug
        self.lines: list[tuple[str, str]] = []

    def Log(self, request: Any) -> Any:
        severity = engine_pb2.LogSeverity.Name(request.severity).lower()
        if severity != "debug" or self.debug:
            self.lines.append((severity, request.message))
            print(f"{severity}: {request.message.rstrip()}", file=sys.stderr, flush=True)
        return empty_pb2.Empty()


def _goal(request: Any, urn: str, inputs: dict[str, Any]) -> Goal:
    return Goal(
        urn=urn,
        type=request.type,
        name=request.name,
        custom=request.custom,
        parent=request.parent,
        inputs=inputs,
        dependencies=sorted(set(request.dependencies)),
        property_dependencies={key: sorted(value.urns) for key, value in request.propertyDependencies.items()},
        protect=request.protect,
        retain_on_delete=request.retainOnDelete,
        deleted_with=request.deletedWith,
        delete_before_replace=request.deleteBeforeReplace,
        ignore_changes=list(request.ignoreChanges),
        replace_on_changes=list(request.replaceOnChanges),
    )
