"""What serves an MLflow model that is deployed without code: one request at a time, `input_data` and `params` in, the
bare predictions out. Run as a script: the process must not see the checkout, and its MLflow may be any version.

The shape of requests: learn.microsoft.com/azure/machine-learning/how-to-deploy-mlflow-models (considerations).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any


def find(folder: Path) -> Path:
    """The folder with the file MLmodel."""
    found = sorted(folder.rglob("MLmodel"))
    if not found:
        raise SystemExit(f"there is no file MLmodel below {folder}: this is not an MLflow model")
    return found[0].parent


def load(folder: Path) -> Callable[[Any, Any], Any]:
    """The model as a function of `input_data` and `params`, which answers what JSON can hold."""
    import mlflow.pyfunc
    import pandas  # type: ignore[import-untyped]  # mlflow brings it, without its stubs

    scoring: Any = importlib.import_module("mlflow.pyfunc.scoring_server")
    model = mlflow.pyfunc.load_model(str(folder))

    def predict(data: Any, params: Any) -> Any:
        if isinstance(data, dict) and "data" in data:
            data = pandas.DataFrame(**{key: data[key] for key in ("data", "columns", "index") if key in data})
        made = model.predict(data, params=params) if params else model.predict(data)
        plain = scoring._get_jsonable_obj(made, pandas_orient="records")
        return json.loads(json.dumps(plain, cls=scoring.NumpyEncoder))

    return predict


class Handler(BaseHTTPRequestHandler):
    predict: Callable[[Any, Any], Any]

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/" else 404, "Healthy")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path.split("?")[0] != "/score":
            return self._answer(404, "Not Found")
        try:
            asked = json.loads(body)
            data = asked["input_data"]
        except (ValueError, KeyError, TypeError):
            return self._answer(400, "The request needs a JSON object with the key 'input_data'.")
        try:
            return self._answer(200, type(self).predict(data, asked.get("params")))
        except Exception:  # noqa: BLE001  whatever the user's model raises is answered as the service answers it
            traceback.print_exc()
            return self._answer(500, "An unexpected error occurred in scoring script. Check the logs for more info.")

    def _answer(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    Handler.predict = staticmethod(load(find(Path(os.environ["AZUREML_MODEL_DIR"]))))
    print("the MLflow model is loaded", file=sys.stderr, flush=True)
    HTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
