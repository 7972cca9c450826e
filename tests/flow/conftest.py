"""The real server with a small model, as the deployment's tests have it."""

from tests.deployment.conftest import loaded, model_folder, server

__all__ = ["loaded", "model_folder", "server"]
