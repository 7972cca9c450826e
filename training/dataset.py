"""Conversations from a file, a folder or the hub, checked row by row, as `train.jsonl`, `eval.jsonl` and a data card.

    python -m training.dataset --source training/data/first-questions.jsonl --out data
    python -m training.dataset --source HuggingFaceH4/ultrachat_200k --split 1% --out data
    python -m training.dataset --recipe phi-3.5-mini --on-bad-row drop --out data

Deterministic: the same source gives the same files, byte for byte, and which rows are held out depends on their text
alone (a hash), so a row that is added moves no other. A source that ships its own splits keeps them. Rows are read,
checked and written one at a time: memory grows with the number of rows (their hashes), not with their size.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import cli
from infra.cli import WRONG_USE, UserError, say
from training import recipe
from training.data_card import card_of, readme_of
from training.data_folder import CARD, EVAL_FILE, HISTOGRAM, README, TRAIN_FILE, check_free, file_hash, making
from training.lengths import Measure, Statistics, draw_histogram, in_characters, in_tokens, load_tokenizer
from training.recipe import Recipe
from training.row_files import rows_of_file
from training.rows import Conversation, Row
from training.sources import Source, open_source
from training.splits import EVAL, TRAIN, Chosen, Tally, good_rows, measured, shipped_splits, split_by_hash

__all__ = ["file_hash", "prepare", "read_conversations"]

PROGRESS_SECONDS = 5.0


@dataclass(frozen=True)
class Request:
    """What to make, and where. `measure` counts tokens of `tokenizer` (a folder or a name on the hub), or characters if
    that is None; `command` makes the same again, in any folder."""

    source: str
    out: Path
    split: str | None = None
    revision: str | None = None
    tokenizer: str | None = None
    measure: Measure = in_characters
    max_length: int | None = None
    drop_bad_rows: bool = False
    command: str = ""


def prepare(request: Request) -> dict[str, Any]:
    """Write the data folder, all its files or none; other files in it stay. Returns the card.

    Raises:
        UserError: bad rows, no row to train on or to judge by, a source that cannot be read, a folder that cannot be
            written or holds other data.
    """
    check_free(request.out, request.source)
    source = open_source(request.source, request.split, request.revision)
    with making(request.out) as folder:
        card, statistics = _written(request, source, folder)
        draw_histogram(folder / HISTOGRAM, statistics, card["lengths"]["unit"], card["lengths"]["max_length"])
        (folder / README).write_text(readme_of(card), encoding="utf-8")
        (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return card


def foresee(request: Request) -> dict[str, Any]:
    """The card that `prepare` would return, or the error that it would raise; nothing is written."""
    check_free(request.out, request.source)
    return _written(request, open_source(request.source, request.split, request.revision), None)[0]


def _written(request: Request, source: Source, folder: Path | None) -> tuple[dict[str, Any], dict[str, Statistics]]:
    """The rows in the two files of `folder` (None: nowhere), the card about them, and their lengths."""
    tally = Tally()
    statistics = {TRAIN: Statistics(), EVAL: Statistics()}
    with _Lines(folder, TRAIN_FILE) as train, _Lines(folder, EVAL_FILE) as held_out:
        files = {TRAIN: train, EVAL: held_out}
        for side, item in _chosen(request, source, tally):
            files[side].add(item.conversation)
            statistics[side].add(item.lengths)
    if tally.faults and not request.drop_bad_rows:
        raise bad_rows(source.name, tally, f"{request.command} --on-bad-row drop --out {request.out}")
    _refuse_empty(source.name, tally, statistics)
    card = card_of(
        source,
        request.command + (f" --revision {source.revision}" if source.revision and not request.revision else ""),
        tally,
        statistics,
        {file.name: file.hash for file in files.values()},
        tokenizer=request.tokenizer,
        max_length=request.max_length,
    )
    return card, statistics


def _chosen(request: Request, source: Source, tally: Tally) -> Iterator[Chosen]:
    found = [
        measured(good_rows(_with_progress(source.rows(part)), tally), tally, request.measure, request.max_length)
        for part in (source.train, source.held_out)
        if part is not None
    ]
    return split_by_hash(found[0], tally) if source.held_out is None else shipped_splits(found[0], found[1], tally)


class _Lines:
    """A file of conversations and the hash of what is in it; in no folder only the hash."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self.name = name
        self._file = (folder / name).open("wb") if folder else None
        self._sha256 = hashlib.sha256()

    def add(self, conversation: Conversation) -> None:
        line = _ENCODER.encode({"messages": conversation}).encode() + b"\n"
        self._sha256.update(line)
        if self._file:
            self._file.write(line)

    @property
    def hash(self) -> str:
        return self._sha256.hexdigest()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()


_ENCODER = json.JSONEncoder(ensure_ascii=False)


def _with_progress(rows: Iterator[Row]) -> Iterator[Row]:
    begun = said = time.monotonic()
    for number, row in enumerate(rows, start=1):
        yield row
        now = time.monotonic()
        if now - said >= PROGRESS_SECONDS:
            said = now
            say(f"{row.place}: {number:,} rows read, {number / (now - begun):,.0f} rows/s")


def bad_rows(source: str, tally: Tally, drop_command: str) -> UserError:
    """All bad rows are counted by kind, the first are named by their place."""
    total = tally.faults.total()
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in tally.faults.most_common())
    more = [f"  and {total - len(tally.bad_rows):,} more"] if total > len(tally.bad_rows) else []
    lines = [f"  {line}" for line in tally.bad_rows]
    return UserError(
        "\n".join([f"{total:,} of {tally.read:,} rows of {source} are no conversations ({kinds}):", *lines, *more]),
        next_command=f"mend them, or leave them out: {drop_command}",
    )


def _refuse_empty(source: str, tally: Tally, statistics: Mapping[str, Statistics]) -> None:
    train, held_out = (sum(statistics[side].totals.values()) for side in (TRAIN, EVAL))
    if train and held_out:
        return
    if not tally.read:
        raise UserError(f"{source} is empty: there is no row in it", next_command="give another --source")
    raise UserError(
        f"{source} yields {train:,} rows to train on and {held_out:,} to judge by (of {tally.read:,} rows "
        f"{tally.dropped:,} were left out); both need one at least",
        next_command="give more rows, or a larger --split",
    )


def read_conversations(path: Path) -> list[Conversation]:
    """The conversations of a file. Raises UserError if one row is none, or there is no row."""
    tally = Tally()
    found = [conversation for _, conversation in good_rows(rows_of_file(path), tally)]
    if tally.faults:
        raise bad_rows(str(path), tally, f"python -m training.dataset --source {path} --on-bad-row drop --out data")
    if not found:
        raise UserError(f"{path} is empty: there is no conversation in it")
    return found


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    request = _request(args)
    card = foresee(request) if args.dry_run else prepare(request)
    result = {"data": None if args.dry_run else str(args.out), **card}
    shown = ("data", "source", "rows", "dropped", "faults", "duplicates", "hashes")
    cli.result(result if args.json else {key: result[key] for key in shown}, as_json=args.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "training.dataset", "Check conversations; write train.jsonl, eval.jsonl and a data card with statistics."
    )
    add = parser.add_argument
    add("--source", metavar="NAME_OR_FILE", help="a .jsonl(.gz) or .parquet file, a folder, or owner/name on the hub")
    add("--recipe", metavar="NAME_OR_FILE", help="the source, split and revision that a recipe names, and its lengths")
    add("--out", type=Path, default=Path("data"), metavar="DIR", help="default: %(default)s")
    add("--split", metavar="SPLIT", help="only a part, from the beginning: 1%%, 500 (rows), train_gen, train_gen[:1%%]")
    add("--revision", metavar="COMMIT", help="of a data set on the hub (default: its newest, named in the card)")
    add(
        "--tokenizer", metavar="DIR_OR_NAME", help="count tokens with it (default: the recipe's model; else characters)"
    )
    add("--on-bad-row", choices=("fail", "drop"), default="fail", help="default: %(default)s; all are counted")
    add("--dry-run", action="store_true", help="check and report, write nothing")
    return parser


def _request(args: argparse.Namespace) -> Request:
    """What the options ask for. A recipe's split and revision are of its own source, and no other's."""
    if args.source is None and args.recipe is None:
        raise UserError("give --source or --recipe", next_command="python -m training.dataset --help", code=WRONG_USE)
    named = recipe.load_any(args.recipe) if args.recipe else None
    own = named.data if named and args.source is None else None
    ours = named if isinstance(named, Recipe) else None  # the registry's component knows neither file nor length
    tokenizer, measure = _measure(args.tokenizer, ours)
    return Request(
        source=args.source or (own.source if own else ""),
        out=args.out,
        split=args.split or (own.split if own else None),
        revision=args.revision or (own.revision if own else None),
        tokenizer=tokenizer,
        measure=measure,
        max_length=ours.sft.get("max_length") if ours and tokenizer else None,
        drop_bad_rows=args.on_bad_row == "drop",
        command=_command(args),
    )


def _measure(tokenizer: str | None, named: Recipe | None) -> tuple[str | None, Measure]:
    """The tokenizer that was given, else the one of the recipe's model if it is here, else none and characters."""
    if tokenizer is not None:
        return tokenizer, in_tokens(load_tokenizer(tokenizer, download=True))
    if named is None:
        return None, in_characters
    model = named.model.model_name_or_path
    try:
        return model, in_tokens(load_tokenizer(model, named.model.model_revision, download=False))
    except UserError as error:
        say(f"{error.message}; lengths are in characters (--tokenizer DIR counts tokens)")
        return None, in_characters


def _command(args: argparse.Namespace) -> str:
    """The command line that makes the same data, in its simplest form; without the folder, which changes nothing."""
    words = ["python", "-m", "training.dataset"]
    for option in ("source", "recipe", "split", "revision", "tokenizer"):
        if getattr(args, option) is not None:
            words += [f"--{option}", getattr(args, option)]
    return shlex.join([*words, *(["--on-bad-row", "drop"] if args.on_bad_row == "drop" else [])])


if __name__ == "__main__":
    cli.run(main)
