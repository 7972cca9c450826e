"""The engine of the in-process `pulumi`: what it does with small programs, and after being cut off."""

from __future__ import annotations

import _thread
import contextlib
import time
from typing import Any

import pytest

from emulator.pulumi_cli import state as states
from tests.support.arm_in_process import SUBSCRIPTION
from tests.support.pulumi_cli import Pulumi
from tests.support.pulumi_cli import arm as arm
from tests.support.pulumi_cli import project as project
from tests.support.pulumi_cli import pulumi as pulumi

# --- names, creations, updates --------------------------------------------------------------------------------------


def test_a_top_level_resource_gets_eight_random_digits(pulumi: Pulumi) -> None:
    pulumi.up("account('st')")
    (name,) = pulumi.names("storageAccounts")
    assert len(name) == 10 and name.startswith("st")


def test_preview_counts_what_up_does_and_asks_azure_for_nothing(pulumi: Pulumi) -> None:
    assert pulumi.changes("account('st')") == {"create": 3}  # the stack itself counts, as with the real engine
    assert pulumi.arm.requests == []
    assert "3 created" in pulumi.up()
    assert pulumi.changes() == {"same": 3}


def test_a_preview_leaves_out_outputs_whose_shape_differs_from_the_inputs(pulumi: Pulumi) -> None:
    """User-assigned identities go in as a list and come out as a map: echoed, the SDK raises an AssertionError."""
    pulumi.program(
        "from pulumi_azure_native import machinelearningservices as ml\n"
        "id = identity('id-')\n"
        "hub = ml.Workspace('w', resource_group_name=group.name, location='eastus2',\n"
        "    identity=ml.ManagedServiceIdentityArgs(type='UserAssigned', user_assigned_identities=[id.id]))\n"
        "pulumi.export('principals', hub.identity.apply(lambda one: list(one.user_assigned_identities)))"
    )
    assert "principals : [unknown]" in pulumi.done("preview")


def test_a_resource_that_exists_is_not_taken_over(pulumi: Pulumi) -> None:
    group = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/g"
    account = {"location": "eastus2", "kind": "StorageV2", "sku": {"name": "Standard_LRS"}}
    pulumi.arm.put(group, {"location": "eastus2"})
    pulumi.arm.put(f"{group}/providers/Microsoft.Storage/storageAccounts/taken", account)
    pulumi.program(
        "storage.StorageAccount('st', account_name='taken', resource_group_name='g', location='eastus2',\n"
        "    kind='StorageV2', sku=storage.SkuArgs(name='Standard_LRS'))",
        group=False,
    )
    for _ in range(2):  # the second time too: nothing was begun that could be gone on with
        assert "cannot create the existing resource" in pulumi.refused("up", "--yes")


def test_what_the_program_drops_is_deleted(pulumi: Pulumi) -> None:
    pulumi.up("account('st')")
    assert pulumi.changes("") == {"same": 2, "delete": 1}
    pulumi.up()
    assert pulumi.names("storageAccounts") == []


@pytest.mark.parametrize("path", ["tags.owner", "tags.*", "tags", "*"])
def test_ignored_changes_change_nothing(pulumi: Pulumi, path: str) -> None:
    pulumi.up(f"account('st', tags={{'owner': 'me'}}, opts=opts(ignore_changes=['{path}']))")
    assert pulumi.changes(f"account('st', tags={{'owner': 'you'}}, opts=opts(ignore_changes=['{path}']))") == {
        "same": 3
    }


def test_what_is_beside_an_ignored_property_still_counts(pulumi: Pulumi) -> None:
    pulumi.up("account('st', tags={'owner': 'me'}, opts=opts(ignore_changes=['tags.owner']))")
    pulumi.program("account('st', tags={'owner': 'you', 'cost': 'x'}, opts=opts(ignore_changes=['tags.owner']))")
    pulumi.up()
    assert pulumi.arm.only("storageAccounts")["tags"] == {"owner": "me", "cost": "x"}


def test_two_resources_of_one_name_are_refused(pulumi: Pulumi) -> None:
    pulumi.program("account('st')\naccount('st')")
    assert "same URN" in pulumi.refused("up", "--yes")


# --- replacements ---------------------------------------------------------------------------------------------------


def test_a_replacement_is_made_before_the_old_one_goes(pulumi: Pulumi) -> None:
    pulumi.up("account('st')")
    assert pulumi.changes("account('st', location='westus')") == {"same": 2, "replace": 1}
    assert pulumi.sent(pulumi.up) == ["PUT", "DELETE"]
    assert len(pulumi.names("storageAccounts")) == 1


def test_delete_before_replace_turns_that_around(pulumi: Pulumi) -> None:
    pulumi.up("account('st', opts=opts(delete_before_replace=True))")
    pulumi.program("account('st', location='westus', opts=opts(delete_before_replace=True))")
    assert pulumi.sent(pulumi.up) == ["DELETE", "PUT"]


def test_a_fixed_name_goes_first_without_being_told(pulumi: Pulumi) -> None:
    fixed = "managedidentity.UserAssignedIdentity('id', resource_name_='fixed', resource_group_name=group.name, "
    pulumi.up(f"{fixed}location='eastus2')")
    pulumi.program(f"{fixed}location='westus')")
    assert pulumi.sent(pulumi.up) == ["DELETE", "PUT"]


def test_replace_on_changes_reaches_into_a_property(pulumi: Pulumi) -> None:
    text = "account('st', tags={{'size': '{0}', 'owner': '{1}'}}, opts=opts(replace_on_changes=['tags.size']))"
    pulumi.up(text.format("small", "me"))
    assert pulumi.changes(text.format("small", "you")) == {"same": 2, "update": 1}
    assert pulumi.changes(text.format("big", "me")) == {"same": 2, "replace": 1}


def test_what_would_be_replaced_with_it_goes_first_and_comes_again(pulumi: Pulumi) -> None:
    """An assignment names its principal; a storage account that only depends on the identity need not move."""
    text = (
        "id = identity('id-', location='{0}', opts=opts(delete_before_replace=True))\n"
        "reader('ra', id)\n"
        "account('st', opts=opts(depends_on=[id]))"
    )
    pulumi.up(text.format("eastus2"))
    assert pulumi.changes(text.format("westus")) == {"same": 3, "replace": 2}
    before = len(pulumi.arm.requests)
    assert "2 replaced, 3 unchanged" in pulumi.up()
    done = [(method, path.rsplit("/", 2)[-2]) for method, path in pulumi.arm.requests[before:]]
    assert done == [
        ("DELETE", "roleAssignments"),
        ("DELETE", "userAssignedIdentities"),
        ("PUT", "userAssignedIdentities"),
        ("PUT", "roleAssignments"),
    ]
    assert pulumi.changes() == {"same": 5}


def test_what_is_deleted_with_it_is_made_again_with_it(pulumi: Pulumi) -> None:
    text = "id = identity('id-', location='{0}', opts=opts(delete_before_replace=True))\n" + (
        "account('st', opts=opts(deleted_with=id))"
    )
    pulumi.up(text.format("eastus2"))
    (before,) = pulumi.names("storageAccounts")
    assert pulumi.changes(text.format("westus")) == {"same": 2, "replace": 2}
    assert pulumi.sent(pulumi.up) == ["DELETE", "PUT", "PUT"]  # its own deletion is left to Azure
    assert before in pulumi.names("storageAccounts")  # which this time did not do it: the test lied about the owner


def test_a_protected_resource_is_neither_deleted_nor_replaced(pulumi: Pulumi) -> None:
    pulumi.up("account('st', opts=opts(protect=True))")
    assert "protected" in pulumi.refused("destroy", "--yes")
    pulumi.program("account('st', location='westus', opts=opts(protect=True))")
    assert "protected" in pulumi.refused("up", "--yes")
    assert len(pulumi.names("storageAccounts")) == 1


def test_a_retained_resource_leaves_the_state_only(pulumi: Pulumi) -> None:
    pulumi.up("account('st', opts=opts(retain_on_delete=True))")
    pulumi.up("")
    assert len(pulumi.names("storageAccounts")) == 1
    assert len(pulumi.state()) == 2


# --- deletions and owners -------------------------------------------------------------------------------------------


def test_what_goes_with_its_owner_is_not_deleted_by_itself(pulumi: Pulumi) -> None:
    pulumi.up("a = account('st', opts=opts(deleted_with=group))\nidentity('id-', opts=opts(deleted_with=a))")
    assert pulumi.sent(lambda: pulumi.done("destroy", "--yes")) == ["DELETE"]  # through a chain of owners, too
    assert pulumi.arm.resources == {} and pulumi.state() == []


def test_without_its_owner_it_is_deleted_by_itself(pulumi: Pulumi) -> None:
    pulumi.up("account('st', opts=opts(deleted_with=group))")
    pulumi.program("")
    assert pulumi.sent(pulumi.up) == ["DELETE"]
    assert pulumi.names("storageAccounts") == [] and len(pulumi.names("resourceGroups")) == 1


def test_a_replaced_owner_takes_what_it_held_along(pulumi: Pulumi) -> None:
    text = "group = resources.ResourceGroup('rg-', location='{0}')\naccount('st', opts=opts(deleted_with=group))"
    pulumi.program(text.format("eastus2"), group=False)
    pulumi.up()
    pulumi.program(text.format("westus"), group=False)
    assert pulumi.changes() == {"same": 1, "replace": 2}
    assert pulumi.sent(pulumi.up) == ["PUT", "PUT", "DELETE"]
    assert len(pulumi.names("storageAccounts")) == len(pulumi.names("resourceGroups")) == 1
    assert pulumi.changes() == {"same": 3}


def test_a_destroy_takes_along_what_others_made_in_the_group(pulumi: Pulumi) -> None:
    pulumi.up("account('st', opts=opts(deleted_with=group))")
    (group,) = [path for path in pulumi.arm.resources if path.rsplit("/", 2)[-2] == "resourceGroups"]
    stray = {"location": "eastus2", "kind": "StorageV2", "sku": {"name": "Standard_LRS"}}
    pulumi.arm.put(f"{group}/providers/Microsoft.Storage/storageAccounts/stray", stray)
    pulumi.done("destroy", "--yes")
    assert pulumi.arm.resources == {}


def test_dependents_go_before_what_they_depend_on(pulumi: Pulumi) -> None:
    pulumi.up("id = identity('id-')\nreader('ra', id)\naccount('st', opts=opts(depends_on=[id]))")
    pulumi.done("destroy", "--yes")
    gone = [path.rsplit("/", 2)[-2] for path in pulumi.arm.changes("DELETE")]
    assert gone.index("userAssignedIdentities") > max(gone.index("roleAssignments"), gone.index("storageAccounts"))
    assert gone[-1] == "resourceGroups"


# --- aliases --------------------------------------------------------------------------------------------------------


def test_a_renamed_resource_with_an_alias_stays(pulumi: Pulumi) -> None:
    pulumi.up("a = account('old')\nidentity('id-', opts=opts(depends_on=[a]))")
    pulumi.program("a = account('new', opts=opts(aliases=[pulumi.Alias(name='old')]))\n"
                   "identity('id-', opts=opts(depends_on=[a]))")  # fmt: skip
    assert pulumi.changes() == {"same": 4}
    assert pulumi.sent(pulumi.up) == []
    assert pulumi.urn("new").endswith("::new")
    assert all("::old" not in urn for one in pulumi.state() for urn in [one["urn"], *one["dependencies"]])


def test_a_child_follows_its_parents_alias(pulumi: Pulumi) -> None:
    text = (
        "class Thing(pulumi.ComponentResource):\n"
        "    def __init__(self, name, opts=None):\n"
        "        super().__init__('{0}', name, None, opts)\n"
        "        account('st', opts=pulumi.ResourceOptions(parent=self))\n"
    )
    pulumi.up(text.format("a:b:Old") + "Thing('t')")
    moved = text.format("a:b:New") + "Thing('t', opts(aliases=[pulumi.Alias(type_='a:b:Old')]))"
    assert pulumi.changes(moved) == {"same": 4}


# --- cut off --------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """The process is gone: nothing after it happens."""


class Cut:
    """Cuts `pulumi` off at its n-th change of Azure.

    how: "killed before" Azure did it or "killed after", from when on nothing is asked or written any more, or
    "interrupted", by Ctrl-C while the request is in flight.
    """

    def __init__(self, pulumi: Pulumi, monkeypatch: pytest.MonkeyPatch, at: int, how: str) -> None:
        self.left, self.how, self.done, self.dead = at, how, False, False
        self._send, self._write = pulumi.arm.send, states.write
        monkeypatch.setattr(pulumi.arm, "send", self.send)
        monkeypatch.setattr(states, "write", self.write)

    def send(self, method: str, url: str, **more: Any) -> Any:
        if self.dead:
            raise Killed
        if method != "GET" and not url.startswith("https://login."):
            self.left -= 1
            if self.left == 0:
                return self.cut(method, url, **more)
        return self._send(method, url, **more)

    def cut(self, method: str, url: str, **more: Any) -> Any:
        self.done = True
        if self.how == "interrupted":
            _thread.interrupt_main()
            time.sleep(0.05)  # for the main thread to hear it
            return self._send(method, url, **more)
        if self.how == "killed after":
            self._send(method, url, **more)
        self.dead = True
        raise Killed

    def write(self, *args: Any) -> None:
        if self.dead:
            raise Killed
        self._write(*args)


def cut_off(pulumi: Pulumi, at: int, how: str, *words: str) -> bool:
    """Run a command that is cut off; False if it came to its end before."""
    with pytest.MonkeyPatch.context() as patch:
        cut = Cut(pulumi, patch, at, how)
        with contextlib.suppress(Killed):
            pulumi(*words)
    return cut.done


CUTS = pytest.mark.parametrize("how", ["killed before", "killed after", "interrupted"])
CHAIN = (
    "id = identity('id-', opts=opts(deleted_with=group))\n"
    "reader('ra', id, opts(deleted_with=group))\n"
    "account('st', opts=opts(depends_on=[id]))"
)


@CUTS
def test_an_update_that_is_cut_off_anywhere_is_gone_on_with(pulumi: Pulumi, how: str) -> None:
    pulumi.program(CHAIN)
    for at in range(1, 6):
        if not cut_off(pulumi, at, how, "up", "--yes"):
            break
        pulumi.up()
        assert pulumi.changes() == {"same": 5}
        kinds = ("resourceGroups", "storageAccounts", "userAssignedIdentities", "roleAssignments")
        assert [len(pulumi.names(kind)) for kind in kinds] == [1, 1, 1, 1]
        pulumi.done("destroy", "--yes")
        assert pulumi.arm.resources == {}
    assert at == 5  # four resources: the fifth attempt found nothing to cut off


@CUTS
def test_a_replacement_that_is_cut_off_anywhere_is_gone_on_with(pulumi: Pulumi, how: str) -> None:
    text = "id = identity('id-', location='{0}', opts=opts(delete_before_replace=True))\n" + (
        "reader('ra', id)\naccount('st', location='{0}')"
    )
    places = ["eastus2", "westus"]
    for at in range(1, 9):
        pulumi.up(text.format(places[at % 2]))
        pulumi.program(text.format(places[(at + 1) % 2]))
        if not cut_off(pulumi, at, how, "up", "--yes"):
            break
        pulumi.up()
        assert pulumi.changes() == {"same": 5}
        kinds = ("storageAccounts", "userAssignedIdentities", "roleAssignments")
        assert [len(pulumi.names(kind)) for kind in kinds] == [1, 1, 1]
    assert at == 7  # three resources, each deleted and made


@CUTS
def test_a_destroy_that_is_cut_off_anywhere_is_gone_on_with(pulumi: Pulumi, how: str) -> None:
    for at in range(1, 4):
        pulumi.up(CHAIN)
        if not cut_off(pulumi, at, how, "destroy", "--yes"):
            break
        pulumi.done("destroy", "--yes")
        assert pulumi.arm.resources == {} and pulumi.state() == []
    assert at == 3  # the account, and the group with all the rest


def test_an_interrupted_update_says_so_and_leaves_with_130(pulumi: Pulumi, monkeypatch: pytest.MonkeyPatch) -> None:
    pulumi.program(CHAIN)
    Cut(pulumi, monkeypatch, 2, "interrupted")
    assert "run the same command again" in pulumi.refused("up", "--yes", code=130)


def test_a_creation_that_was_cut_off_under_another_name_is_removed(pulumi: Pulumi) -> None:
    """Begun, then the program changed: what may have been made under the old name does not stay behind."""
    pulumi.up("account('st')")
    stack = pulumi.stack()
    with stack.update(), stack.changing() as snapshot:
        begun = snapshot.resources.pop()
        begun.outputs = {}
        snapshot.pending.append(begun)
    pulumi.program(
        "storage.StorageAccount('st', account_name='stfixed', resource_group_name=group.name, location='eastus2',\n"
        "    kind='StorageV2', sku=storage.SkuArgs(name='Standard_LRS'))"
    )
    pulumi.up()
    assert pulumi.names("storageAccounts") == ["stfixed"]


def test_a_creation_that_was_cut_off_is_destroyed_too(pulumi: Pulumi) -> None:
    pulumi.up("account('st')")
    stack = pulumi.stack()
    with stack.update(), stack.changing() as snapshot:
        snapshot.pending.append(snapshot.resources.pop())
    pulumi.done("destroy", "--yes")
    assert pulumi.arm.resources == {}


def test_a_name_that_azure_refuses_is_not_insisted_on(pulumi: Pulumi) -> None:
    pulumi.program("account('st')\nidentity('id-')")
    pulumi.arm.refuse["/storageAccounts/"] = (409, "StorageAccountAlreadyTaken", "the name is taken")
    assert "StorageAccountAlreadyTaken: the name is taken" in pulumi.refused("up", "--yes")
    (refused,) = [path for _, path in pulumi.arm.requests if "/storageAccounts/" in path]
    pulumi.arm.refuse.clear()
    pulumi.up()
    assert pulumi.names("storageAccounts") != [refused.rsplit("/", 1)[-1]]
    assert len(pulumi.names("resourceGroups")) == len(pulumi.names("userAssignedIdentities")) == 1


def test_a_second_update_of_the_same_stack_is_refused(pulumi: Pulumi) -> None:
    pulumi.program("")
    with pulumi.stack().update():
        # the words by which the Automation API knows it
        assert "the stack is currently locked by" in pulumi.refused("up", "--yes")


# --- refresh --------------------------------------------------------------------------------------------------------


def test_refresh_forgets_what_is_gone_and_up_makes_it_again(pulumi: Pulumi) -> None:
    pulumi.up("account('st')")
    pulumi.arm.forget(pulumi.arm.only("storageAccounts")["id"])
    assert "1 to delete" in pulumi.done("refresh", "--preview-only")
    assert pulumi.changes() == {"same": 3}  # which only looked
    pulumi.done("refresh", "--yes")
    assert pulumi.changes() == {"same": 2, "create": 1}


def test_refresh_sees_what_somebody_changed_and_up_mends_it(pulumi: Pulumi) -> None:
    pulumi.up("account('st', tags={'owner': 'me'})")
    account = pulumi.arm.only("storageAccounts")
    properties = {"allowBlobPublicAccess": True}  # which the program says nothing of, so it is left alone
    changed = {"location": "eastus2", "kind": "StorageV2", "sku": account["sku"], "properties": properties}
    pulumi.arm.put(account["id"], {**changed, "tags": {"owner": "you"}})
    assert pulumi.changes() == {"same": 3}
    assert pulumi.changes(None, "--refresh") == {"same": 2, "update": 1}
    pulumi.done("refresh", "--yes")
    assert '~ tags.owner: "you" => "me"' in pulumi.done("preview", "--diff")
    pulumi.up()
    assert pulumi.arm.only("storageAccounts")["tags"] == {"owner": "me"}


def test_refresh_finds_out_what_became_of_a_creation_that_was_cut_off(pulumi: Pulumi) -> None:
    pulumi.up("account('st')")
    stack = pulumi.stack()
    with stack.update(), stack.changing() as snapshot:
        snapshot.pending.append(snapshot.resources.pop())
    pulumi.done("refresh", "--yes")
    assert pulumi.changes() == {"same": 3}


# --- targets --------------------------------------------------------------------------------------------------------


def test_an_update_of_a_target_leaves_the_rest(pulumi: Pulumi) -> None:
    text = "account('st', tags={{'a': '{0}'}})\nidentity('id-', tags={{'a': '{0}'}})"
    pulumi.up(text.format(1))
    pulumi.program(text.format(2) + "\naccount('stnew')")
    target = ["--target", pulumi.urn("st")]
    assert pulumi.changes(None, *target) == {"same": 3, "update": 1}
    pulumi.done("up", "--yes", *target)
    assert pulumi.changes() == {"same": 3, "update": 1, "create": 1}


def test_a_target_that_needs_what_is_not_there_is_refused(pulumi: Pulumi) -> None:
    pulumi.program("id = identity('id-')\naccount('st', opts=opts(depends_on=[id]))")
    err = pulumi.refused("up", "--yes", "--target", "*::st", "--target", "*::rg-")
    assert "depends on" in err and "id-" in err and "--target" in err


def test_destroying_a_target_asks_for_its_dependents(pulumi: Pulumi) -> None:
    pulumi.up("id = identity('id-')\nreader('ra', id)\naccount('st')")
    target = ["destroy", "--yes", "--target", pulumi.urn("id-")]
    assert "--target-dependents" in pulumi.refused(*target)
    pulumi.done(*target, "--target-dependents")
    assert pulumi.names("userAssignedIdentities") == pulumi.names("roleAssignments") == []
    assert len(pulumi.names("storageAccounts")) == 1


def test_a_target_that_names_nothing_is_refused(pulumi: Pulumi) -> None:
    pulumi.up("")
    assert "no resource named" in pulumi.refused("destroy", "--yes", "--target", "urn:nothing")


# --- what is refused, and what fails --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("account('st', opts=opts(import_='/subscriptions/x'))", "import_"),
        ("account('st', opts=opts(replace_with=[group]))", "replace_with"),
        ("account('st', opts=opts(replacement_trigger='1'))", "replacement_trigger"),
        ("account('st', opts=opts(transforms=[lambda args: None]))", "transforms"),
        ("pulumi.runtime.register_resource_transform(lambda args: None)", "register_resource_transform"),
        ("account('st', opts=opts(hooks=pulumi.ResourceHookBinding(before_create=[lambda args: None])))", "hooks"),
        ("pulumi.StackReference('other')", "pulumi:pulumi:StackReference"),
        ("from pulumi_azure_native import dns\ndns.Zone('z', resource_group_name=group.name)", "azure-native:dns:Zone"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_by_name(pulumi: Pulumi, text: str, named: str) -> None:
    pulumi.program(text)
    assert named in pulumi.refused("up", "--yes")


def test_a_program_that_fails_shows_its_traceback(pulumi: Pulumi) -> None:
    pulumi.program("raise ValueError('on purpose')")
    code, _, err = pulumi("up", "--yes")
    assert code == 1 and "unhandled exception" in err and "on purpose" in err


def test_a_program_may_have_an_answer_to_a_lookup_that_fails(pulumi: Pulumi) -> None:
    pulumi.up(
        "try:\n    storage.get_storage_account(account_name='no', resource_group_name='nowhere')\n"
        "except Exception as error:\n    pulumi.export('why', str(error))"
    )
    assert "there is no resource" in pulumi.done("stack", "output", "why")


def test_a_resource_that_is_only_read_is_not_the_stacks(pulumi: Pulumi) -> None:
    pulumi.up("account('st')")
    pulumi.up("a = account('st')\npulumi.export('found', storage.StorageAccount.get('read', a.id).name)")
    assert pulumi.done("stack", "output", "found").strip() == pulumi.names("storageAccounts")[0]
    assert len(pulumi.state()) == 3
