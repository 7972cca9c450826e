"""Conversations from a file or from the hub, checked row by row, as `train.jsonl`, `eval.jsonl` and `card.json`.

    python -m training.dataset --source training/data/first-questions.jsonl --out data
    python -m training.dataset --source HuggingFaceH4/ultrachat_200k --split 1% --out data

Deterministic: which rows are held out depends on their text alone (a hash), so a row that is added moves no other.
A source that ships its own splits keeps them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from infra import cli
from infra.cli import WRONG_USE, UserError
from training import recipe

Conversation: TypeAlias = list[dict[str, str]]

EVAL_FRACTION = 0.05
SHIPPED_SPLITS = {"HuggingFaceH4/ultrachat_200k": ("train_sft", "test_sft")}
CARD = "card.json"
FILES = ("train.jsonl", "eval.jsonl", CARD)  # the card is written last: it marks the data as complete


@dataclass(frozen=True)
class Row:
    """A raw row and where it stands, as a reader of an error would look for it (`file:line`)."""

    place: str
    values: Any


@dataclass(frozen=True)
class Split:
    """Conversations to train on and conversations to judge by, no one in both; `dropped` counts exact repetitions."""

    train: list[Conversation]
    held_out: list[Conversation]
    dropped: int


def fault_of(row: Any) -> str | None:
    """What keeps a row from being a conversation, or None if nothing does.

    A conversation: `messages`, an optional `system` first, then `user` and `assistant` in turn, `assistant` last.
    """
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        return "it has no `messages` list"
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or set(message) < {"role", "content"}:
            return f"message {number} lacks `role` or `content`"
        if message["role"] not in ("system", "user", "assistant"):
            return f"message {number} has the unknown role {message['role']!r}"
        if not isinstance(message["content"], str):
            return f"message {number} has a `content` that is not text"
        if not message["content"].strip():
            return f"message {number} ({message['role']}) is empty"
        if not _is_unicode(message["content"]):
            return f"message {number} holds half a character (a lone surrogate), which UTF-8 cannot hold"
    return _order_fault([message["role"] for message in messages])


def _order_fault(roles: list[str]) -> str | None:
    turns = roles[1:] if roles[0] == "system" else roles
    for number, role in enumerate(turns, start=1 + len(roles) - len(turns)):
        expected = "assistant" if (number - (len(roles) - len(turns))) % 2 == 0 else "user"
        if role != expected:
            return f"message {number} is of the {role}, where the {expected} should speak"
    return None if turns and turns[-1] == "assistant" else "the last message is not the assistant's"


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def conversations(rows: Iterable[Row]) -> Iterator[Conversation]:
    """The rows' messages, `role` and `content` only. Raises UserError at the first row that is not a conversation."""
    for row in rows:
        if fault := fault_of(row.values):
            raise UserError(f"{row.place} is not a conversation: {fault}", next_command="mend the row, then run again")
        yield [{"role": message["role"], "content": message["content"]} for message in row.values["messages"]]


def rows_of_file(path: Path) -> Iterator[Row]:
    """The rows of a .jsonl or .parquet file. Raises UserError if it cannot be read or is no JSON."""
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", code=WRONG_USE) from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield Row(f"{path}:{number}", _json_of(line, f"{path}:{number}"))


def _json_of(line: bytes, place: str) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not UTF-8 (byte {error.start + 1} of the line)") from None
    except ValueError as error:
        raise UserError(f"{place} is not JSON: {error}") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]  # ships no type information
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UserError(f"cannot read {path}: {error}", code=WRONG_USE) from None
    for number, values in enumerate(table.to_pylist(), start=1):
        yield Row(f"{path}, row {number}", values)


def split_by_hash(found: Iterable[Conversation], fraction: float = EVAL_FRACTION) -> Split:
    """Every conversation once; about `fraction` of them held out, chosen by the hash of their text."""
    once: dict[str, Conversation] = {}
    total = 0
    for total, conversation in enumerate(found, start=1):  # noqa: B007 - the count is used below
        once.setdefault(_digest(conversation), conversation)
    held_out = {digest for digest in once if int(digest[:8], 16) < fraction * 2**32}
    if once and not held_out and len(once) > 1:
        held_out = {min(once)}
    return Split(
        train=[conversation for digest, conversation in once.items() if digest not in held_out],
        held_out=[conversation for digest, conversation in once.items() if digest in held_out],
        dropped=total - len(once),
    )


def _shipped_splits(train: Iterable[Conversation], held_out: Iterable[Conversation]) -> Split:
    """The source's own splits, each conversation once; one that stands in both is judged by, not trained on."""
    judged = {_digest(conversation): conversation for conversation in held_out}
    trained: dict[str, Conversation] = {}
    total = 0
    for total, conversation in enumerate(train, start=1):  # noqa: B007
        trained.setdefault(_digest(conversation), conversation)
    kept = [conversation for digest, conversation in trained.items() if digest not in judged]
    return Split(train=kept, held_out=list(judged.values()), dropped=total - len(kept))


def _digest(conversation: Conversation) -> str:
    return hashlib.sha256(json.dumps(conversation, ensure_ascii=True, sort_keys=True).encode()).hexdigest()


def load_split(source: str, share: str | None) -> Split:
    """The split of a file or of a data set on the hub. `share`: `1%` or a number of rows, of the training part."""
    path = Path(source)
    if path.is_file():
        return split_by_hash(_first(list(conversations(rows_of_file(path))), share))
    if path.suffix in (".jsonl", ".parquet") or source.count("/") != 1:
        raise UserError(
            f"there is no file {source}, and it is not the name of a data set on the hub (owner/name) either",
            next_command="python -m training.dataset --source training/data/first-questions.jsonl --out data",
            code=WRONG_USE,
        )
    return _from_hub(source, share)


def _first(found: list[Conversation], share: str | None) -> list[Conversation]:
    return found if share is None else found[: _row_count(share, len(found))]


def _row_count(share: str, total: int) -> int:
    if not re.fullmatch(r"\d+%?", share) or (share.endswith("%") and int(share[:-1]) > 100):
        raise UserError(f"--split {share!r} is neither a percentage (1%) nor a number of rows (500)", code=WRONG_USE)
    return max(1, total * int(share[:-1]) // 100) if share.endswith("%") else min(total, int(share))


def _from_hub(name: str, share: str | None) -> Split:
    from datasets import load_dataset  # type: ignore[import-untyped]  # ships no type information
    from datasets.exceptions import DatasetNotFoundError  # type: ignore[import-untyped]

    train_name, eval_name = SHIPPED_SPLITS.get(name, ("train", None))
    cut = "" if share is None else f"[:{share}]"
    if share is not None:
        _row_count(share, 100)
    try:
        train = load_dataset(name, split=train_name + cut)
        held_out = load_dataset(name, split=eval_name + cut) if eval_name else None
    except (DatasetNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot load {name} from the hub: {reason}") from None
    found = conversations(_hub_rows(name, train_name, train))
    if held_out is None:
        return split_by_hash(found)
    return _shipped_splits(found, conversations(_hub_rows(name, eval_name or "", held_out)))


def _hub_rows(name: str, split: str, rows: Iterable[Any]) -> Iterator[Row]:
    for number, values in enumerate(rows, start=1):
        yield Row(f"{name} ({split}), row {number}", values)


def card_of(split: Split, source: str, hashes: Mapping[str, str]) -> dict[str, Any]:
    """The data card: where the rows come from, how many there are, what the files' hashes are."""
    rows = {"train": len(split.train), "eval": len(split.held_out)}
    return {"source": source, "rows": rows, "dropped": split.dropped, "hashes": dict(hashes)}


def write(split: Split, source: str, out: Path) -> dict[str, Any]:
    """Write the three files into `out`, all of them or none. Other files in `out` stay. Returns the card.

    Raises:
        UserError: no row to train on or to judge by, or a folder that cannot be written.
    """
    if not split.train or not split.held_out:
        raise UserError(
            f"{source} yields {len(split.train)} rows to train on and {len(split.held_out)} to judge by; "
            "both need one at least",
            next_command="give more rows, or a larger --split",
        )
    partial = out / f".partial.{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        hashes = {}
        for name, found in (("train.jsonl", split.train), ("eval.jsonl", split.held_out)):
            text = "".join(json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in found)
            (partial / name).write_text(text, encoding="utf-8")
            hashes[name] = file_hash(partial / name)
        card = card_of(split, source, hashes)
        (partial / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        (out / CARD).unlink(missing_ok=True)
        for name in FILES:
            (partial / name).replace(out / name)
    except OSError as error:
        raise UserError(f"cannot write the data to {out}: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return card


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_conversations(path: Path) -> list[Conversation]:
    """The conversations of a file. Raises UserError if one is not, or there is none."""
    found = list(conversations(rows_of_file(path)))
    if not found:
        raise UserError(f"{path} is empty: there is no conversation in it")
    return found


def main(argv: list[str]) -> int:
    parser = cli.parser("training.dataset", "Check conversations and split them into train.jsonl and eval.jsonl.")
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--source", metavar="NAME_OR_FILE", help=".jsonl, .parquet, or owner/name")
    chosen.add_argument("--recipe", metavar="NAME_OR_FILE", help="the source and the split that a recipe names")
    parser.add_argument("--out", type=Path, default=Path("data"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--split", metavar="SHARE", help="only this much of the source: 1%% or 500 (rows)")
    args = parser.parse_args(argv)
    source, split = args.source, args.split
    if args.recipe is not None:
        named = recipe.load(args.recipe).data
        source, split = named.source, split or named.split
    card = write(load_split(source, split), source, args.out)
    cli.result({"data": str(args.out), **card}, as_json=args.json)
    return 0


if __name__ == "__main__":
    cli.run(main)
