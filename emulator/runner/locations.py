"""From Azure ML's many spellings of a place to one storage container and prefix."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from emulator.arm.schema import ArmError
from emulator.state import State


@dataclass(frozen=True)
class Location:
    """Blobs: one of them, or all below a prefix."""

    account: str
    container: str
    path: str

    @property
    def leaf(self) -> str:
        """The last part of the path: the folder or file name that Azure keeps when it downloads the place."""
        return self.path.rstrip("/").split("/")[-1]


def of_datastore(state: State, workspace: str, datastore: str, path: str) -> Location:
    found = state.get(f"{workspace}/datastores/{datastore}")
    if found is None:
        raise ArmError(400, "UserError", f"The datastore '{datastore}' does not exist in the workspace.")
    properties = found["properties"]
    return Location(properties["accountName"], properties["containerName"], path)


def output_uri(job: str, output: str) -> str:
    """Where a job's named output lies by default (the path that Azure documents as its default)."""
    return f"azureml://datastores/workspaceblobstore/paths/azureml/{job}/{output}/"


def absolute(workspace: str, uri: str) -> str:
    """A datastore URI with the workspace written out, as Azure stores it: `azureml://subscriptions/…/datastores/…`."""
    if match := re.match(r"azureml://datastores/([^/]+)/paths/(.*)", uri):
        parts = workspace.strip("/").split("/")
        base = f"subscriptions/{parts[1]}/resourcegroups/{parts[3]}/workspaces/{parts[-1]}"
        return f"azureml://{base}/datastores/{match[1]}/paths/{match[2]}"
    return uri


def from_job(state: State, workspace: str, uri: str) -> str | None:
    """The datastore URI behind a job's output or artifact URI; None for another kind of URI.

    An output lies where its job says, which may be a place of one's own.
    """
    if match := re.match(r"azureml://jobs/([^/]+)/outputs/artifacts/(?:paths/)?(.*)", uri):
        return f"azureml://datastores/workspaceartifactstore/paths/ExperimentRun/dcid.{match[1]}/{match[2]}"
    if match := re.match(r"azureml://jobs/([^/]+)/outputs/([^/]+)/?(?:paths/)?(.*)", uri):
        job = state.get(f"{workspace}/jobs/{match[1]}") or {"properties": {}}
        said = (job["properties"].get("outputs") or {}).get(match[2]) or {}
        base = str(said.get("uri") or output_uri(match[1], match[2]))
        return f"{base.rstrip('/')}/{match[3]}"
    return None


def asset_key(state: State, spelled: str) -> str:
    """The key under which the state has an asset that is spelled as an ARM id or as a registry's address."""
    if match := re.fullmatch(r"azureml://registries/([^/]+)/(\w+/[^/]+/versions/[^/]+)", spelled):
        registries = state.of_type("Microsoft.MachineLearningServices/registries")
        return next((one["id"] for one in registries if one["name"] == match[1]), "/subscriptions/") + "/" + match[2]
    return spelled.removeprefix("azureml:") if spelled.startswith("azureml:/subscriptions/") else spelled


def uri_of(state: State, workspace: str, uri: str) -> str:
    """The address behind an asset's id; any other spelling stays. Raises ArmError 400 for one that does not exist."""
    uri = from_job(state, workspace, uri) or uri
    asset = asset_key(state, uri)
    if not asset.startswith("/subscriptions/"):
        return uri
    found = state.get(asset)
    if found is None:
        raise ArmError(400, "UserError", f"The asset '{asset}' does not exist.")
    inner = found["properties"]
    return uri_of(state, workspace, inner.get("modelUri") or inner.get("dataUri") or inner.get("codeUri") or "")


def resolve(state: State, workspace: str, uri: str) -> Location:
    """The place that a URI, an ARM id of an asset or an `azureml:name:version` names.

    Raises ArmError 400 for a spelling that Azure does not know or an asset that does not exist.
    """
    uri = uri_of(state, workspace, uri)
    if match := re.match(r"azureml://(?:subscriptions/.*/)?datastores/([^/]+)/paths/(.*)", uri):
        return of_datastore(state, workspace, match[1], match[2])
    if match := re.match(r"https://([a-z0-9]+)\.blob\.core\.windows\.net(?::443)?/(.+)", uri):
        container, _, path = unquote(urlsplit(uri).path).lstrip("/").partition("/")
        return Location(match[1], container, path)
    raise ArmError(400, "UserError", f"The path '{uri}' is not one that Azure ML can resolve.")
