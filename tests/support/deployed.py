"""Online deployments of small servers in the emulator inside the test's process, and requests through its gateway."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from emulator.home import DEPLOYER_CLIENT_ID, DEPLOYER_OBJECT_ID
from tests.support.arm_in_process import SUBSCRIPTION, ArmInProcess

ML = "Microsoft.MachineLearningServices"
GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/rg"
WORKSPACE = f"{GROUP}/providers/{ML}/workspaces/w"
ENDPOINT = f"{WORKSPACE}/onlineEndpoints/end"
SCORE = "https://end.eastus2.inference.ml.azure.com/score"
DOCKERFILE = 'WORKDIR /app\nCOPY server.py ./\nENV PORT=5001\nCMD ["python", "server.py"]\n'
SERVER = """
import http.server, json, os, pathlib, signal, sys, time
say = os.environ.get("SAY", "hello")
if os.environ.get("CRASH"): sys.exit(os.environ["CRASH"])
if os.environ.get("KILL"): os.kill(os.getpid(), 9)
flag = pathlib.Path(os.environ.get("FLAG", "/nonexistent"))
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *words): pass
    def answer(self, status, body):
        self.send_response(status); self.end_headers(); self.wfile.write(json.dumps(body).encode())
    def do_GET(self):
        if self.path == "/health" and flag.exists(): return self.answer(500, "sick")
        if self.path == "/ready" and os.environ.get("NEVER"): return self.answer(503, "never")
        self.answer(200, "ok")
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/exit": os._exit(1)
        asked = json.loads(body)
        time.sleep(asked.get("sleep", 0))
        self.answer(asked.get("status", 200), {"say": say, "path": self.path, "pid": os.getpid()})
http.server.ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
"""
QUICK = {"initialDelay": "PT0S", "period": "PT0.2S", "timeout": "PT1S", "failureThreshold": 3}
PATIENT = {**QUICK, "failureThreshold": 100}


class Deployed:
    """An endpoint `end` with an environment `env:1` of SERVER; `arm` is the emulator's ARM."""

    def __init__(self, arm: ArmInProcess) -> None:
        self.arm = arm
        self.token = arm.emulator.entra.issue(
            "https://ml.azure.com", client_id=DEPLOYER_CLIENT_ID, object_id=DEPLOYER_OBJECT_ID
        )

    def environment(self, name: str, files: dict[str, str], folder: Path, **more: Any) -> str:
        for path, text in files.items():
            (folder / path).write_text(text)
            self.arm.emulator.blobs.add_file("stw", "images", f"{name}/{path}", folder / path)
        routes: dict[str, Any] = {kind: {"path": path, "port": 5001} for kind, path in ROUTES.items()} | more
        build = {"contextUri": f"https://stw.blob.core.windows.net/images/{name}", "dockerfilePath": "Dockerfile"}
        body = {"properties": {"build": build, "inferenceConfig": routes}}
        answer = self.arm.send("PUT", f"{WORKSPACE}/environments/{name}/versions/1", body=body)
        assert answer.status_code in (200, 201), answer.text
        return f"{WORKSPACE}/environments/{name}/versions/1"

    def deploy(self, name: str, *, environment: str = "env", capacity: int = 1, **properties: Any) -> str:
        """Create or update a deployment and wait; returns its state, and the failure's text after a colon."""
        body = {
            "location": "eastus2",
            "sku": {"name": "Default", "capacity": capacity},
            "properties": {
                "endpointComputeType": "Managed",
                "instanceType": "Standard_F4s_v2",
                "environmentId": f"{WORKSPACE}/environments/{environment}/versions/1" if environment else None,
                "livenessProbe": QUICK,
                "readinessProbe": PATIENT,
                "requestSettings": {"requestTimeout": "PT5S", "maxConcurrentRequestsPerInstance": 8},
                **properties,
            },
        }
        answer = self.arm.send("PUT", f"{ENDPOINT}/deployments/{name}", body=body)
        if answer.status_code not in (200, 201):
            return f"{answer.status_code}: {answer.text}"
        return self.finish(answer.headers["Azure-AsyncOperation"], name)

    def finish(self, operation: str, name: str) -> str:
        while (seen := self.arm.send("GET", operation).json())["status"] not in ("Succeeded", "Failed"):
            time.sleep(0.05)
        state = self.arm.send("GET", f"{ENDPOINT}/deployments/{name}").json()["properties"]["provisioningState"]
        return state if "error" not in seen else f"{state}: {seen['error']['code']}: {seen['error']['message']}"

    def traffic(self, mirror: dict[str, int] | None = None, auth: str = "AADToken", **shares: int) -> int:
        properties = {"authMode": auth, "traffic": shares, "mirrorTraffic": mirror or {}}
        answer = self.arm.send("PUT", ENDPOINT, body={"location": "eastus2", "properties": properties})
        assert answer.status_code in (200, 201, 400), answer.text
        return answer.status_code

    def ask(self, body: Any = None, *, deployment: str = "", token: str | None = None, url: str = SCORE) -> Any:
        """One request through the gateway."""
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        if deployment:
            headers["azureml-model-deployment"] = deployment

        async def post() -> httpx.Response:
            return await self.arm._client.post(url, json=body or {}, headers=headers, timeout=30)

        return self.arm._portal.call(post)

    def metrics(self, names: str) -> list[dict[str, Any]]:
        path = f"{ENDPOINT}/providers/Microsoft.Insights/metrics?metricnames={names}"
        found: list[dict[str, Any]] = self.arm.send("GET", path).json()["value"]
        return found


ROUTES = {"livenessRoute": "/health", "readinessRoute": "/ready", "scoringRoute": "/score"}


@contextmanager
def deployed(folder: Path) -> Iterator[Deployed]:
    with ArmInProcess(folder / "home") as arm:
        state = arm.emulator.state
        arm.put(GROUP, {"location": "eastus2"})
        account = f"{GROUP}/providers/Microsoft.Storage/storageAccounts/stw"
        for path, kind, inside in (
            (account, "Microsoft.Storage/storageAccounts", {}),
            (WORKSPACE, f"{ML}/workspaces", {"storageAccount": account}),
        ):
            body = {"id": path, "name": path.split("/")[-1], "type": kind, "location": "eastus2"}
            state.put(path, {**body, "properties": inside}, parent=GROUP)
        made = Deployed(arm)
        assert made.traffic() == 201
        made.environment("env", {"Dockerfile": DOCKERFILE, "server.py": SERVER}, folder)
        yield made
