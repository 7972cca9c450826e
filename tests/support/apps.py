"""Small servers that `deployment.rollout --source` deploys: good ones, and ones that fail in a way that is named."""

from __future__ import annotations

import json
from pathlib import Path

DOCKERFILE = """FROM python:3.11-slim
WORKDIR /app
COPY . ./
ENV HOST=0.0.0.0 PORT=5001
EXPOSE 5001
CMD ["python", "server.py"]
"""
SERVER = """
import http.server, json, os, pathlib, sys, time

how = json.loads(pathlib.Path("how.json").read_text())
if how["kind"] == "crash":
    raise RuntimeError("this version crashes")
if how["kind"] == "killed":
    os.kill(os.getpid(), 9)
if how["kind"] == "no model":
    sys.exit("error: no config.json below /var/azureml-app/azureml-models/m/1: there is no model")
count = 0

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *words): pass
    def answer(self, status, body, kind="application/json"):
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text)
    def do_GET(self):
        self.answer(503 if how["kind"] == "never ready" and self.path == "/ready" else 200, {"status": "ok"})
    def do_POST(self):
        global count
        self.rfile.read(int(self.headers["content-length"]))
        count += 1
        time.sleep(how.get("seconds", 0))
        if how["kind"] == "garbage" or how["kind"] == "garbage later" and count > 3:
            return self.answer(200, b"\\x00 lorem ipsum", "text/plain")
        if how["kind"] == "errors later" and count > 3:
            return self.answer(500, {"error": {"message": "it broke"}})
        text = {"message": {"role": "assistant", "content": how["say"]}}
        self.answer(200, {"choices": [text], "usage": {"completion_tokens": 3}})

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

print("listening", flush=True)
Server((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
"""


def write(folder: Path, say: str, kind: str = "good", *, dockerfile: str = DOCKERFILE, seconds: float = 0.0) -> Path:
    """The folder of a server that says `say`; its name is the endpoint's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Dockerfile").write_text(dockerfile)
    (folder / "server.py").write_text(SERVER)
    (folder / "how.json").write_text(json.dumps({"kind": kind, "say": say, "seconds": seconds}))
    return folder
