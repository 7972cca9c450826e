"""Between Pulumi's Python SDK and the engine: the requests of the running program become goals."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import grpc  # type: ignore[import-untyped]
from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from pulumi.runtime import mocks
from pulumi.runtime.proto import engine_pb2, resource_pb2
from pulumi.runtime.settings import get_project, get_stack

from emulator.pulumi_cli.engine import Engine
from emulator.pulumi_cli.errors import CliError
from emulator.pulumi_cli.goal import Goal, Step
from emulator.pulumi_cli.state import Resource
from emulator.pulumi_provider import wire
from emulator.pulumi_provider.arm import ArmError
from emulator.pulumi_provider.provider import ProviderError
from emulator.pulumi_provider.values import has_unknown

STACK_TYPE = "pulumi:pulumi:Stack"

# Options of a resource that change what happens to it and that this engine does not follow; ignored they would lie.
_REFUSED = {
    "importId": "import_",
    "remote": "remote components",
    "transforms": "transforms (transformations work)",
    "replace_with": "replace_with",
    "state_migrations": "state migrations",
}


class _NoMocks(mocks.Mocks):
    """MockMonitor wants one; everything that would ask it is answered by the engine."""

    def call(self, args: mocks.MockCallArgs) -> tuple[dict[Any, Any], None]:
        raise AssertionError("the engine answers this itself")

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        raise AssertionError("the engine answers this itself")


class InvokeError(grpc.RpcError):  # type: ignore[misc]
    """A lookup that failed, as the SDK expects it: the program gets an exception, and may have an answer to it."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNKNOWN

    def details(self) -> str:
        return str(self)


class EngineMonitor(mocks.MockMonitor):
    """The SDK's in-process monitor, with a real engine behind it instead of mocks."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(_NoMocks())
        self.engine = engine
        self.outputs: dict[str, Any] = {}
        self.secret_outputs: set[str] = set()

    # --- resources ----------------------------------------------------------------------------------------------

    def RegisterResource(self, request: Any) -> Any:
        urn = _urn(request.parent, request.type, request.name)
        if request.type.startswith("pulumi:providers:"):
            # Explicit providers carry settings that ARM_* holds here; the resources are made all the same.
            return resource_pb2.RegisterResourceResponse(urn=urn, id="local")
        self._check_options(request)
        made = self.engine.register(self._goal(request, urn))
        if made is None:
            return resource_pb2.RegisterResourceResponse(urn=urn, unknown=True)
        if not made.custom:
            return resource_pb2.RegisterResourceResponse(urn=urn, object=request.object)
        outputs = wire.encode(made.outputs, made.secrets)
        return resource_pb2.RegisterResourceResponse(urn=urn, id=made.id, object=outputs)

    def RegisterResourceOutputs(self, request: Any) -> Any:
        outputs, secret = wire.decode(request.outputs)
        if f"::{STACK_TYPE}::" in request.urn:
            self.outputs, self.secret_outputs = outputs, secret
        else:
            self.engine.export(request.urn, outputs, secret)
        return empty_pb2.Empty()

    def ReadResource(self, request: Any) -> Any:
        urn = _urn(request.parent, request.type, request.name)
        if request.id == wire.UNKNOWN_TEXT:
            return resource_pb2.ReadResourceResponse(urn=urn, unknown=True)
        what = f"reading {request.type} {request.name}"
        try:
            found = self.engine.provider.read(request.type, request.id, {}, {})
        except (ArmError, ProviderError, OSError) as error:
            self._fail(f"{what}: {error}")
        if found is None:
            self._fail(f"{what}: there is no resource {request.id}")
        read = Resource(urn, request.type, request.name, True, request.id, request.parent, {}, found[1])
        self.engine.step(Step("read", None, read))
        return resource_pb2.ReadResourceResponse(urn=urn, properties=wire.encode(found[1]))

    def Invoke(self, request: Any) -> Any:
        arguments, _ = wire.decode(request.args)
        if has_unknown(arguments):
            return resource_pb2.ResourceInvokeResponse()
        try:
            values = self.engine.provider.invoke(request.tok, arguments)
        except (ArmError, ProviderError, OSError) as error:
            raise InvokeError(str(error)) from None
        return resource_pb2.ResourceInvokeResponse(**{"return": wire.encode(values)})

    # --- what is refused ----------------------------------------------------------------------------------------

    def Call(self, request: Any) -> Any:
        self._refuse(f"methods of resources ({request.tok})")

    def RegisterStackTransform(self, request: Any) -> Any:
        self._refuse("register_resource_transform (register_stack_transformation works)")

    def RegisterStackInvokeTransform(self, request: Any) -> Any:
        self._refuse("register_invoke_transform")

    def RegisterResourceHook(self, request: Any) -> Any:
        self._refuse("resource hooks")

    def RegisterErrorHook(self, request: Any) -> Any:
        self._refuse("error hooks")

    def _check_options(self, request: Any) -> None:
        for option, name in _REFUSED.items():
            if getattr(request, option):
                self._refuse(f"{name} (of {request.type} {request.name})")
        if request.HasField("replacement_trigger"):
            self._refuse(f"replacement_trigger (of {request.type} {request.name})")

    def _refuse(self, what: str) -> NoReturn:
        self._fail(f"this local pulumi does not offer {what}; take it out, or install the Pulumi CLI")

    def _fail(self, message: str) -> NoReturn:
        """Fail the whole operation with this sentence, whatever the program makes of the exception."""
        self.engine.failures.append(message)
        raise CliError(message)

    # --- goals --------------------------------------------------------------------------------------------------

    def _goal(self, request: Any, urn: str) -> Goal:
        inputs, secrets = wire.decode(request.object)
        return Goal(
            urn=urn,
            type=request.type,
            name=request.name,
            custom=request.custom,
            parent=request.parent,
            inputs=inputs,
            dependencies=sorted(set(request.dependencies)),
            property_dependencies={key: sorted(value.urns) for key, value in request.propertyDependencies.items()},
            secrets=secrets | set(request.additionalSecretOutputs),
            protect=request.protect,
            retain_on_delete=request.retainOnDelete,
            deleted_with=request.deletedWith,
            delete_before_replace=request.deleteBeforeReplace if request.deleteBeforeReplaceDefined else None,
            ignore_changes=list(request.ignoreChanges),
            replace_on_changes=list(request.replaceOnChanges),
            aliases=list(dict.fromkeys(one for one in self._aliases(request) if one != urn)),
        )

    def _aliases(self, request: Any) -> Iterator[str]:
        """The URNs that the resource may have had: by its own aliases, and by its parent's."""
        yield from request.aliasURNs
        parents = [request.parent, *filter(None, [self.engine.renamed.get(request.parent)])]
        for parent in parents:
            yield _urn(parent, request.type, request.name)
            for alias in request.aliases:
                yield alias.urn or _alias_urn(alias.spec, parent, request.type, request.name)


def _urn(parent: str, kind: str, name: str, *, stack: str = "", project: str = "") -> str:
    """urn:pulumi:STACK::PROJECT::PARENT'S TYPES$TYPE::NAME; the stack itself is nobody's qualified parent."""
    if parent and f"::{STACK_TYPE}::" not in parent:
        kind = f"{parent.split('::')[2]}${kind}"
    return f"urn:pulumi:{stack or get_stack()}::{project or get_project()}::{kind}::{name}"


def stack_urn(project: str, stack: str) -> str:
    """The URN of the stack itself, which every resource is below."""
    return _urn("", STACK_TYPE, f"{project}-{stack}", stack=stack, project=project)


def _alias_urn(spec: Any, parent: str, kind: str, name: str) -> str:
    above = "" if spec.noParent else spec.parentUrn or parent
    return _urn(above, spec.type or kind, spec.name or name, stack=spec.stack, project=spec.project)


class Diagnostics:
    """The SDK's engine service as far as programs use it: their log lines, to stderr and into the event log."""

    def __init__(self, on_line: Callable[[str, str], None], *, debug: bool = False) -> None:
        self._on_line, self._debug = on_line, debug

    def Log(self, request: Any) -> Any:
        severity = engine_pb2.LogSeverity.Name(request.severity).lower()
        if severity != "debug" or self._debug:
            self._on_line(severity, request.message)
            print(f"{severity}: {request.message.rstrip()}", file=sys.stderr, flush=True)
        return empty_pb2.Empty()
