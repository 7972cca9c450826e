"""The rules: from a resource's type and inputs to what is wrong with it. Plain functions, no Pulumi.

This file imports nothing of the project, since Pulumi runs the pack in an environment of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Inputs = Mapping[str, Any]
TAGS = ("project", "stack", "owner", "cost-center")
EXPIRY_TAGS = ("ttl-hours", "expires-on")
TAGGED = frozenset(
    {
        "resources:ResourceGroup",
        "storage:StorageAccount",
        "keyvault:Vault",
        "operationalinsights:Workspace",
        "applicationinsights:Component",
        "containerregistry:Registry",
        "managedidentity:UserAssignedIdentity",
        "machinelearningservices:Workspace",
        "machinelearningservices:Compute",
        "cosmosdb:DatabaseAccount",
        "cosmosdb:SqlResourceSqlDatabase",
        "cosmosdb:SqlResourceSqlContainer",
    }
)
PRINCIPAL_TYPES = ("User", "Group", "ServicePrincipal", "ForeignGroup", "Device")
# NC, ND, NG and NV are Azure's families with accelerators: learn.microsoft.com/azure/virtual-machines/sizes/overview
GPU_SIZE = re.compile(r"standard_n[cdgv]\d", re.IGNORECASE)
# What a platform team replaces with its own: `--policy-pack-config`, see docs/verbs.md.
ALLOWED: Mapping[str, tuple[str, ...]] = {
    "vmSizes": (
        "Standard_NC24ads_A100_v4",
        "Standard_NC48ads_A100_v4",
        "Standard_NC96ads_A100_v4",
        "Standard_NC40ads_H100_v5",
        "Standard_NC80adis_H100_v5",
        "Standard_NC4as_T4_v3",
        "Standard_NC16as_T4_v3",
        "Standard_D4ds_v5",
        "Standard_DS3_v2",
        "Standard_E4s_v3",
        "Standard_F4s_v2",
        "Standard_F8s_v2",
    ),
    "storageSkus": ("Standard_LRS", "Standard_ZRS"),
    "registrySkus": ("Basic", "Standard", "Premium"),
    "logSkus": ("PerGB2018",),
}
SKU_LISTS = {
    "storage:StorageAccount": "storageSkus",
    "containerregistry:Registry": "registrySkus",
    "operationalinsights:Workspace": "logSkus",
}


@dataclass(frozen=True)
class Rule:
    """A rule's name, what it asks for, and the function that finds what is against it.

    `settings` are the lists that the pack's configuration may replace; the function takes them by name. An `advisory`
    rule is printed and stops nothing.
    """

    name: str
    description: str
    check: Callable[..., Iterator[str]]
    level: Literal["mandatory", "advisory"] = "mandatory"
    settings: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def violations(self, token: str, inputs: Inputs, config: Mapping[str, Any] | None = None) -> Iterator[str]:
        """What is wrong with one resource; `token` is Pulumi's type, with or without an API version."""
        given = {name: value for name, value in (config or {}).items() if name in self.settings}
        yield from self.check(plain_type(token), inputs, **{**self.settings, **given})


def violations(token: str, inputs: Inputs) -> list[tuple[str, str]]:
    """Every (rule, what is wrong) of one resource, by the lists of this file."""
    return [(rule.name, text) for rule in RULES for text in rule.violations(token, inputs)]


def plain_type(token: str) -> str:
    """`azure-native:storage/v20240101:StorageAccount` → `storage:StorageAccount`."""
    parts = token.split(":")
    return f"{parts[1].split('/')[0]}:{parts[2]}" if parts[0] == "azure-native" and len(parts) == 3 else token


def tags_present(kind: str, inputs: Inputs) -> Iterator[str]:
    held = inputs.get("tags") or {}
    if kind in TAGGED and (missing := [tag for tag in TAGS if not held.get(tag)]):
        yield f"lacks the tags {', '.join(missing)}: nobody would know whose it is, or who pays"


def gpu_clusters_shrink_to_zero(kind: str, inputs: Inputs) -> Iterator[str]:
    inner = _compute(kind, inputs)
    least = (inner.get("scaleSettings") or {}).get("minNodeCount") or 0
    if GPU_SIZE.match(str(inner.get("vmSize", ""))) and least != 0:
        yield f"keeps {least:g} GPU nodes although no job runs: scaleSettings.minNodeCount has to be 0"


def no_account_keys(kind: str, inputs: Inputs) -> Iterator[str]:
    """Keys give everything to whoever reads them, and no log says who it was."""
    if kind == "storage:StorageAccount" and inputs.get("allowSharedKeyAccess") is None:
        yield "can be used with its key, because nothing is said: allowSharedKeyAccess has to be false"
    if kind == "containerregistry:Registry" and inputs.get("adminUserEnabled"):
        yield "has an admin user with a password: adminUserEnabled has to be false"
    if kind == "cosmosdb:DatabaseAccount" and inputs.get("disableLocalAuth") is not True:
        yield "can be used with its key: disableLocalAuth has to be true"


def no_datastore_keys(kind: str, inputs: Inputs) -> Iterator[str]:
    """A rule of its own, and advisory: the configuration `datastoreAuth: AccessKey` asks for exactly this."""
    if kind == "storage:StorageAccount" and inputs.get("allowSharedKeyAccess"):
        yield "can be used with its key: allowSharedKeyAccess is true, which datastoreAuth Identity would not need"
    if kind == "machinelearningservices:Workspace" and inputs.get("systemDatastoresAuthMode") != "Identity":
        yield "reaches its datastores with the account's key: systemDatastoresAuthMode is not Identity"


def principal_type_set(kind: str, inputs: Inputs) -> Iterator[str]:
    if kind == "authorization:RoleAssignment" and inputs.get("principalType") not in PRINCIPAL_TYPES:
        yield "has no principalType: Azure would look a new identity up too early and answer PrincipalNotFound"


def no_public_blobs(kind: str, inputs: Inputs) -> Iterator[str]:
    if kind == "storage:StorageAccount" and inputs.get("allowBlobPublicAccess") is not False:
        yield "may have public blobs: allowBlobPublicAccess has to be false"
    if kind == "storage:BlobContainer" and inputs.get("publicAccess") not in (None, "None"):
        yield "is public: publicAccess has to be None"


def no_purge_protection_with_expiry(kind: str, inputs: Inputs) -> Iterator[str]:
    held = inputs.get("tags") or {}
    protected = (inputs.get("properties") or {}).get("enablePurgeProtection")
    if kind == "keyvault:Vault" and protected and any(held.get(tag) for tag in EXPIRY_TAGS):
        yield "cannot be purged, and its stack expires: each one would leave a vault behind"


def allowed_skus(kind: str, inputs: Inputs, **allowed: Sequence[str]) -> Iterator[str]:
    size = _compute(kind, inputs).get("vmSize")
    if size is not None and str(size).lower() not in [one.lower() for one in allowed["vmSizes"]]:
        yield f"has the size {size}, which is not among {', '.join(allowed['vmSizes'])}"
    sku, skus = (inputs.get("sku") or {}).get("name"), allowed.get(SKU_LISTS.get(kind, ""))
    if skus is not None and sku not in skus:
        yield f"has the SKU {sku}, which is not among {', '.join(skus)}"


def _compute(kind: str, inputs: Inputs) -> Inputs:
    """The properties of a compute cluster; of anything else none."""
    if kind != "machinelearningservices:Compute":
        return {}
    return (inputs.get("properties") or {}).get("properties") or {}


RULES = (
    Rule("tags-present", f"Everything that takes tags has {', '.join(TAGS)}.", tags_present),
    Rule("gpu-min-nodes-0", "GPU clusters cost nothing while no job runs.", gpu_clusters_shrink_to_zero),
    Rule("no-account-keys", "Storage, registry and database are used without keys.", no_account_keys),
    Rule("no-datastore-keys", "Jobs reach their data as themselves, not with a key.", no_datastore_keys, "advisory"),
    Rule("principal-type-set", "Each role assignment says what its principal is.", principal_type_set),
    Rule("no-public-blobs", "No blob can be read without signing in.", no_public_blobs),
    Rule("no-purge-protection-with-expiry", "What expires can be purged.", no_purge_protection_with_expiry),
    Rule("allowed-skus", "VM sizes and SKUs are those that were agreed on.", allowed_skus, settings=ALLOWED),
)
