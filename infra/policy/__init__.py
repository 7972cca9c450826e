"""Policies that a platform team can enforce on every stack: the rules, and the pack that hands them to Pulumi."""
