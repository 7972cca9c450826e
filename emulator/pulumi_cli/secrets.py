"""Secrets at rest: encrypted with a key from the passphrase, in the format of Pulumi's own passphrase provider.

So a secret that this `pulumi` writes into Pulumi.<stack>.yaml is one that the real one reads, and the other way round.
https://github.com/pulumi/pulumi/blob/master/pkg/secrets/passphrase/manager.go
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
from base64 import b64decode, b64encode
from pathlib import Path

from emulator.pulumi_cli.errors import CliError

_ROUNDS = 1_000_000
_PROOF = "pulumi"  # encrypted beside the salt, to tell a wrong passphrase


class Crypter:
    """Encrypts and decrypts with one salt, `v1:SALT:v1:NONCE:PROOF`. The key takes half a second, once a process."""

    def __init__(self, state: str) -> None:
        self.state = state
        self._salt = b64decode(state.split(":")[1])
        if _decrypt(_key(_passphrase(), self._salt), state.split(":", 2)[2]) != _PROOF:
            raise CliError(
                "incorrect passphrase: these secrets were written with another PULUMI_CONFIG_PASSPHRASE, perhaps of "
                "another emulator\n  next: pulumi stack rm, or remove `encryptionsalt` and the `secure:` values from "
                "the stack's file"
            )

    @classmethod
    def new(cls) -> Crypter:
        """With a salt of its own."""
        salt = secrets.token_bytes(8)
        return cls(f"v1:{_text(salt)}:{_encrypt(_key(_passphrase(), salt), _PROOF)}")

    def encrypt(self, text: str) -> str:
        return _encrypt(_key(_passphrase(), self._salt), text)

    def decrypt(self, secure: str) -> str:
        """Raises CliError for a text that was not encrypted with this key, or was changed since."""
        if (text := _decrypt(_key(_passphrase(), self._salt), secure)) is None:
            raise CliError("a secret cannot be decrypted: it was damaged, or written with another passphrase")
        return text


def _passphrase() -> str:
    if (given := os.environ.get("PULUMI_CONFIG_PASSPHRASE")) is not None:
        return given
    if file := os.environ.get("PULUMI_CONFIG_PASSPHRASE_FILE"):
        return Path(file).read_text().strip()
    raise CliError(
        "secrets need a passphrase, and neither PULUMI_CONFIG_PASSPHRASE nor PULUMI_CONFIG_PASSPHRASE_FILE is set\n"
        "  next: python -m emulator run -- COMMAND   (which sets one)"
    )


@functools.lru_cache
def _key(passphrase: str, salt: bytes) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", passphrase.encode(), salt, _ROUNDS, 32)


def _encrypt(key: bytes, text: str) -> str:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = secrets.token_bytes(12)
    return f"v1:{_text(nonce)}:{_text(AESGCM(key).encrypt(nonce, text.encode(), None))}"


def _decrypt(key: bytes, secure: str) -> str | None:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        version, nonce, sealed = secure.split(":")
        return AESGCM(key).decrypt(b64decode(nonce), b64decode(sealed), None).decode() if version == "v1" else None
    except (InvalidTag, ValueError):
        return None


def _text(data: bytes) -> str:
    return b64encode(data).decode()
