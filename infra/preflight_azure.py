"""The doctor's questions to Azure. Each check yields findings; `infra.preflight` decides what to do about silence."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from infra import preflight_region, preflight_rights
from infra.arm import Arm, Refused
from infra.finding import Check, Finding, command
from infra.preflight_place import DIGITS, Place
from infra.preflight_rights import ML

if TYPE_CHECKING:
    from infra.settings import Settings

NAMESPACES = (
    ML,
    "Microsoft.Storage",
    "Microsoft.KeyVault",
    "Microsoft.OperationalInsights",
    "Microsoft.Insights",
    "Microsoft.ContainerRegistry",
    "Microsoft.ManagedIdentity",
)
# https://www.pulumi.com/registry/packages/azure-native/installation-configuration
SIGN_INS = {
    "clientId": "ARM_CLIENT_ID",
    "useOidc": "ARM_USE_OIDC",
    "useMsi": "ARM_USE_MSI",
    "useDefaultAzureCredential": "ARM_USE_DEFAULT_AZURE_CREDENTIAL",
}


def checks(arm: Arm, base: str, settings: Settings | None) -> dict[str, Check | None]:
    """The checks below a subscription; None for one that has to know the settings where there are none."""
    made: dict[str, Check | None] = {"subscription": lambda: subscription(arm, base)}
    place = Place(arm, base, settings) if settings else None
    for name, check in _of_settings(settings).items():
        made[name] = _bound(check, place) if place else None
    return {**made, "soft-deleted-workspaces": soft_deleted_workspaces}


def _of_settings(settings: Settings | None) -> dict[str, Callable[[Place], Iterator[Finding]]]:
    made = {
        "providers": providers,
        "rights": preflight_rights.rights,
        "blob-role": preflight_rights.blob_role,
        "shared-registry": preflight_rights.shared_registry,
        "region-size": preflight_region.region_size,
        "size-restrictions": preflight_region.size_restrictions,
        "quota": preflight_region.quota,
        "budget-start": budget_start,
        "soft-deleted-vaults": soft_deleted_vaults,
    }
    idle = [] if settings is None else [("shared-registry", settings.registry), ("budget-start", settings.budget)]
    return {name: check for name, check in made.items() if (name, None) not in idle}


def _bound(check: Callable[[Place], Iterator[Finding]], place: Place) -> Check:
    return lambda: check(place)


def names(settings: Settings | None) -> list[str]:
    """What would be checked of a stack with these settings."""
    return ["same-azure", "subscription", *_of_settings(settings), "soft-deleted-workspaces"]


# --- which Azure ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Provider:
    """What Pulumi's provider reads: its configuration, then ARM_*, then az. None is what nothing says."""

    tenant: str | None
    subscription: str | None
    client: str | None
    signs_in_by: str | None

    @classmethod
    def of(cls, stack: str) -> Provider:
        from infra.stack_config import values_of

        held = {key.removeprefix("azure-native:"): str(value) for key, value in values_of(stack).items()}

        def said(key: str, variable: str) -> str | None:
            return held.get(key) or os.environ.get(variable) or None

        by = [name for key, name in SIGN_INS.items() if said(key, name)]
        tenant, subscription = said("tenantId", "ARM_TENANT_ID"), said("subscriptionId", "ARM_SUBSCRIPTION_ID")
        account = {} if tenant and subscription and by else _az_account()
        by = by or (["az"] if account else [])
        return cls(
            tenant or account.get("tenantId"),
            subscription or account.get("id"),
            said("clientId", "ARM_CLIENT_ID"),
            by[0] if by else None,
        )


def subscription_id(stack: str) -> tuple[str | None, str]:
    """The subscription that Pulumi's provider would use for a stack, and by what it signs in."""
    provider = Provider.of(stack)
    return provider.subscription, provider.signs_in_by or ""


def _az_account() -> dict[str, Any]:
    if shutil.which("az") is None:
        return {}
    code, text = command("az", "account", "show", "--output", "json")
    try:
        found = json.loads(text) if code == 0 else None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def same_azure(arm: Arm, provider: Provider) -> Iterator[Finding]:
    """Pulumi's provider reads its configuration, ARM_* or az, the SDK AZURE_*: they may disagree without a word."""
    sdk = {
        "tenant": arm.claims.get("tid") or os.environ.get("AZURE_TENANT_ID"),
        "subscription": os.environ.get("AZURE_SUBSCRIPTION_ID"),
    }
    why = "Pulumi would create the stack in one place, and the jobs would look for it in another"
    for key, ours in {"tenant": provider.tenant, "subscription": provider.subscription}.items():
        theirs = sdk[key]
        if ours and theirs and ours.lower() != theirs.lower():
            repair = f"export ARM_{key.upper()}_ID={theirs}, or AZURE_{key.upper()}_ID={ours}, and sign in to that one"
            yield Finding("same-azure", "blocking", f"Pulumi sees the {key} {ours}, the SDK {theirs}", why, repair)
        elif not ours or (key == "tenant" and not theirs):
            side = "Pulumi's provider" if not ours else "the SDK"
            what = f"not checked: which {key} {side} would use is not said by configuration, variables or az"
            yield Finding("same-azure", "unknown", what, why, f"export ARM_{key.upper()}_ID=…, or az login")
        else:
            yield Finding("same-azure", "ok", f"one {key}: {ours}")
    yield from _same_client(provider)


def _same_client(provider: Provider) -> Iterator[Finding]:
    if provider.signs_in_by is None:
        why = "the SDK is signed in, and the provider that creates the resources is not"
        repair = "az login, or ARM_TENANT_ID, ARM_CLIENT_ID and ARM_CLIENT_SECRET"
        yield Finding("same-azure", "blocking", "Pulumi's provider finds neither ARM_CLIENT_ID nor az", why, repair)
        return
    ours, theirs = provider.client, os.environ.get("AZURE_CLIENT_ID")
    if (ours or "") != (theirs or ""):
        what = f"Pulumi signs in as {ours or 'the az user'}, the SDK as {theirs or 'the az user'}"
        why = "the rights found here are the SDK's; Pulumi may have others"
        repair = "export ARM_CLIENT_ID and AZURE_CLIENT_ID alike, or neither"
        yield Finding("same-azure", "warning", what, why, repair)


def subscription(arm: Arm, base: str) -> Iterator[Finding]:
    try:
        found = arm.get(base, "2022-12-01")
    except Refused as error:
        if error.status != 404:
            raise
        what = f"whoever is signed in does not see the subscription {base.rpartition('/')[2]}"
        why = "nothing could be created there"
        yield Finding("subscription", "blocking", what, why, "az account list --output table, and choose one of them")
        return
    name, state = found.get("displayName", base), found.get("state", "unknown")
    if state == "Enabled":
        yield Finding("subscription", "ok", f"{name} ({found['subscriptionId']}) is enabled")
        return
    why = "Azure lets nothing be created in a subscription that is not enabled"
    repair = "az account set --subscription ANOTHER, or settle it in the portal"
    yield Finding("subscription", "warning" if state == "PastDue" else "blocking", f"{name} is {state}", why, repair)


def namespaces(settings: Settings) -> list[str]:
    """The resource providers of what the stack declares."""
    own = [one for one in NAMESPACES if one != "Microsoft.ContainerRegistry" or not settings.registry]
    chat = ["Microsoft.DocumentDB"] if settings.chat_store else []
    return [*own, *chat, *(["Microsoft.Consumption"] if settings.budget else [])]


def providers(place: Place) -> Iterator[Finding]:
    """Resource providers have to be registered once in a subscription."""
    listed = place.arm.list(f"{place.base}/providers", "2021-04-01")
    states = {one["namespace"].lower(): one["registrationState"] for one in listed}
    why = "creating its resources fails with MissingSubscriptionRegistration"
    wanted = namespaces(place.settings)
    missing = {one: state for one in wanted if (state := states.get(one.lower(), "NotRegistered")) != "Registered"}
    for namespace, state in missing.items():
        if state == "Registering":
            yield Finding("providers", "warning", f"{namespace} is still being registered", why, "wait some minutes")
        else:
            repair = f"az provider register --namespace {namespace} --wait"
            yield Finding("providers", "blocking", f"{namespace} is {state}", why, repair)
    if not missing:
        yield Finding("providers", "ok", f"the {len(wanted)} resource providers are registered")


# --- the budget, and what is left of former stacks -------------------------------------------------------------------


def budget_start(place: Place, today: date | None = None) -> Iterator[Finding]:
    """A new budget starts this month or later: https://learn.microsoft.com/rest/api/consumption/budgets/create-or-update"""
    budget = place.settings.budget
    if budget is None:
        return
    month = (today or datetime.now(UTC).date()).replace(day=1)
    start = date.fromisoformat(budget.start)
    if place.group is not None:
        yield Finding("budget-start", "ok", "the stack is there, and its budget keeps the start that it has")
    elif month <= start <= month.replace(year=month.year + 1):
        yield Finding("budget-start", "ok", f"{budget.start}")
    else:
        what = f"`budgetStart` is {budget.start}"
        why = "Azure takes a new budget from this month's first day to twelve months ahead, and refuses others half-way"
        yield Finding("budget-start", "blocking", what, why, f"pulumi config set budgetStart {month.isoformat()}")


def soft_deleted_vaults(place: Place) -> Iterator[Finding]:
    from infra.naming import Names

    prefix = Names.of(place.settings.workload, place.settings.stack).key_vault
    listed = place.arm.list(f"{place.base}/providers/Microsoft.KeyVault/deletedVaults", "2024-11-01")
    twins = [one for one in listed if re.fullmatch(re.escape(prefix) + DIGITS, str(one["name"]))]
    for one in twins:
        held = one.get("properties") or {}
        why = "its name stays taken; a new vault gets other random digits, so nothing fails, but it lingers"
        repair = f"az keyvault purge --name {one['name']} --location {held.get('location', place.settings.location)}"
        if held.get("purgeProtectionEnabled"):
            repair = f"none: it is protected, and Azure purges it on {held.get('scheduledPurgeDate', 'its date')}"
        yield Finding("soft-deleted-vaults", "warning", f"{one['name']} is soft-deleted", why, repair)
    if not twins:
        yield Finding("soft-deleted-vaults", "ok", f"no soft-deleted vault is called {prefix}…")


def soft_deleted_workspaces() -> Iterator[Finding]:
    what = "not checked: Azure has no operation that lists soft-deleted workspaces"
    why = "a soft-deleted workspace keeps its name for 14 days; new ones get random digits, so it does not collide"
    repair = "look in the portal: Azure Machine Learning, Recently deleted; `make down` purges what it removes"
    yield Finding("soft-deleted-workspaces", "unknown", what, why, repair)
