"""What a job looks like when it begins, one that a client submits as one that a pipeline makes of a node."""

from __future__ import annotations

from emulator.arm.schema import Body
from emulator.runner import locations


def new(job_id: str, kind: str, properties: Body, system_data: Body) -> Body:
    """The ARM body of a job that starts; every output gets its place."""
    name = job_id.split("/")[-1]
    outputs = {key: dict(output or {}) for key, output in (properties.get("outputs") or {}).items()}
    for key, output in outputs.items():
        place = locations.output_uri(name, key)
        file = output.get("jobOutputType") == "uri_file"
        output["uri"] = output.get("uri") or (place.rstrip("/") if file else place)
    if properties.get("jobType") == "Command":
        place = f"azureml://datastores/workspaceartifactstore/ExperimentRun/dcid.{name}"
        outputs["default"] = {"jobOutputType": "uri_folder", "uri": place, "mode": "ReadWriteMount"}
    begin = {"properties": {}, "tags": {}, "experimentName": "Default", "isArchived": False}
    return {
        "id": job_id,
        "name": name,
        "type": kind,
        "systemData": system_data,
        "properties": {**begin, **properties, "outputs": outputs, "status": "Starting"},
    }
