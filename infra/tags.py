"""What every resource of the stack has in common, by one transformation, so that none can be forgotten."""

from __future__ import annotations

from collections.abc import Mapping

import pulumi

# Their scope may lie outside of the group, so each says for itself with what it goes (`infra.roles.Scope`).
ROLE_ASSIGNMENT = "azure-native:authorization:RoleAssignment"


def enforce(tags: Mapping[str, str], *, group: pulumi.Resource) -> None:
    """Put `tags` on every resource that the program declares from here on, and let it be deleted with its group.

    Azure deletes a resource group with all that is in it, jobs and endpoints that Pulumi knows nothing of included;
    deleted one by one, the workspace would refuse to go because of them. So `pulumi destroy` deletes the group alone.
    """

    def add(args: pulumi.ResourceTransformationArgs) -> pulumi.ResourceTransformationResult | None:
        if not args.type_.startswith("azure-native:"):
            return None
        with_group = pulumi.ResourceOptions(deleted_with=None if args.type_ == ROLE_ASSIGNMENT else group)
        options = pulumi.ResourceOptions.merge(args.opts, with_group)
        if "tags" not in args.props:  # a role assignment for one: nothing to put them on
            return pulumi.ResourceTransformationResult(args.props, options)
        own: dict[str, str] = args.props["tags"] or {}  # type: ignore[assignment]  # this program gives plain maps
        return pulumi.ResourceTransformationResult({**args.props, "tags": {**own, **tags}}, options)

    pulumi.runtime.register_stack_transformation(add)
