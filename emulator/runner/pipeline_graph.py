"""The graph of a pipeline job: what each node becomes, and whether all of it can run.

A node names a component of the workspace or of a registry; a pipeline component's node is a pipeline job again. Nodes
are written in snake case, as azure-ai-ml sends them (`to_rest_job_object` of a pipeline).
"""

from __future__ import annotations

import re
import uuid
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from emulator.arm.schema import ArmError, Body
from emulator.runner import job_body, job_files, locations
from emulator.state import State

BINDING = re.compile(r"\$\{\{\s*parent\.(inputs|outputs|jobs)\.([\w-]+)(?:\.outputs\.([\w-]+))?\s*\}\}")
MODES = {
    "ro_mount": "ReadOnlyMount",
    "rw_mount": "ReadWriteMount",
    "download": "Download",
    "direct": "Direct",
    "upload": "Upload",
}


@dataclass
class Graph:
    """The nodes of one pipeline job. `made`: the jobs of its nodes so far, by the nodes' names."""

    state: State
    job: Body
    made: dict[str, Body] = field(default_factory=dict)

    @property
    def workspace(self) -> str:
        return "/".join(self.job["id"].split("/")[:9])

    @property
    def properties(self) -> Body:
        found: Body = self.job["properties"]
        return found

    @property
    def nodes(self) -> dict[str, Body]:
        found: dict[str, Body] = self.properties.get("jobs") or {}
        return found

    # -- before anything runs ------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Go through the whole graph without running it. Raises ArmError 400 for what cannot run."""
        if not self.nodes:
            raise ArmError(400, "UserError", "The pipeline has no jobs.")
        while waiting := [name for name in self.nodes if name not in self.made]:
            ready = [name for name in waiting if self.needs(name) <= self.made.keys()]
            if not ready:
                raise ArmError(400, "UserError", f"The jobs {', '.join(waiting)} wait for each other, or for no job.")
            for name in ready:
                child = self.made[name] = self.child(name)
                if child["properties"]["jobType"] == "Pipeline":
                    Graph(self.state, child).check()
                else:
                    job_files.check_modes(child["properties"])

    def needs(self, name: str) -> set[str]:
        """The nodes whose outputs a node reads."""
        values = [str(given.get("value")) for given in (self.nodes[name].get("inputs") or {}).values() if given]
        return {found[2] for value in values for found in BINDING.finditer(value) if found[1] == "jobs"}

    # -- a node's job --------------------------------------------------------------------------------------------------

    def child(self, name: str) -> Body:
        """The job that a node becomes. Raises ArmError 400 for a component, input or compute that is not there."""
        node = self.nodes[name]
        spec = self._component(name, node)
        common = {
            "displayName": node.get("display_name") or name,
            "experimentName": self.properties.get("experimentName", "Default"),
            "componentId": node["componentId"],
            "inputs": self._inputs(name, node, spec),
            "outputs": self._outputs(node, spec),
            "identity": _camel(node.get("identity")) or self.properties.get("identity"),
            "tags": node.get("tags") or {},
            "properties": self._lineage(name, node),
        }
        if spec.get("type") == "pipeline":
            inner = {"jobType": "Pipeline", "jobs": spec["jobs"], "settings": self.properties.get("settings") or {}}
            return self._body({**common, **inner})
        return self._body({**common, **self._command(name, node, spec)})

    def _lineage(self, name: str, node: Body) -> dict[str, str]:
        """What Azure writes of a step's origin into its properties."""
        root = (self.state.record("run", self.job["id"]) or {}).get("rootRunId") or self.job["name"]
        return {
            "azureml.DevPlatv2": "true",
            "azureml.runsource": "azureml.StepRun",
            "StepType": "PythonScriptStep",
            "azureml.moduleName": locations.asset_key(self.state, node["componentId"]).split("/")[-3],
            "azureml.nodeid": f"{zlib.crc32(name.encode()):08x}",
            "azureml.pipelinerunid": self.job["name"],
            "azureml.rootpipelinerunid": root,
        }

    def _body(self, properties: Body) -> Body:
        child = str(uuid.uuid4())
        now = datetime.now(UTC).isoformat()
        times = {**self.job["systemData"], "createdAt": now, "lastModifiedAt": now}
        return job_body.new(f"{self.workspace}/jobs/{child}", self.job["type"], properties, times)

    def _component(self, name: str, node: Body) -> Body:
        spelled = str(node.get("componentId") or "")
        found = self.state.get(locations.asset_key(self.state, spelled))
        if found is None:
            raise ArmError(400, "UserError", f"The component '{spelled}' of the job '{name}' does not exist.")
        spec: Body = found["properties"]["componentSpec"]
        if spec.get("type") not in ("command", "pipeline"):
            message = f"Components of type '{spec.get('type')}' are not emulated; 'command' and 'pipeline' are."
            raise ArmError(400, "UserError", message)
        return spec

    def _command(self, name: str, node: Body, spec: Body) -> Body:
        spread = _camel(self._filled(node.get("distribution") or spec.get("distribution")))
        if spread and (kind := spread.pop("type", "pytorch")) != "pytorch":
            raise ArmError(400, "UserError", f"The distribution '{kind}' is not emulated; 'pytorch' is.")
        environment = str(node.get("environment") or spec.get("environment") or "")
        return {
            "jobType": "Command",
            "command": spec["command"],
            "codeId": locations.asset_key(self.state, str(spec.get("code") or "")) or None,
            "environmentId": locations.asset_key(self.state, environment),
            "computeId": self._compute(name, node),
            "distribution": {"distributionType": "PyTorch", **spread} if spread else None,
            "resources": _camel(self._filled(node.get("resources") or spec.get("resources"))),
            "limits": _camel(node.get("limits") or spec.get("limits")),
            "environmentVariables": node.get("environment_variables") or spec.get("environment_variables") or {},
        }

    def _compute(self, name: str, node: Body) -> str:
        settings = self.properties.get("settings") or {}
        said = node.get("computeId") or settings.get("default_compute") or self.properties.get("computeId")
        wanted = str(self._filled(said) or "").removeprefix("azureml:")
        if not wanted:
            raise ArmError(400, "UserError", f"The job '{name}' has no compute.")
        if wanted.split("/")[-1].lower() == "serverless":
            raise ArmError(400, "UserError", f"The job '{name}' asks for serverless compute, which is not emulated.")
        key = wanted if wanted.startswith("/") else f"{self.workspace}/computes/{wanted}"
        if self.state.get(key) is None:
            raise ArmError(400, "UserError", f"Unknown compute target '{wanted.split('/')[-1]}'.")
        return key

    # -- inputs and outputs --------------------------------------------------------------------------------------------

    def _inputs(self, name: str, node: Body, spec: Body) -> Body:
        declared, given = spec.get("inputs") or {}, node.get("inputs") or {}
        if unknown := sorted(given.keys() - declared.keys()):
            raise ArmError(400, "UserError", f"The component of '{name}' has no input '{unknown[0]}'.")
        found: Body = {}
        for key, said in declared.items():
            value = self._value(given[key], said) if given.get(key) else None
            if value is None and said.get("default") is not None:
                value = {"jobInputType": "literal", "value": str(said["default"])}
            if value is None and str(said.get("optional", False)).lower() != "true":
                raise ArmError(400, "UserError", f"The input '{key}' of the job '{name}' is required.")
            if value is not None:
                _check_value(name, key, value, said)
                found[key] = value
        return found

    def _value(self, given: Body, said: Body) -> Body | None:
        """What a node's input is: a literal, a place, or nothing where it is bound to an input that nobody gave."""
        kind = str(given.get("job_input_type") or given.get("jobInputType") or "literal")
        mode = MODES.get(str(given.get("mode") or said.get("mode") or ""), given.get("mode"))
        if kind != "literal":
            return {"jobInputType": kind, "uri": given["uri"], **({"mode": mode} if mode else {})}
        bound = BINDING.fullmatch(str(given["value"]))
        if bound is None:
            return {"jobInputType": "literal", "value": str(self._filled(given["value"]))}
        if bound[1] == "inputs":
            found = (self.properties.get("inputs") or {}).get(bound[2])
            return {**found, **({"mode": mode} if mode else {})} if found else None
        output = self._output_of(bound)
        return {"jobInputType": output["jobOutputType"], "uri": output["uri"], **({"mode": mode} if mode else {})}

    def _output_of(self, bound: re.Match[str]) -> Body:
        outputs: Body = self.made[bound[2]]["properties"]["outputs"]
        if bound[3] not in outputs:
            raise ArmError(400, "UserError", f"The job '{bound[2]}' has no output '{bound[3]}'.")
        found: Body = outputs[bound[3]]
        return found

    def _outputs(self, node: Body, spec: Body) -> Body:
        """A node's outputs; one that is bound to the pipeline's lies where that lies."""
        found = {}
        for key, said in (spec.get("outputs") or {}).items():
            given = (node.get("outputs") or {}).get(key) or {}
            bound = BINDING.fullmatch(str(given.get("value") or ""))
            uri = (self.properties["outputs"].get(bound[2]) or {}).get("uri") if bound else given.get("uri")
            mode = MODES.get(str(given.get("mode") or said.get("mode") or ""), given.get("mode"))
            found[key] = {"jobOutputType": said["type"], "uri": uri, **({"mode": mode} if mode else {})}
        return found

    def _filled(self, value: Any) -> Any:
        """`value` with the pipeline's literal inputs written where they are named."""
        if isinstance(value, dict):
            return {key: self._filled(inner) for key, inner in value.items()}
        if not isinstance(value, str):
            return value
        inputs = self.properties.get("inputs") or {}
        return BINDING.sub(lambda found: str((inputs.get(found[2]) or {}).get("value", "")), value)


def _check_value(name: str, key: str, value: Body, said: Body) -> None:
    allowed = [str(one) for one in said.get("enum") or ()]
    if allowed and "value" in value and value["value"] not in allowed:
        message = f"The input '{key}' of the job '{name}' is '{value['value']}', not one of {', '.join(allowed)}."
        raise ArmError(400, "UserError", message)


def _camel(value: Any) -> Any:
    """Snake-case keys as ARM spells them; counts as numbers."""
    if not isinstance(value, dict):
        return int(value) if isinstance(value, str) and value.isdecimal() else value
    return {re.sub(r"_(\w)", lambda found: found[1].upper(), key): _camel(inner) for key, inner in value.items()}
