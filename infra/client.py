"""The one way from stack outputs to an Azure ML client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.outputs import StackOutputs

if TYPE_CHECKING:
    from azure.ai.ml import MLClient


def ml_client(outputs: StackOutputs) -> MLClient:
    """An MLClient of the stack's workspace, signed in by DefaultAzureCredential.

    azure-ai-ml takes 2-6 s to import, so it is imported here and not at the top of any verb.
    """
    import logging

    from azure.ai.ml import MLClient
    from azure.identity import DefaultAzureCredential

    # Else every experimental class and every field that a model of its lacks prints a warning. azure.ai.ml sets its own
    # logger to INFO when it is imported.
    for name in ("azure", "azure.ai.ml", "msrest"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MLClient(
        DefaultAzureCredential(),
        outputs.subscription_id,
        outputs.resource_group,
        outputs.workspace,
        enable_telemetry=False,
        show_progress=False,  # its upload bars would fill a log with one line a chunk
    )
