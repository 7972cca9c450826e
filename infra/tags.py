"""Tags on everything that takes tags, by one transformation, so that no resource can be forgotten."""

from __future__ import annotations

from collections.abc import Mapping

import pulumi


def enforce(tags: Mapping[str, str]) -> None:
    """Put `tags` on every resource that the program declares from here on."""

    def add(args: pulumi.ResourceTransformationArgs) -> pulumi.ResourceTransformationResult | None:
        if "tags" not in args.props:  # components, role assignments: nothing to put them on
            return None
        own: dict[str, str] = args.props["tags"] or {}  # type: ignore[assignment]  # this program gives plain maps
        return pulumi.ResourceTransformationResult({**args.props, "tags": {**own, **tags}}, args.opts)

    pulumi.runtime.register_stack_transformation(add)
