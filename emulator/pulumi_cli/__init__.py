"""A `pulumi` for machines without the Pulumi CLI: it runs the real program, in process, with an engine of its own.

What is offered is what this repository and the Automation API of the pinned SDK call. It keeps its state in the folder
that PULUMI_BACKEND_URL names, in a layout of its own; the real CLI keeps its own state elsewhere in that folder.
"""
