"""What serves a deployment with a scoring script: Microsoft's own azmlinfsrv, on the loopback alone.

Run as a script, by the interpreter of the deployment's environment, in the folder of the scoring script.

Source: learn.microsoft.com/azure/machine-learning/how-to-inference-server-http
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

MISSING = """error: a scoring script needs azureml-inference-server-http, which this deployment's environment lacks.
Name it (or azureml-defaults) in the environment's conda file; an emulator that was started with
EMULATOR_ENVIRONMENTS=build installs what that file names, any other has this machine's packages alone."""

if __name__ == "__main__":
    try:
        server: Any = importlib.import_module("azureml_inference_server_http.amlserver")
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("azureml_inference_server_http"):
            raise
        sys.exit(MISSING)
    server.DEFAULT_HOST = "127.0.0.1"  # its own is 0.0.0.0, and no option changes that
    sys.argv = ["azmlinfsrv", "--entry_script", os.environ["AZUREML_ENTRY_SCRIPT"], "--port", os.environ["PORT"]]
    server.run()
