"""Where a stack's conversations are kept."""

from __future__ import annotations

import os
from pathlib import Path

from flow.history import History
from infra.cli import WRONG_USE, UserError
from infra.outputs import PROJECT, StackOutputs


def history_of(outputs: StackOutputs) -> History:
    """$CHAT_HISTORY's file if it is set, else the stack's Cosmos DB, else `.local/chat.db` in the project.

    $CHAT_TTL_DAYS removes turns that are older; kept for ever without it.
    """
    from flow.cosmos_history import CosmosHistory
    from flow.sqlite_history import SqliteHistory

    file, ttl = os.environ.get("CHAT_HISTORY"), _ttl()
    if file or not outputs.chat_store:
        return SqliteHistory(Path(file) if file else PROJECT / ".local" / "chat.db", ttl=ttl)
    return CosmosHistory(outputs.chat_store, ttl=ttl)


def _ttl() -> int | None:
    """Seconds. Raises UserError (wrong use) for what is no positive number of days."""
    text = os.environ.get("CHAT_TTL_DAYS")
    try:
        seconds = None if not text else int(float(text) * 86_400)
    except (ValueError, OverflowError):
        seconds = 0
    if seconds is not None and not 0 < seconds <= 2**31 - 1:
        raise UserError(f"CHAT_TTL_DAYS is {text!r}, not a positive number of days", code=WRONG_USE)
    return seconds
