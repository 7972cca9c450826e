"""The role ids and the table, pinned: a wrong digit here gives away rights or takes them."""

from __future__ import annotations

import pytest

from infra import roles
from infra.roles import Grant, Role


def test_role_ids_are_azures() -> None:
    assert {role.name: role.value for role in Role} == {
        "CONTRIBUTOR": "b24988ac-6180-42a0-ab88-20f7382dd24c",
        "STORAGE_BLOB_DATA_READER": "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1",
        "STORAGE_BLOB_DATA_CONTRIBUTOR": "ba92f5b4-2d11-453d-a403-e96b0029c9fe",
        "ACR_PULL": "7f951dda-4ed3-4680-a7ca-43fe172d538d",
        "AZUREML_METRICS_WRITER": "635dd51f-9968-44d3-b7fb-6d9a6bd613ae",
        "AZUREML_DATA_SCIENTIST": "f6c7c914-8db3-469d-8ca1-694a8f32e121",
        "MANAGED_IDENTITY_OPERATOR": "f1a07417-d97a-45cb-824c-7a7467783830",
    }


READ = ("STORAGE_BLOB_DATA_READER", "storage_account")
WRITE = ("STORAGE_BLOB_DATA_CONTRIBUTOR", "storage_account")
PULL = ("ACR_PULL", "container_registry")
CONTRIBUTE = ("CONTRIBUTOR", "resource_group")


@pytest.mark.parametrize(
    ("grants", "wanted"),
    [
        (roles.guide("AccessKey"), [CONTRIBUTE, READ, PULL]),
        (roles.guide("Identity"), [CONTRIBUTE, READ, PULL, WRITE]),
        (roles.LEAST_TRAINING, [WRITE, PULL]),
        (roles.LEAST_SERVING, [READ, PULL, ("AZUREML_METRICS_WRITER", "workspace")]),
        (
            roles.GITHUB,
            [
                ("AZUREML_DATA_SCIENTIST", "workspace"),
                WRITE,
                ("MANAGED_IDENTITY_OPERATOR", "resource_group"),
            ],
        ),
    ],
)
def test_the_table_of_grants(grants: tuple[Grant, ...], wanted: list[tuple[str, str]]) -> None:
    assert [(grant.role.name, grant.scope) for grant in grants] == wanted
    assert all(grant.reason for grant in grants)
