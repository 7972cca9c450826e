"""The Pulumi program of `infra/` against ARM's rules, in process: every body that it sends, with every option on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from emulator.arm.schema import TYPES
from emulator.home import DEPLOYER_OBJECT_ID
from tests.infra.conftest import Cli
from tests.infra.conftest import arm as arm  # the fixtures
from tests.infra.conftest import pulumi as pulumi
from tests.support.arm_in_process import SUBSCRIPTION

EVERYTHING: dict[str, Any] = {
    "grants": "least",
    "purgeProtection": True,
    "deployer": DEPLOYER_OBJECT_ID,
    "deployerType": "ServicePrincipal",
    "cpuMaxNodes": 2,
    "chatStore": True,
    "budgetAmount": 500,
    "budgetEmails": ["ml@contoso.example"],
    "budgetStart": datetime.now(UTC).strftime("%Y-%m-01"),
    "githubSubject": "repo:contoso/phi:ref:refs/heads/main",
    "branch": "feat/x",
}
NOT_DECLARED = {"microsoft.authorization/locks", "microsoft.storage/storageaccounts/blobservices"}


def kinds(pulumi: Cli) -> set[str]:
    return {one["type"].lower() for one in pulumi.arm.resources.values()}


def test_azure_takes_every_body_of_the_program(pulumi: Cli) -> None:
    pulumi.up(**EVERYTHING)
    assert set(TYPES) - kinds(pulumi) <= NOT_DECLARED


def test_azure_takes_the_programs_updates(pulumi: Cli) -> None:
    pulumi.up(**EVERYTHING)
    pulumi.up(owner="somebody else", computeMaxNodes=3, budgetAmount=600)
    pulumi.up(grants="guide", datastoreAuth="AccessKey", chatStore=False, budgetAmount=0, computeLowPriority=True)


def test_a_group_with_everything_in_it_is_deleted_by_one_request(pulumi: Cli) -> None:
    pulumi.up(**EVERYTHING)
    assert pulumi("destroy", "--yes")[0] == 0
    assert [path.count("/providers/") for path in pulumi.arm.changes("DELETE")] == [0]
    assert pulumi.arm.emulator.state.below(f"/subscriptions/{SUBSCRIPTION}") == []
