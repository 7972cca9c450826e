"""The role ids and the table, pinned: a wrong digit here gives away rights or takes them."""

from __future__ import annotations

from infra.roles import Role, grants


def test_role_ids_are_azures() -> None:
    assert {role.name: role.value for role in Role} == {
        "CONTRIBUTOR": "b24988ac-6180-42a0-ab88-20f7382dd24c",
        "STORAGE_BLOB_DATA_READER": "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1",
        "STORAGE_BLOB_DATA_CONTRIBUTOR": "ba92f5b4-2d11-453d-a403-e96b0029c9fe",
        "ACR_PULL": "7f951dda-4ed3-4680-a7ca-43fe172d538d",
    }


def test_the_table_of_grants() -> None:
    guide = [
        ("CONTRIBUTOR", "resource_group"),
        ("STORAGE_BLOB_DATA_READER", "storage_account"),
        ("ACR_PULL", "container_registry"),
    ]
    assert [(grant.role.name, grant.scope) for grant in grants("AccessKey")] == guide
    assert [(grant.role.name, grant.scope) for grant in grants("Identity")] == [
        *guide,
        ("STORAGE_BLOB_DATA_CONTRIBUTOR", "storage_account"),
    ]
