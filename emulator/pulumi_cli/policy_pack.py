"""A running policy pack, asked in Pulumi's analyzer protocol.

https://github.com/pulumi/pulumi/blob/master/proto/pulumi/analyzer.proto, and for the order of the calls
sdk/go/common/resource/plugin/analyzer_plugin.go in the same repository.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emulator.pulumi_cli.configuration import Entry
from emulator.pulumi_cli.errors import CliError
from emulator.pulumi_cli.goal import Goal, Values
from emulator.pulumi_cli.project import read_yaml
from emulator.pulumi_cli.state import Resource
from emulator.pulumi_provider import wire

_LEVELS = ("ADVISORY", "MANDATORY", "REMEDIATE", "DISABLED")


@dataclass(frozen=True)
class Violation:
    """One thing that a policy found. `mandatory` stops the operation, otherwise it is an advice."""

    pack: str
    version: str
    policy: str
    mandatory: bool
    urn: str
    message: str


@dataclass(frozen=True)
class About:
    """What a pack is told of the operation."""

    project: str
    stack: str
    config: Mapping[str, Entry]
    tags: Mapping[str, str]
    preview: bool


class Pack:
    """A running policy pack."""

    def __init__(self, folder: Path, port: int, about: About) -> None:
        import grpc  # type: ignore[import-untyped]
        from pulumi.runtime.proto import analyzer_pb2_grpc

        # The pack is on this machine; HTTPS_PROXY must not stand in between.
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
        self._stub: Any = analyzer_pb2_grpc.AnalyzerStub(grpc.insecure_channel(f"127.0.0.1:{port}", options=options))
        self.folder, self._unimplemented = folder, grpc.StatusCode.UNIMPLEMENTED
        self._rpc_error: type[Exception] = grpc.RpcError
        self._tell(about)
        self._info = self._ask("GetAnalyzerInfo", _empty())
        self.name = self._info.name
        # A Python pack always says 0.0.1; the version that counts stands in its file.
        self._mends = False
        self.version = str(read_yaml(folder / "PulumiPolicy.yaml").get("version") or self._info.version or "0.0.1")

    def configure(self, given: Mapping[str, Any]) -> None:
        """Set the policies' levels and settings: their own defaults, the pack's, and then what the user gave."""
        from pulumi.runtime.proto import analyzer_pb2

        made = {one.name: _default(one) for one in self._info.policies}
        for name, config in self._info.initialConfig.items():
            made[name].MergeFrom(config)
        for name, value in given.items():
            for policy in made if name == "all" else [name]:
                if policy not in made:
                    raise CliError(f"the policy pack {self.name} has no policy {name!r}; it has {', '.join(made)}")
                _set(made[policy], value)
        self._mends = any(one.enforcementLevel == analyzer_pb2.REMEDIATE for one in made.values())
        self._ask("Configure", analyzer_pb2.ConfigureAnalyzerRequest(policyConfig=made))

    def mend(self, goal: Goal, inputs: Values) -> Values:
        """The inputs as the pack's remediating policies want them."""
        if not self._mends:
            return inputs
        answer = self._ask("Remediate", _request(goal, inputs), optional=True)
        for one in answer.remediations if answer else ():
            if not one.diagnostic:
                inputs = wire.decode(one.properties)[0]
        return inputs

    def judge(self, goal: Goal, inputs: Values) -> list[Violation]:
        """What is wrong with a resource's inputs, before anything is done to it."""
        return self._violations(self._ask("Analyze", _request(goal, inputs)), goal.urn)

    def judge_stack(self, resources: Iterable[Resource], stack_urn: str) -> list[Violation]:
        """What is wrong with the stack as a whole, once all is done."""
        from pulumi.runtime.proto import analyzer_pb2

        request = analyzer_pb2.AnalyzeStackRequest(resources=[_stack_resource(one) for one in resources])
        return self._violations(self._ask("AnalyzeStack", request, optional=True), stack_urn)

    def _tell(self, about: About) -> None:
        from pulumi.runtime.proto import analyzer_pb2

        folder = str(self.folder)
        handshake = analyzer_pb2.AnalyzerHandshakeRequest(root_directory=folder, program_directory=folder)
        self._ask("Handshake", handshake, optional=True)
        request = analyzer_pb2.AnalyzerStackConfigureRequest(
            stack=about.stack,
            project=about.project,
            organization="organization",
            dry_run=about.preview,
            config={key: entry.text for key, entry in about.config.items()},
            config_secret_keys=[key for key, entry in about.config.items() if entry.secret],
            tags=dict(about.tags),
        )
        self._ask("ConfigureStack", request, optional=True)

    def _ask(self, method: str, request: Any, *, optional: bool = False) -> Any:
        try:
            return getattr(self._stub, method)(request, wait_for_ready=True, timeout=60)
        except self._rpc_error as error:
            if optional and error.code() is self._unimplemented:  # type: ignore[attr-defined]
                return None
            detail = error.details()  # type: ignore[attr-defined]
            raise CliError(f"the policy pack {self.folder} failed in {method}: {detail}") from None

    def _violations(self, answer: Any, urn: str) -> list[Violation]:
        from pulumi.runtime.proto import analyzer_pb2

        return [
            Violation(
                self.name,
                self.version,
                one.policyName,
                # What should have mended itself and is still wrong counts as mandatory, as with Pulumi.
                one.enforcementLevel in (analyzer_pb2.MANDATORY, analyzer_pb2.REMEDIATE),
                one.urn or urn,
                one.message or one.description,
            )
            for one in (answer.diagnostics if answer else ())
        ]


def _default(policy: Any) -> Any:
    from google.protobuf import json_format  # type: ignore[import-untyped]
    from pulumi.runtime.proto import analyzer_pb2

    made = analyzer_pb2.PolicyConfig(enforcementLevel=policy.enforcementLevel)
    schema = json_format.MessageToDict(policy.configSchema.properties)
    made.properties.update({key: one["default"] for key, one in schema.items() if "default" in one})
    return made


def _set(config: Any, value: Any) -> None:
    """`"advisory"`, or `{"enforcementLevel": "advisory", "a setting": 1}`."""
    from pulumi.runtime.proto import analyzer_pb2

    settings = {"enforcementLevel": value} if isinstance(value, str) else dict(value)
    level = settings.pop("enforcementLevel", None)
    if level is not None:
        if str(level).upper() not in _LEVELS:
            raise CliError(f"{level!r} is no enforcement level; advisory, mandatory, remediate or disabled is")
        config.enforcementLevel = analyzer_pb2.EnforcementLevel.Value(str(level).upper())
    config.properties.update(settings)


def _request(goal: Goal, inputs: Values) -> Any:
    from pulumi.runtime.proto import analyzer_pb2

    return analyzer_pb2.AnalyzeRequest(
        type=goal.type,
        urn=goal.urn,
        name=goal.name,
        properties=wire.encode(inputs, goal.secrets),
        options=_options(goal.protect, goal.parent, goal.ignore_changes),
    )


def _options(protect: bool, parent: str, ignore_changes: Sequence[str] = ()) -> Any:
    from pulumi.runtime.proto import analyzer_pb2

    return analyzer_pb2.AnalyzerResourceOptions(protect=protect, parent=parent, ignoreChanges=ignore_changes)


def _stack_resource(one: Resource) -> Any:
    from pulumi.runtime.proto import analyzer_pb2

    needs = {
        key: analyzer_pb2.AnalyzerPropertyDependencies(urns=urns)
        for key, urns in one.property_dependencies.items()
        if urns
    }
    return analyzer_pb2.AnalyzerResource(
        type=one.type,
        urn=one.urn,
        name=one.name,
        properties=wire.encode(one.outputs, one.secrets),
        options=_options(one.protect, one.parent),
        parent=one.parent,
        dependencies=one.dependencies,
        propertyDependencies=needs,
    )


def _empty() -> Any:
    from google.protobuf import empty_pb2

    return empty_pb2.Empty()
