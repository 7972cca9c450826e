"""`python -m flow.serve`: the chat's page, its conversations and the flow, over HTTP."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import webbrowser
from typing import TYPE_CHECKING

from flow.conversation import Settings
from flow.target import endpoint_of, outputs_here, user_here
from infra import cli
from infra.cli import WRONG_USE, UserError, say
from infra.outputs import StackOutputs, add_stack_options

if TYPE_CHECKING:
    from starlette.types import ASGIApp

KEY = "CHAT_KEY"
PORT = 8080


def main(argv: list[str]) -> int:
    parser = cli.parser("flow.serve", f"Serve the chat: page, conversations, flow. ${KEY} is the key it asks for.")
    environ = os.environ
    parser.add_argument("--host", default=environ.get("HOST", "127.0.0.1"), help="default: $HOST or 127.0.0.1")
    parser.add_argument("--port", type=int, default=environ.get("PORT", PORT), help=f"default: $PORT or {PORT}")
    parser.add_argument("--system", metavar="TEXT", help="a system prompt (default: none)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--behind-gateway", action="store_true", help="who may come is decided in front; ask no key")
    add_stack_options(parser)
    given = parser.parse_args(argv)
    key = os.environ.get(KEY, "")
    if given.host not in ("127.0.0.1", "::1", "localhost") and not key and not given.behind_gateway:
        raise UserError(
            f"everybody who reaches {given.host} could read and ask: no key is set",
            next_command=f"{KEY}=… python -m flow.serve --host {given.host}",
            code=WRONG_USE,
        )
    outputs = outputs_here(given.stack, given.outputs)
    listener = listen(given.host, given.port)
    address = f"http://{given.host}:{listener.getsockname()[1]}/"
    say(f"the chat of the stack {outputs.stack}: {address}   (Ctrl-C ends it)")
    if given.open:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    _serve(listener, app_of(outputs, key=key, any_host=given.behind_gateway, settings=Settings(system=given.system)))
    return 0


def app_of(outputs: StackOutputs, *, key: str, any_host: bool, settings: Settings) -> ASGIApp:
    """The guarded app for one stack, flow included."""
    import httpx

    from flow.app import Serving, create_app
    from flow.guard import Guard, Limits
    from flow.prompt_flow import LateFlow
    from flow.stores import history_of

    # One pool of connections for all conversations; how long to wait is said with each request.
    limits = Limits(key, any_host)
    client = httpx.AsyncClient(limits=httpx.Limits(max_connections=limits.at_once, max_keepalive_connections=64))
    serving = Serving(lambda: endpoint_of(outputs), lambda: history_of(outputs), user_here(), settings, client)
    return Guard(create_app(serving, LateFlow()), limits)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises UserError if the port cannot be had."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(
            f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
            next_command="python -m flow.serve --port ANOTHER_PORT",
        ) from None
    return listener


def _serve(listener: socket.socket, app: ASGIApp) -> None:
    import uvicorn

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("flow").setLevel(logging.INFO)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=10)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    cli.run(main)
