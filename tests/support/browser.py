"""A headless Chromium by its DevTools protocol: https://chromedevtools.github.io/devtools-protocol/.

$CHROMIUM, or the first of the usual names on PATH; `find()` is None where there is none.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
SECONDS = 60.0
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-zygote", "--single-process", "--hide-scrollbars", "--no-first-run")


def find() -> str | None:
    return os.environ.get("CHROMIUM") or next((path for path in map(shutil.which, NAMES) if path), None)


@dataclass
class Page:
    """One page. `hosts` are those of all requests that it made, `dialogs` the texts of prompts, answered with `key`."""

    socket: aiohttp.ClientWebSocketResponse
    key: str = ""
    hosts: set[str] = field(default_factory=set)
    dialogs: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    _number: int = 0

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command's result; events that come meanwhile are noted."""
        self._number += 1
        await self.socket.send_json({"id": self._number, "method": method, "params": params})
        wanted = self._number
        while True:
            message = json.loads((await asyncio.wait_for(self.socket.receive(), SECONDS)).data)
            if message.get("id") == wanted:
                assert "error" not in message, message
                result: dict[str, Any] = message.get("result", {})
                return result
            await self._note(message)

    async def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.hosts.add(params["request"]["url"].split("/")[2])
            case "Runtime.exceptionThrown" | "Log.entryAdded":
                self.troubles.append(json.dumps(params))
            case "Page.javascriptDialogOpening":
                self.dialogs.append(params["message"])
                self._number += 1
                answer = {"accept": True, "promptText": self.key}
                asked = {"id": self._number, "method": "Page.handleJavaScriptDialog", "params": answer}
                await self.socket.send_json(asked)

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        result = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, script: str) -> Any:
        """The expression's value once it is true; fails after a minute."""
        for _ in range(int(SECONDS / 0.1)):
            if value := await self.run(script):
                return value
            await asyncio.sleep(0.1)
        raise AssertionError(f"never true: {script}; {self.troubles}")

    async def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode((await self.send("Page.captureScreenshot"))["data"]))


@asynccontextmanager
async def browser(folder: Path, width: int = 1100, height: int = 720) -> AsyncIterator[Page]:
    """A page in a browser with a profile of its own in `folder`."""
    program = find()
    assert program is not None
    flags = [*FLAGS, "--headless", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *flags, f"--window-size={width},{height}", "about:blank"],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        port = await _port(folder / "DevToolsActivePort", process)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                pages = [page for page in await answer.json() if page["type"] == "page"]
            async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime", "Network", "Log"):
                    await page.send(f"{domain}.enable")
                yield page
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def _port(path: Path, process: subprocess.Popen[bytes]) -> int:
    for _ in range(int(SECONDS / 0.1)):
        assert process.poll() is None, "the browser left"
        if path.exists() and (text := path.read_text().splitlines()):
            return int(text[0])
        await asyncio.sleep(0.1)
    raise AssertionError("the browser opened no port")
