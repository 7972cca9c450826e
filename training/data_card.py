"""The data card, for programs (`card.json`) and for readers (`README.md`, which also tells the hub's tools what the
files are: the data folder is itself a source in the hub's layout).

Nothing in it depends on when or where it was made: the same source gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.data_folder import EVAL_FILE, HISTOGRAM, TRAIN_FILE
from training.lengths import LIMITS, Statistics
from training.rows import FAULTS
from training.sources import Source
from training.splits import EVAL, TRAIN, Tally

KEYS_SHOWN = 20


def card_of(
    source: Source,
    command: str,
    tally: Tally,
    statistics: Mapping[str, Statistics],
    hashes: Mapping[str, str],
    *,
    tokenizer: str | None,
    max_length: int | None,
) -> dict[str, Any]:
    """The card. `dropped` are all rows that are in neither file: bad ones (`faults`) and repetitions (`duplicates`).

    `source_hashes`: of local files; a data set of the hub is pinned by `revision`. `lengths`: in `unit`, tokens if
    there was a `tokenizer`; `cut`: by each `max_length`, what is lost of the training file.
    """
    return {
        "source": source.name,
        "revision": source.revision,
        "licence": source.licence,
        "splits": _splits(source),
        "command": command,
        "rows": {name: sum(part.totals.values()) for name, part in statistics.items()},
        "dropped": tally.dropped,
        "faults": dict(sorted(tally.faults.items())),
        "bad_rows": tally.bad_rows,
        "duplicates": {where: tally.duplicates[where] for where in ("in_train", "in_eval", "in_both")},
        "ignored_keys": dict(sorted(tally.ignored_keys.most_common(KEYS_SHOWN))),
        "lengths": {
            "unit": "tokens" if tokenizer else "characters",
            "tokenizer": tokenizer,
            "max_length": max_length,
            **{name: part.summary() for name, part in statistics.items()},
            "cut": _cut(statistics[TRAIN], max_length) if tokenizer else {},
        },
        "hashes": dict(hashes),
        "source_hashes": source.hashes(),
    }


def _splits(source: Source) -> dict[str, str]:
    """`train_sft[:2078]`, or, where the source has no split to judge by, how it was made."""
    if source.held_out is None:
        return {TRAIN: source.train.described, EVAL: "by the hash of the text, one in twenty"}
    return {TRAIN: source.train.described, EVAL: source.held_out.described}


def _cut(train: Statistics, max_length: int | None) -> dict[str, dict[str, float]]:
    """The recipe's `max_length`, and those of LIMITS that would cut anything."""
    limits = {*(limit for limit in LIMITS if limit < max(train.totals)), *([max_length] if max_length else [])}
    return {str(limit): train.cut(limit) for limit in sorted(limits)}


def readme_of(card: Mapping[str, Any]) -> str:
    """The card as Markdown, under a header that names licence, splits and files as the hub's README does."""
    title = ["# Conversations for fine-tuning", ""]
    files = ["## Files", "", *(f"- `{name}` sha256 `{value}`" for name, value in card["hashes"].items()), ""]
    return "\n".join([*_header(card), *title, *_origin(card), *_left_out(card), *_lengths(card), *files])


def _header(card: Mapping[str, Any]) -> list[str]:
    licence = [f"license: {card['licence']}"] if card["licence"] else []
    return [
        "---",
        *licence,
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        f"    path: {TRAIN_FILE}",
        "  - split: test",
        f"    path: {EVAL_FILE}",
        "---",
        "",
    ]


def _origin(card: Mapping[str, Any]) -> list[str]:
    revision = f", revision `{card['revision']}`" if card["revision"] else ""
    return [
        f"From `{card['source']}`{revision}. Licence: {card['licence'] or 'the source does not say'}. Made by",
        "",
        f"    {card['command']}",
        "",
        "| file | from | conversations |",
        "| --- | --- | ---: |",
        f"| `{TRAIN_FILE}` | {card['splits'][TRAIN]} | {card['rows'][TRAIN]:,} |",
        f"| `{EVAL_FILE}` | {card['splits'][EVAL]} | {card['rows'][EVAL]:,} |",
        "",
    ]


def _left_out(card: Mapping[str, Any]) -> list[str]:
    """Why rows are missing: a table of counts, and where the first bad ones stand."""
    repeated = {
        "repetitions within the training rows": card["duplicates"]["in_train"],
        "repetitions within the held-out rows": card["duplicates"]["in_eval"],
        "training rows that are held-out rows too": card["duplicates"]["in_both"],
    }
    counts = {**{FAULTS[kind]: count for kind, count in card["faults"].items()}, **repeated}
    rows = [f"| {reason} | {count:,} |" for reason, count in counts.items() if count]
    table = ["| reason | rows |", "| --- | ---: |", *rows, ""] if rows else ["Nothing.", ""]
    named = [f"    {line}" for line in card["bad_rows"]]
    keys = ", ".join(f"`{key}` ({count:,})" for key, count in card["ignored_keys"].items())
    return [
        "## Left out",
        "",
        *table,
        *(["The first of the bad rows:", "", *named, ""] if named else []),
        *([f"Keys that are no part of a conversation: {keys}.", ""] if keys else []),
    ]


def _lengths(card: Mapping[str, Any]) -> list[str]:
    lengths = card["lengths"]
    unit = f"tokens of `{lengths['tokenizer']}`" if lengths["tokenizer"] else "characters (no tokenizer was given)"
    rows = []
    for name in (TRAIN, EVAL):
        part, spread, replies = lengths[name], lengths[name]["length"], lengths[name]["replies"]
        rows.append(
            f"| {name} | {part['total']:,} | {part['assistant_share']:.1%} | {spread['mean']:,} | {spread['p50']:,} | "
            f"{spread['p95']:,} | {spread['p99']:,} | {spread['max']:,} | {replies['mean']} | {replies['max']} |"
        )
    return [
        "## Lengths",
        "",
        f"In {unit}.",
        "",
        "| file | all | the assistant's | mean | median | p95 | p99 | longest | replies, mean | most |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        f"![how many conversations have which length]({HISTOGRAM})",
        "",
        *_cut_table(card),
    ]


def _cut_table(card: Mapping[str, Any]) -> list[str]:
    cut = card["lengths"]["cut"]
    if not cut:
        return []
    rows = [f"| {limit} | {lost['conversations']:,} | {lost['token_share']:.2%} |" for limit, lost in cut.items()]
    head = ["| `max_length` | conversations it cuts | tokens lost |", "| ---: | ---: | ---: |"]
    chosen = f" The recipe's is {card['lengths']['max_length']}." if card["lengths"]["max_length"] else ""
    return [f"Of the training file a `max_length` cuts:{chosen}", "", *head, *rows, ""]
