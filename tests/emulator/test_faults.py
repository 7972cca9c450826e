"""Faults on demand, and what Microsoft's own clients make of them; by the fixture that the package offers."""

from __future__ import annotations

from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError

from emulator.testing import AzureMl
from tests.support.raw_jobs import STORAGE

pytest_plugins = ["emulator.testing"]


def _blobs(azure_ml: AzureMl) -> Any:
    from azure.identity import DefaultAzureCredential
    from azure.storage.blob import BlobServiceClient

    azure_ml.client()
    account = BlobServiceClient("https://sttest.blob.core.windows.net", DefaultAzureCredential(), retry_total=3)
    return account.get_container_client("azureml")


def test_a_three_line_test_runs_a_job(azure_ml: AzureMl) -> None:
    from azure.ai.ml import command

    job = command(command="echo $((6*7))", environment=_environment(azure_ml), compute="cpu")
    made = azure_ml.client().jobs.create_or_update(job)
    assert azure_ml.wait(made.name) == "Completed"


def _environment(azure_ml: AzureMl) -> str:
    from azure.ai.ml.entities import Environment

    found = azure_ml.client().environments.create_or_update(Environment(name="e", version="1", image="ubuntu"))
    return str(found.id)


def test_throttling_is_waited_for_as_retry_after_says(azure_ml: AzureMl) -> None:
    client = azure_ml.client()
    azure_ml.fault("throttle", match="/computes/cpu", times=2, seconds=0)
    assert client.compute.get("cpu").name == "cpu"


@pytest.mark.parametrize("status", [500, 503])
def test_a_request_fails_when_its_turn_comes(azure_ml: AzureMl, status: int) -> None:
    client = azure_ml.client()
    azure_ml.fault("error", match="/computes/cpu", after=1, status=status, code="Broken")
    assert client.compute.get("cpu").name == "cpu"
    with pytest.raises(HttpResponseError) as refused:
        client.compute._operation.get("rg-test", "mlw-test", "cpu", retry_total=0)
    assert refused.value.status_code == status
    azure_ml.clear_faults()
    assert client.compute.get("cpu").name == "cpu"


def test_quota_can_be_exceeded(azure_ml: AzureMl) -> None:
    from azure.ai.ml.entities import ManagedOnlineEndpoint

    azure_ml.fault("error", match="/onlineEndpoints/", status=400, code="OutOfQuota")
    with pytest.raises(HttpResponseError, match="OutOfQuota"):
        azure_ml.client().online_endpoints.begin_create_or_update(ManagedOnlineEndpoint(name="ep-quota")).result()


def test_an_upload_that_is_cut_off_is_sent_again_and_is_whole(azure_ml: AzureMl) -> None:
    box, data = _blobs(azure_ml), bytes(range(256)) * 4096
    azure_ml.fault("drop", match="PUT sttest.blob.core.windows.net/azureml/cut", times=1)
    box.upload_blob("cut", data)
    assert box.download_blob("cut").readall() == data


def test_a_long_running_operation_takes_longer(azure_ml: AzureMl) -> None:
    from azure.ai.ml.entities import AmlCompute

    azure_ml.fault("operations", seconds=2)
    poller = azure_ml.client().compute.begin_create_or_update(AmlCompute(name="slow", size="Standard_DS3_v2"))
    assert poller.status() == "InProgress"
    poller.result()
    assert poller.status() == "Succeeded"


def test_storage_refuses_until_a_new_role_has_arrived(azure_ml: AzureMl) -> None:
    from azure.ai.ml import MLClient

    client: MLClient = azure_ml.client()
    box = _blobs(azure_ml)
    group = f"/subscriptions/{client.subscription_id}/resourceGroups/rg-test"
    identities = f"{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities"
    azure_ml._put(f"{identities}/id-late", {"location": "eastus2"})
    principal = _principal(client.subscription_id)
    azure_ml.fault("roles", seconds=2)
    role = "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1"
    azure_ml._put(
        f"{group}/providers/Microsoft.Authorization/roleAssignments/11111111-2222-4333-8444-555555555555",
        {
            "properties": {
                "principalId": principal,
                "principalType": "ServicePrincipal",
                "roleDefinitionId": f"/subscriptions/{client.subscription_id}/providers/"
                f"Microsoft.Authorization/roleDefinitions/{role}",
            }
        },
    )
    with pytest.raises(HttpResponseError) as refused:
        list(box.list_blobs())
    assert refused.value.status_code == 403 and refused.value.error_code == "AuthorizationPermissionMismatch"
    _until(lambda: list(box.list_blobs()) is not None)


def test_an_image_that_cannot_be_built_fails_the_job(azure_ml: AzureMl) -> None:
    from azure.ai.ml import command

    environment = _environment(azure_ml)
    azure_ml.fault("image-build")
    job = azure_ml.client().jobs.create_or_update(command(command="true", environment=environment, compute="cpu"))
    assert azure_ml.wait(job.name) == "Failed"


def test_tokens_can_expire_soon(azure_ml: AzureMl) -> None:
    import time

    from azure.identity import DefaultAzureCredential

    azure_ml.fault("token-lifetime", seconds=400)
    token = DefaultAzureCredential().get_token(f"{STORAGE}/.default")
    assert token.expires_on - time.time() < 401


def test_a_clock_that_is_ahead_or_behind_refuses_tokens_and_signatures(azure_ml: AzureMl) -> None:
    from azure.core.exceptions import ClientAuthenticationError

    client, box = azure_ml.client(), _blobs(azure_ml)
    box.upload_blob("timed", b"x", overwrite=True)
    for seconds in (7200, -7200):
        azure_ml.fault("clock", seconds=seconds)
        with pytest.raises(ClientAuthenticationError):
            client.compute.get("cpu")
        with pytest.raises(ClientAuthenticationError):
            box.download_blob("timed")
        azure_ml.clear_faults()
    azure_ml.fault("clock", seconds=-200)  # what Entra ID allows for
    assert client.compute.get("cpu").name == "cpu"


def test_a_signature_expires_by_the_services_clock(azure_ml: AzureMl) -> None:
    import requests

    secrets = azure_ml.home.secrets()
    from emulator.sas import SharedAccess

    _blobs(azure_ml).upload_blob("signed", b"x", overwrite=True)
    token = SharedAccess(secrets["sas_key"]).for_blob("sttest", "azureml", "signed")
    address = f"https://sttest.blob.core.windows.net/azureml/signed?{token}"
    assert requests.get(address, timeout=30).content == b"x"
    azure_ml.fault("clock", seconds=7200)
    assert requests.get(address, timeout=30).status_code == 403


def test_an_unknown_fault_is_refused(azure_ml: AzureMl) -> None:
    with pytest.raises(AssertionError, match="there is no fault 'gremlins'"):
        azure_ml.fault("gremlins")


def _principal(subscription: str) -> str:
    import requests
    from azure.identity import DefaultAzureCredential

    token = DefaultAzureCredential().get_token("https://management.azure.com/.default").token
    address = (
        f"https://management.azure.com/subscriptions/{subscription}/resourceGroups/rg-test/providers/"
        "Microsoft.ManagedIdentity/userAssignedIdentities/id-late?api-version=2023-01-31"
    )
    found = requests.get(address, headers={"Authorization": f"Bearer {token}"}, timeout=30).json()
    return str(found["properties"]["principalId"])


def _until(succeeds: Any) -> None:
    import time

    for _ in range(100):
        try:
            assert succeeds()
            return
        except HttpResponseError:
            time.sleep(0.1)
    raise AssertionError("it was refused to the end")
