"""What a stack holds, read from its checkpoint."""

from __future__ import annotations

from typing import Any

from infra.holdings import Holdings

GROUP = "/subscriptions/s/resourceGroups/rg"
VAULT = f"{GROUP}/providers/Microsoft.KeyVault/vaults/kv"
URN = "urn:pulumi:x::finetune-phi"


def resource(kind: str, name: str, identifier: str | None = None, **inputs: Any) -> dict[str, Any]:
    made = {"urn": f"{URN}::azure-native:{kind}::{name}", "type": f"azure-native:{kind}", "inputs": inputs}
    return made if identifier is None else made | {"id": identifier}


def of(
    *resources: dict[str, Any], pending: tuple[dict[str, Any], ...] = (), subscription: str | None = "s"
) -> Holdings:
    begun = [{"resource": one, "type": "creating"} for one in pending]
    return Holdings.of({"resources": list(resources), "pending_operations": begun}, subscription=subscription)


def test_what_is_recorded_is_found_whatever_its_api_version() -> None:
    found = of(
        {"urn": f"{URN}::pulumi:pulumi:Stack::x", "type": "pulumi:pulumi:Stack"},
        resource("resources:ResourceGroup", "group", GROUP),
        resource("keyvault/v20230701:Vault", "vault", VAULT),
    )
    assert (found.resources, found.groups, found.vaults) == (3, (GROUP,), (VAULT,))
    assert not found.is_empty and found.unfinished == ()


def test_what_was_cut_off_is_found_by_its_inputs() -> None:
    group = resource("resources:ResourceGroup", "group", resourceGroupName="rg")
    vault = resource("keyvault:Vault", "vault", resourceGroupName="rg", vaultName="kv")
    workspace = resource("machinelearningservices:Workspace", "w", resourceGroupName="rg", workspaceName="mlw")
    role = resource("authorization:RoleAssignment", "r", scope="/elsewhere", roleAssignmentName="guid")
    found = of(pending=(group, vault, workspace, role))
    assert found.groups == (GROUP,) and found.vaults == (VAULT,)
    assert found.workspaces == (f"{GROUP}/providers/Microsoft.MachineLearningServices/workspaces/mlw",)
    assert found.outside == ("/elsewhere/providers/Microsoft.Authorization/roleAssignments/guid",)
    assert found.unfinished == ("group", "vault", "w", "r") and found.resources == 0 and not found.is_empty


def test_what_has_no_name_yet_is_not_guessed() -> None:
    secret = resource(
        "keyvault:Vault", "vault", resourceGroupName={"4dabf18193072939515e22adb298388d": "x"}, vaultName="kv"
    )
    assert of(pending=(resource("keyvault:Vault", "vault"), secret)).vaults == ()
    assert of(pending=(resource("resources:ResourceGroup", "g", resourceGroupName="rg"),), subscription=None).is_empty


def test_a_resource_that_was_recorded_and_cut_off_again_counts_once() -> None:
    again = resource("keyvault:Vault", "vault", resourceGroupName="rg", vaultName="kv")
    assert of(resource("keyvault:Vault", "vault", VAULT), pending=(again,)).vaults == (VAULT,)


def test_roles_within_the_groups_go_with_them() -> None:
    inside = f"{VAULT}/providers/Microsoft.Authorization/roleAssignments/1"
    beside = "/subscriptions/s/resourceGroups/rg-2/providers/Microsoft.Authorization/roleAssignments/2"
    held = [resource("authorization:RoleAssignment", one, one) for one in (inside.replace("rg", "RG"), beside)]
    assert of(resource("resources:ResourceGroup", "group", GROUP), *held).outside == (beside,)


def test_a_stack_that_was_never_brought_up_holds_nothing() -> None:
    assert Holdings.of({"manifest": {}, "metadata": {}}, subscription=None).is_empty
