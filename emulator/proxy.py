"""The CONNECT proxy: Azure's host names lead to the emulator, all others to the real network.

The tunnel's bytes are not touched here; TLS ends in the emulator's own server, with a certificate made for the name
that the client asked for and signed by a private authority that only `emulator run` trusts.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from pathlib import Path
from typing import Any

import certifi
import trustme

from emulator.home import Home

# Azure's own names are never reached from inside: a name that is Azure's but not emulated still ends here (as a 404).
AZURE_HOST = re.compile(
    r"^((management|ml|vault|graph)\.azure\.(com|net)"
    r"|management\.azure\.com|login\.microsoftonline\.com|login\.microsoft\.com|graph\.microsoft\.com"
    r"|.*\.(blob|dfs|file|queue|table)\.core\.windows\.net"
    r"|.*\.azureml\.(ms|net)|.*\.ml\.azure\.com|.*\.azurecr\.io|.*\.vault\.azure\.net"
    r"|.*\.documents\.azure\.com|.*\.applicationinsights\.azure\.com|.*\.monitor\.azure\.com"
    r"|prices\.azure\.com|mcr\.microsoft\.com)$"
)


class Certificates:
    """A private certificate authority in the emulator's folder, and server certificates made by name on demand."""

    def __init__(self, home: Home) -> None:
        self._ca = self._load_or_make(home.path / "tls")
        self._contexts: dict[str, ssl.SSLContext] = {}
        bundle = Path(certifi.where()).read_bytes() + b"\n" + self._ca.cert_pem.bytes()
        home.ca_bundle.write_bytes(bundle)

    @staticmethod
    def _load_or_make(folder: Path) -> trustme.CA:
        key, certificate = folder / "ca.key", folder / "ca.pem"
        if key.exists() and certificate.exists():
            return trustme.CA.from_pem(certificate.read_bytes(), key.read_bytes())
        made = trustme.CA(organization_name="finetune-phi local emulator")
        with open(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(made.private_key_pem.bytes())
        certificate.write_bytes(made.cert_pem.bytes())
        return made

    def server_context(self) -> ssl.SSLContext:
        """A context that chooses its certificate by the name in the client's hello (SNI)."""
        context = self._context_for("localhost")

        def choose(connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self._context_for(name or "localhost")

        context.sni_callback = choose
        return context

    def _context_for(self, name: str) -> ssl.SSLContext:
        if name not in self._contexts:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._ca.issue_cert(name).configure_cert(context)
            self._contexts[name] = context
        return self._contexts[name]


class ConnectProxy:
    """An asyncio server that answers CONNECT and nothing else."""

    def __init__(self, tls_port: int) -> None:
        self._tls_port = tls_port
        self._open: set[asyncio.Task[Any]] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._tunnel(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # either side went away: nothing is left to tell it
        finally:
            self._open.discard(task)
            writer.close()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, target, *_ = head.split()
        host, _, port = target.rpartition(":")
        if method != "CONNECT" or not port.isdigit():
            writer.write(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return
        address = ("127.0.0.1", self._tls_port) if AZURE_HOST.match(host.lower()) else (host, int(port))
        try:
            far_reader, far_writer = await asyncio.open_connection(*address)
        except OSError:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return
        writer.write(b"HTTP/1.1 200 Connection Established\r\n\r\n")
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))

    def close(self) -> None:
        for task in self._open:
            task.cancel()


async def _copy(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(1 << 18):
            to.write(data)
            await to.drain()
    except OSError:
        pass  # a reset connection ends the copy as an end of file does
    finally:
        to.close()
