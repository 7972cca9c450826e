"""The provider behind Pulumi's plugin protocol, for the real Pulumi CLI.

The plain protocol rather than `pulumi.provider.experimental`: that one hands `Diff` no old inputs, prints a traceback
with every refusal, and answers one request at a time. Secrets are left to the engine: a provider that does not ask for
them gets the plain values, and the engine marks as secret again what was.
https://github.com/pulumi/pulumi/blob/master/proto/pulumi/provider.proto
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import grpc  # type: ignore[import-untyped]
import requests
from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc, status_pb2

from emulator.pulumi_provider import wire
from emulator.pulumi_provider.arm import ArmError
from emulator.pulumi_provider.changes import Kind
from emulator.pulumi_provider.provider import AzureNative, Diff, ProviderError

_LOOK = 2.0  # seconds until the next look at whether the engine lives: a killed one says no goodbye
_PARALLEL = 32  # the engine asks for up to 16 resources at once, and for invokes besides
_DIFF = provider_pb2.PropertyDiff
_KINDS: dict[tuple[Kind, bool], Any] = {
    ("add", False): _DIFF.ADD,
    ("add", True): _DIFF.ADD_REPLACE,
    ("delete", False): _DIFF.DELETE,
    ("delete", True): _DIFF.DELETE_REPLACE,
    ("update", False): _DIFF.UPDATE,
    ("update", True): _DIFF.UPDATE_REPLACE,
}


def serve() -> None:
    """Answer the engine until it says goodbye or is gone; the port goes to stdout, as the protocol asks."""
    engine = os.getppid()
    server = grpc.server(ThreadPoolExecutor(_PARALLEL), options=[("grpc.max_receive_message_length", -1)])
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(Servicer(AzureNative()), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    # The engine's way of saying goodbye; it waits five seconds for those who do not listen.
    signal.signal(signal.SIGINT, lambda *_: server.stop(grace=None))
    print(port, flush=True)
    while server.wait_for_termination(timeout=_LOOK) and os.getppid() == engine:
        pass
    server.stop(grace=None)


def _refusals(method: Callable[..., Any]) -> Callable[..., Any]:
    """What ARM and the provider refuse, as the engine prints it: one sentence."""

    @functools.wraps(method)
    def guarded(self: Servicer, request: Any, context: Any) -> Any:
        try:
            return method(self, request, context)
        except (ArmError, ProviderError) as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except requests.RequestException as error:  # nobody knows what became of the request
            context.abort(grpc.StatusCode.UNKNOWN, str(error))

    return guarded


class Servicer(provider_pb2_grpc.ResourceProviderServicer):
    """Each request decoded, handed to `AzureNative`, and its answer encoded."""

    def __init__(self, provider: AzureNative) -> None:
        self.provider = provider

    # --- the provider itself ------------------------------------------------------------------------------------

    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        return plugin_pb2.PluginInfo(version=version("pulumi-azure-native"))

    def CheckConfig(self, request: Any, context: Any) -> Any:
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: Any, context: Any) -> Any:
        return provider_pb2.DiffResponse(changes=provider_pb2.DiffResponse.DIFF_NONE)

    def Configure(self, request: Any, context: Any) -> Any:
        """Nothing is taken from the configuration: inside `emulator run`, ARM_* leads here and nowhere else."""
        return provider_pb2.ConfigureResponse(supportsPreview=True)

    def Cancel(self, request: Any, context: Any) -> Any:
        return empty_pb2.Empty()

    # --- resources ----------------------------------------------------------------------------------------------

    @_refusals
    def Check(self, request: Any, context: Any) -> Any:
        news, olds = _values(request.news), _values(request.olds)
        inputs = self.provider.check(_token(request.urn), _name(request.urn), news, olds)
        return provider_pb2.CheckResponse(inputs=wire.encode(inputs))

    @_refusals
    def Diff(self, request: Any, context: Any) -> Any:
        olds, news = _values(request.old_inputs), _values(request.news)
        return _diff_response(self.provider.diff(_token(request.urn), _name(request.urn), olds, news))

    @_refusals
    def Create(self, request: Any, context: Any) -> Any:
        token, inputs = _token(request.urn), _values(request.properties)
        if request.preview:
            return provider_pb2.CreateResponse(properties=wire.encode(self.provider.preview(token, inputs)))
        try:
            identifier, outputs = self.provider.create(token, inputs)
        except ArmError as error:
            if not error.begun:
                raise
            _abort_half_done(context, self.provider.identifier(token, inputs), request.properties, str(error))
        return provider_pb2.CreateResponse(id=identifier, properties=wire.encode(outputs))

    @_refusals
    def Update(self, request: Any, context: Any) -> Any:
        token, news = _token(request.urn), _values(request.news)
        if request.preview:
            outputs = {**_values(request.olds), **self.provider.preview(token, news)}
        else:
            outputs = self.provider.update(token, request.id, news)
        return provider_pb2.UpdateResponse(properties=wire.encode(outputs))

    @_refusals
    def Delete(self, request: Any, context: Any) -> Any:
        self.provider.delete(_token(request.urn), request.id)
        return empty_pb2.Empty()

    @_refusals
    def Read(self, request: Any, context: Any) -> Any:
        inputs, before = _values(request.inputs), _values(request.properties)
        found = self.provider.read(_token(request.urn), request.id, inputs, before)
        if found is None:
            return provider_pb2.ReadResponse()
        inputs, outputs = found
        return provider_pb2.ReadResponse(id=request.id, inputs=wire.encode(inputs), properties=wire.encode(outputs))

    @_refusals
    def Invoke(self, request: Any, context: Any) -> Any:
        answer = self.provider.invoke(request.tok, _values(request.args))
        return provider_pb2.InvokeResponse(**{"return": wire.encode(answer)})


def _values(struct: Any) -> dict[str, Any]:
    return wire.decode(struct)[0]


def _token(urn: str) -> str:
    """The resource's own type, without its parents': `…::component$azure-native:storage:StorageAccount::name`."""
    return urn.split("::")[2].rsplit("$", 1)[-1]


def _name(urn: str) -> str:
    return urn.split("::", 3)[3]


def _diff_response(diff: Diff) -> Any:
    some, none = provider_pb2.DiffResponse.DIFF_SOME, provider_pb2.DiffResponse.DIFF_NONE
    replacing = {path: path.split(".")[0].split("[")[0] in diff.replacing for path in diff.paths}
    return provider_pb2.DiffResponse(
        changes=some if diff.paths else none,
        diffs=diff.changed,
        replaces=diff.replacing,
        deleteBeforeReplace=diff.delete_first,
        detailedDiff={path: _DIFF(kind=_KINDS[kind, replacing[path]]) for path, kind in diff.paths.items()},
        hasDetailedDiff=True,
    )


def _abort_half_done(context: Any, identifier: str, inputs: Any, message: str) -> None:
    """ARM took the resource and failed to finish it: the engine records it, and its next update goes on with it."""
    failed = provider_pb2.ErrorResourceInitFailed(id=identifier, properties=inputs, inputs=inputs, reasons=[message])
    status = status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=message)
    status.details.add().Pack(failed)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(grpc.StatusCode.UNKNOWN, message)
