"""The clusters on which jobs run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_azure_native import machinelearningservices as ml

from infra.settings import Compute


@dataclass(frozen=True)
class ClusterArgs:
    """Where a cluster belongs, who its nodes are, and what it is like."""

    resource_group: pulumi.Input[str]
    workspace: pulumi.Input[str]
    location: str
    identity_id: pulumi.Input[str]
    compute: Compute


def cluster(args: ClusterArgs, *, after: Sequence[pulumi.Resource]) -> ml.Compute:
    """An AmlCompute cluster that costs nothing while it is idle.

    `after` are the role assignments of its identity: a node that starts without them fails to pull its image.
    """
    return ml.Compute(
        args.compute.name,
        compute_name=args.compute.name,
        resource_group_name=args.resource_group,
        workspace_name=args.workspace,
        location=args.location,
        identity=ml.ManagedServiceIdentityArgs(
            type=ml.ManagedServiceIdentityType.USER_ASSIGNED, user_assigned_identities=[args.identity_id]
        ),
        properties=ml.AmlComputeArgs(compute_type="AmlCompute", properties=_properties(args.compute)),
        opts=pulumi.ResourceOptions(
            depends_on=after,
            # Azure ML accepts a change of these on an existing cluster, and ignores it. The name is fixed, so the old
            # cluster has to go first.
            replace_on_changes=[
                f"properties.properties.{name}" for name in ("vmSize", "vmPriority", "subnet", "osType")
            ],
            delete_before_replace=True,
        ),
    )


def _properties(compute: Compute) -> ml.AmlComputePropertiesArgs:
    return ml.AmlComputePropertiesArgs(
        vm_size=compute.size,
        vm_priority=ml.VmPriority.LOW_PRIORITY if compute.low_priority else ml.VmPriority.DEDICATED,
        os_type=ml.OsType.LINUX,
        scale_settings=ml.ScaleSettingsArgs(
            min_node_count=0,
            max_node_count=compute.max_nodes,
            node_idle_time_before_scale_down=f"PT{compute.idle_minutes}M",
        ),
        remote_login_port_public_access=ml.RemoteLoginPortPublicAccess.DISABLED,
    )
