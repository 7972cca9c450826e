"""Policy packs in the in-process `pulumi`, over Pulumi's analyzer protocol.

The pack here is a program of the test's own that answers the protocol itself, because pulumi-policy needs an
environment of its own; how the repository's pack does with pulumi-policy is a slow test at the end.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import psutil
import pytest

from emulator.pulumi_cli.__main__ import main
from tests.support.local_azure import ROOT
from tests.support.pulumi_cli import Pulumi
from tests.support.pulumi_cli import arm as arm
from tests.support.pulumi_cli import project as project
from tests.support.pulumi_cli import pulumi as pulumi

PACK = '''
"""Asks for the tag `owner` (mandatory) and at most `accounts` storage accounts (advisory); may add the tag itself."""
import os, sys, time
from concurrent import futures
import grpc
from google.protobuf import empty_pb2, json_format, struct_pb2
from pulumi.runtime.proto import analyzer_pb2 as pb, analyzer_pb2_grpc, plugin_pb2

class Pack(analyzer_pb2_grpc.AnalyzerServicer):
    def __init__(self):
        self.levels, self.most, self.stack = {}, 0, ""
    def GetAnalyzerInfo(self, request, context):
        schema = pb.PolicyConfigSchema()
        schema.properties.update({"accounts": {"type": "integer", "default": 1}})
        return pb.AnalyzerInfo(name="small-pack", version="0.0.1", supportsConfig=True, policies=[
            pb.PolicyInfo(name="owner", description="Somebody owns it.", enforcementLevel=pb.MANDATORY),
            pb.PolicyInfo(name="few", description="Few.", enforcementLevel=pb.ADVISORY, configSchema=schema)])
    def GetPluginInfo(self, request, context):
        return plugin_pb2.PluginInfo(version="1.0.0")
    def Handshake(self, request, context):
        return pb.AnalyzerHandshakeResponse()
    def ConfigureStack(self, request, context):
        self.stack = f"{request.stack} {os.environ['PULUMI_STACK']} {dict(request.tags)}"
        return pb.AnalyzerStackConfigureResponse()
    def Configure(self, request, context):
        self.levels = {name: one.enforcementLevel for name, one in request.policyConfig.items()}
        self.most = json_format.MessageToDict(request.policyConfig["few"].properties)["accounts"]
        return empty_pb2.Empty()
    def Remediate(self, request, context):
        if self.levels["owner"] != pb.REMEDIATE or "StorageAccount" not in request.type:
            return pb.RemediateResponse()
        made = struct_pb2.Struct()
        made.CopyFrom(request.properties)
        made.update({"tags": {"owner": "the pack"}})
        return pb.RemediateResponse(remediations=[pb.Remediation(policyName="owner", properties=made)])
    def found(self, policy, text, urn=""):
        return pb.AnalyzeDiagnostic(policyName=policy, policyPackName="small-pack", message=text, urn=urn,
                                    enforcementLevel=self.levels[policy])
    def Analyze(self, request, context):
        held = json_format.MessageToDict(request.properties).get("tags", {})
        bad = self.levels["owner"] != pb.DISABLED and "StorageAccount" in request.type and "owner" not in held
        return pb.AnalyzeResponse(diagnostics=[self.found("owner", f"{request.name} of nobody")] if bad else [])
    def AnalyzeStack(self, request, context):
        names = [one.name for one in request.resources if "StorageAccount" in one.type]
        text = f"{len(names)} accounts in {self.stack}"
        return pb.AnalyzeResponse(diagnostics=[self.found("few", text)] if len(names) > self.most else [])

print("noise on stderr", file=sys.stderr)
server = grpc.server(futures.ThreadPoolExecutor(4))
analyzer_pb2_grpc.add_AnalyzerServicer_to_server(Pack(), server)
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
time.sleep(600)
'''
OWNED = "account('{0}', tags={{'owner': 'me'}})\n"


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "PulumiPolicy.yaml").write_text("runtime: python\nversion: 1.2.3\n")
    (folder / "__main__.py").write_text(PACK)
    return folder


def running(pack: Path) -> list[int]:
    return [one.pid for one in psutil.process_iter(["cmdline"]) if str(pack) in (one.info["cmdline"] or [])]


def test_a_program_that_keeps_the_rules_goes_on(pulumi: Pulumi, pack: Path) -> None:
    pulumi.program(OWNED.format("st"))
    printed = pulumi.done("up", "--yes", "--policy-pack", str(pack))
    assert "small-pack@v1.2.3: nothing against it" in printed
    assert len(pulumi.names("storageAccounts")) == 1
    assert running(pack) == []


@pytest.mark.parametrize("words", [["preview"], ["up", "--yes"], ["up", "--skip-preview"]])
def test_a_mandatory_violation_stops_before_anything_is_changed(pulumi: Pulumi, pack: Path, words: list[str]) -> None:
    pulumi.program(OWNED.format("st") + "account('stbad')")
    code, out, err = pulumi(*words, "--policy-pack", str(pack))
    assert code == 1
    assert "- [mandatory]  owner  (storage:StorageAccount: stbad)\n        stbad of nobody" in out
    assert "refused by mandatory policies: owner" in err and "Traceback" not in err
    assert pulumi.arm.requests == []
    assert running(pack) == []


def test_an_advisory_violation_of_the_whole_stack_is_told_and_goes_on(pulumi: Pulumi, pack: Path) -> None:
    pulumi.done("stack", "tag", "set", "team", "ml")
    pulumi.program(OWNED.format("sta") + OWNED.format("stb"))
    printed = pulumi.done("up", "--yes", "--policy-pack", str(pack))
    assert "- [advisory]  few  (pulumi:pulumi:Stack: small-test)" in printed
    assert "2 accounts in test test {'team': 'ml'}" in printed
    assert len(pulumi.names("storageAccounts")) == 2


def test_a_configuration_sets_levels_and_settings(pulumi: Pulumi, pack: Path, tmp_path: Path) -> None:
    given = tmp_path / "given.json"
    words = ["preview", "--policy-pack", str(pack), "--policy-pack-config", str(given)]
    pulumi.program("account('sta')\naccount('stb')")
    given.write_text(json.dumps({"owner": "advisory", "few": {"accounts": 2}}))
    printed = pulumi.done(*words)
    assert "2 advisory violations" in printed and "few" not in printed
    given.write_text(json.dumps({"all": "disabled", "few": {"enforcementLevel": "mandatory"}}))
    assert "mandatory policies: few" in pulumi.refused(*words)
    given.write_text(json.dumps({"ower": "advisory"}))
    assert "no policy 'ower'; it has owner, few" in pulumi.refused(*words)
    given.write_text(json.dumps({"owner": "strict"}))
    assert "'strict' is no enforcement level" in pulumi.refused(*words)


def test_a_remediating_policy_mends_the_inputs(pulumi: Pulumi, pack: Path, tmp_path: Path) -> None:
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"owner": "remediate"}))
    pulumi.program("account('st')")
    pulumi.done("up", "--yes", "--policy-pack", str(pack), "--policy-pack-config", str(given))
    assert pulumi.arm.only("storageAccounts")["tags"] == {"owner": "the pack"}


def test_violations_are_in_the_event_log(pulumi: Pulumi, pack: Path, tmp_path: Path) -> None:
    pulumi.program("account('st')")
    pulumi.refused("preview", "--policy-pack", str(pack), "--event-log", str(tmp_path / "events"))
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    (violation,) = [one["policyEvent"] for one in events if "policyEvent" in one]
    assert (violation["policyName"], violation["enforcementLevel"]) == ("owner", "mandatory")
    (summary,) = [one["summaryEvent"] for one in events if "summaryEvent" in one]
    assert summary["PolicyPacks"] == {"small-pack": "1.2.3"}


@pytest.mark.parametrize(
    ("settings", "program", "said"),
    [
        (None, PACK, "no PulumiPolicy.yaml"),
        ("runtime: nodejs\n", PACK, "Python only"),
        ("runtime: {name: python, options: {virtualenv: .venv}}\n", PACK, "no environment yet"),
        ("runtime: python\n", "raise RuntimeError('broken pack')", "broken pack"),
    ],
)
def test_a_pack_that_cannot_start_is_told_with_the_reason(
    pulumi: Pulumi, pack: Path, settings: str | None, program: str, said: str
) -> None:
    pulumi.program("")
    (pack / "__main__.py").write_text(program)
    (pack / "PulumiPolicy.yaml").write_text(settings or "")
    if settings is None:
        (pack / "PulumiPolicy.yaml").unlink()
    assert said in pulumi.refused("preview", "--policy-pack", str(pack))


@pytest.mark.slow  # installs pulumi-policy into an environment of the pack's own
def test_the_repositorys_pack_runs(pulumi: Pulumi, tmp_path: Path) -> None:
    pack = shutil.copytree(ROOT / "infra" / "policy", tmp_path / "policy", ignore=shutil.ignore_patterns(".venv"))
    assert main(["-C", str(pack), "install"]) == 0
    (pulumi.project / "Pulumi.yaml").write_text((ROOT / "Pulumi.yaml").read_text())
    (pulumi.project / "infra").symlink_to(ROOT / "infra")
    pulumi.done("stack", "init", "whole")
    words = ["preview", "--policy-pack", str(pack)]
    printed = pulumi.done(*words)
    assert "finetune-phi@v" in printed and "nothing against it" in printed
    pulumi.done("config", "set", "computeSize", "Standard_ND96amsr_A100_v4")
    code, out, err = pulumi(*words)
    assert code == 1 and "allowed-skus" in err
    assert "gpu-cluster has the size Standard_ND96amsr_A100_v4" in out
