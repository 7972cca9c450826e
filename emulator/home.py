"""Where one emulator lives on disk, who it pretends to be, and the environment that leads clients to it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# One fixed tenant and subscription: identifiers, not secrets. Two emulators differ by their folder, not by these.
TENANT_ID = "7e0a1b2c-3d4e-4f50-8a61-72839405a6b7"
SUBSCRIPTION_ID = "5ab1e000-0000-4000-8000-0000010ca100"
DEPLOYER_CLIENT_ID = "d3b07384-d113-4ec6-a2c1-5f4e8b9a7c10"
DEPLOYER_OBJECT_ID = "0b1ec700-d113-4ec6-a2c1-5f4e8b9a7c11"

PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Home:
    """The folder of one emulator. Everything that it knows is below it, so two folders are two emulators."""

    path: Path

    @classmethod
    def default(cls) -> Home:
        return cls(Path(os.environ.get("EMULATOR_HOME") or PROJECT / ".local").resolve())

    @property
    def database(self) -> Path:
        return self.path / "state.sqlite"

    @property
    def objects(self) -> Path:
        return self.path / "objects"

    @property
    def work(self) -> Path:
        """Scratch folders of jobs and deployments."""
        return self.path / "work"

    @property
    def log(self) -> Path:
        return self.path / "emulator.log"

    @property
    def ca_bundle(self) -> Path:
        return self.path / "tls" / "bundle.pem"

    @property
    def endpoint(self) -> Path:
        """A running emulator's process id and ports."""
        return self.path / "emulator.json"

    def make(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)  # the state holds keys of endpoints and credentials of connections
        for folder in (self.objects, self.work, self.path / "tls", self.path / "pulumi"):
            folder.mkdir(exist_ok=True)
        (self.path / "tls").chmod(0o700)

    def secrets(self) -> dict[str, str]:
        """The secrets of this emulator, made on first use and readable by the user alone."""
        path = self.path / "tls" / "secrets.json"
        if not path.exists():
            made = {name: secrets.token_urlsafe(32) for name in ("token_key", "client_secret", "passphrase", "sas_key")}
            temporary = path.with_suffix(".new")
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(made, file)
            temporary.replace(path)
        loaded: dict[str, str] = json.loads(path.read_text())
        return loaded

    def running(self) -> dict[str, Any] | None:
        """The record of the running emulator, or None. A record whose process is gone counts as none."""
        try:
            record: dict[str, Any] = json.loads(self.endpoint.read_text())
        except (OSError, ValueError):
            return None
        return record if is_alive(record["pid"], record["started"]) else None


def is_alive(pid: int, started: float) -> bool:
    """Whether process `pid` runs and is the one that started at `started` (seconds since the epoch)."""
    import psutil

    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def client_environment(home: Home, proxy_port: int) -> dict[str, str]:
    """The variables by which azure-ai-ml, azure-identity, azure-storage-blob and Pulumi find this emulator.

    There is no other switch: a command that runs with them is inside, one without them is outside.
    """
    made = home.secrets()
    proxy = f"http://127.0.0.1:{proxy_port}"
    bundle = str(home.ca_bundle)
    return {
        "EMULATOR_HOME": str(home.path),
        "EMULATOR_PYTHON": sys.executable,
        "HTTPS_PROXY": proxy,
        "https_proxy": proxy,
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "REQUESTS_CA_BUNDLE": bundle,
        "SSL_CERT_FILE": bundle,
        "AZURE_TENANT_ID": TENANT_ID,
        "AZURE_CLIENT_ID": DEPLOYER_CLIENT_ID,
        "AZURE_CLIENT_SECRET": made["client_secret"],
        "AZURE_SUBSCRIPTION_ID": SUBSCRIPTION_ID,
        "ARM_TENANT_ID": TENANT_ID,
        "ARM_CLIENT_ID": DEPLOYER_CLIENT_ID,
        "ARM_CLIENT_SECRET": made["client_secret"],
        "ARM_SUBSCRIPTION_ID": SUBSCRIPTION_ID,
        "PULUMI_BACKEND_URL": (home.path / "pulumi").as_uri(),
        "PULUMI_HOME": str(home.path / "pulumi-home"),
        "PULUMI_CONFIG_PASSPHRASE": made["passphrase"],
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PATH": _path(),
        **hub_environment(home, (home.running() or {}).get("hub_port")),
    }


def hub_environment(home: Home, port: int | None) -> dict[str, str]:
    """The way to the stand-in of the model hub, with a cache apart from the real hub's; nothing where there is none."""
    if port is None:
        return {}
    return {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home.path / "hub-cache")}


def _path() -> str:
    """PATH with the interpreter's own commands, the stand-ins, and our `pulumi` where no real one is."""
    here = PROJECT / "emulator"
    inherited = os.environ.get("PATH", os.defpath).split(os.pathsep)
    ours = [str(here / "pulumi_provider" / "bin"), str(here / "az" / "bin"), str(Path(sys.executable).parent)]
    stand_in = str(here / "pulumi_cli" / "bin")
    rest = [folder for folder in inherited if folder not in (*ours, stand_in)]
    if shutil.which("pulumi", path=os.pathsep.join(rest)) is None:
        ours.insert(0, stand_in)
    return os.pathsep.join([*ours, *rest])
