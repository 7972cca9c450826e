"""Where rows come from: a file, a folder in the hub's layout, or a data set on the hub; whole or a part of it.

A data set that ships its own splits keeps them (`train_sft` is judged by `test_sft`); what ships none is split by the
hash of its texts. Only those files of a data set are downloaded that the wanted rows are in.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from infra.cli import WRONG_USE, UserError
from training.data_folder import file_hash
from training.hub import reaching_hub
from training.row_files import SUFFIXES, count_rows, rows_of_file
from training.rows import Row

HELD_OUT_WORDS = ("validation", "valid", "dev", "test", "eval")
"""What stands in the name of a held-out split where the training split's has `train`; the first that is there."""

_SHARE = r"\d+(?:\.\d+)?%|\d+"
_SPLIT = re.compile(rf"(?P<name>[A-Za-z_][\w.-]*)(?:\[:(?P<cut>{_SHARE})\])?|(?P<share>{_SHARE})")


@dataclass(frozen=True)
class Wanted:
    """What `--split` asks for: a split by its name (None: the one to train on), and a share of its rows (None: all)."""

    name: str | None = None
    share: str | None = None


@dataclass(frozen=True)
class Part:
    """One side of a source: its files in order, and how many of their rows are taken (None: all)."""

    name: str
    files: tuple[str, ...]
    limit: int | None

    @property
    def described(self) -> str:
        return self.name if self.limit is None else f"{self.name}[:{self.limit}]"


@dataclass(frozen=True)
class Source:
    """A source whose files are known; `fetch` brings one of them here. `held_out` is None where none is shipped."""

    name: str
    train: Part
    held_out: Part | None
    revision: str | None
    licence: str | None
    fetch: Callable[[str], Path]

    def rows(self, part: Part) -> Iterator[Row]:
        """The part's rows, one at a time. Raises UserError for a file that cannot be read."""
        files = (rows_of_file(self.fetch(file), self.place(file)) for file in part.files)
        return itertools.islice(itertools.chain.from_iterable(files), part.limit)

    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each local file; a data set on the hub is pinned by its revision."""
        if self.revision is not None:
            return {}
        files = [file for part in (self.train, self.held_out) if part for file in part.files]
        return {file: file_hash(Path(file)) for file in sorted(files)}

    def place(self, file: str) -> str:
        """How the file is called in messages: by its path, or by its name on the hub."""
        return file if self.revision is None else f"{self.name}/{file}"


def parse_split(text: str | None) -> Wanted:
    """What `1%`, `500`, `train_gen` or `train_gen[:1%]` asks for. Raises UserError, exit code 2, for anything else."""
    if text is None:
        return Wanted()
    found = _SPLIT.fullmatch(text)
    if not found:
        raise UserError(
            f"--split {text!r} is neither a percentage (1%), a number of rows (500), a split's name (train_gen) nor "
            "the beginning of a split (train_gen[:1%])",
            code=WRONG_USE,
        )
    return Wanted(found["name"], found["cut"] or found["share"])


def open_source(name: str, split: str | None = None, revision: str | None = None) -> Source:
    """The source of that name: a file, a folder, or `owner/name` on the hub.

    Raises:
        UserError: exit code 2 for what does not exist or has not what is asked for, 1 if the hub cannot be reached.
    """
    wanted, path = parse_split(split), Path(name)
    if path.is_file():
        return _file(path, wanted, revision)
    if path.is_dir():
        return _folder(path, wanted, revision)
    if path.name.endswith(SUFFIXES) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(
            f"there is no file or folder {name}, and it is not the name of a data set on the hub (owner/name) either",
            next_command="python -m training.dataset --source training/data/first-questions.jsonl --out data",
            code=WRONG_USE,
        )
    return _from_hub(name, wanted, revision)


def _file(path: Path, wanted: Wanted, revision: str | None) -> Source:
    if wanted.name is not None:
        raise UserError(f"{path} is one file, without a split {wanted.name!r}: --split takes 1% or 500", code=WRONG_USE)
    _refuse_revision(path, revision)
    part = Part(path.name, (str(path),), _limit(wanted.share, path.name, lambda: count_rows(path)))
    return Source(str(path), part, None, None, None, Path)


def _refuse_revision(path: Path, revision: str | None) -> None:
    if revision is not None:
        raise UserError(f"--revision {revision} is of a data set on the hub; {path} lies here", code=WRONG_USE)


def _folder(path: Path, wanted: Wanted, revision: str | None) -> Source:
    from huggingface_hub import DatasetCard

    _refuse_revision(path, revision)
    builder = _layout(str(path), None)
    splits = {
        str(split): tuple(str(path / os.path.relpath(file, path.resolve())) for file in files)
        for split, files in builder.config.data_files.items()
    }
    card = path / "README.md"
    licence = DatasetCard.load(card).data.license if card.is_file() else None

    def rows_in(split: str) -> int:
        return sum(count_rows(Path(file)) for file in splits[split])

    train, held_out = _parts(str(path), wanted, splits, rows_in)
    return Source(str(path), train, held_out, None, _joined(licence), Path)


def _joined(licence: Any) -> str | None:
    return ", ".join(licence) if isinstance(licence, list) else licence


def _layout(name: str, revision: str | None) -> Any:
    """What `datasets` makes of a folder's or repository's README and file names. Downloads no data."""
    import yaml
    from datasets import load_dataset_builder  # type: ignore[import-untyped]  # ships no type information

    try:
        builder = load_dataset_builder(name, revision=revision)
    except (OSError, ValueError, RuntimeError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"cannot find the splits of {name}: {reason}", code=WRONG_USE) from None
    if not builder.config.data_files:
        raise UserError(f"{name} holds no file of conversations: {', '.join(SUFFIXES)}", code=WRONG_USE)
    return builder


def _from_hub(name: str, wanted: Wanted, revision: str | None) -> Source:
    from huggingface_hub import HfApi, hf_hub_download

    with reaching_hub(name):
        info = HfApi().dataset_info(name, revision=revision, timeout=30)
        builder = _layout(name, info.sha)
    prefix = f"hf://datasets/{name}@{info.sha}/"
    splits = {
        str(split): tuple(file.removeprefix(prefix) for file in files)
        for split, files in builder.config.data_files.items()
    }

    def fetch(file: str) -> Path:
        with reaching_hub(f"{file} of {name}"):
            return Path(hf_hub_download(name, file, repo_type="dataset", revision=info.sha))

    def rows_in(split: str) -> int:
        """As the data set's card says, so that 1 % of it needs no download of the whole; else counted."""
        known = (builder.info.splits or {}).get(split)
        return known.num_examples if known else sum(count_rows(fetch(file), f"{name}/{file}") for file in splits[split])

    train, held_out = _parts(name, wanted, splits, rows_in)
    licence = _joined(info.card_data.license if info.card_data else None)
    return Source(name, train, held_out, info.sha, licence, fetch)


def _parts(
    name: str, wanted: Wanted, splits: Mapping[str, tuple[str, ...]], rows_in: Callable[[str], int]
) -> tuple[Part, Part | None]:
    train = wanted.name or _train_split(name, splits)
    if train not in splits:
        raise UserError(f"{name} has no split {train!r}; it has {', '.join(sorted(splits))}", code=WRONG_USE)
    others = (train.replace("train", word) for word in HELD_OUT_WORDS if "train" in train)
    held_out = next((other for other in others if other in splits), None)

    def part(split: str) -> Part:
        _check_shards(name, splits[split])
        return Part(split, splits[split], _limit(wanted.share, split, lambda: rows_in(split)))

    return part(train), part(held_out) if held_out else None


def _train_split(name: str, splits: Mapping[str, Any]) -> str:
    """The split to train on where none is named: `train`, `train_sft`, or the only one there is."""
    for known in ("train", "train_sft"):
        if known in splits:
            return known
    if len(splits) == 1:
        return next(iter(splits))
    raise UserError(
        f"{name} has the splits {', '.join(sorted(splits))}: say which one to train on",
        next_command=f"python -m training.dataset --source {name} --split {sorted(splits)[0]} --out data",
        code=WRONG_USE,
    )


def _check_shards(name: str, files: Sequence[str]) -> None:
    """Raises UserError, exit code 2, if one of the files `…-00001-of-00003…` is missing: a copy that is not whole."""
    for file in files:
        found = re.search(r"-\d{5}-of-(\d{5})", file)
        if found and len(files) != int(found[1]):
            raise UserError(
                f"{name} is not whole: {Path(file).name} is one of {int(found[1])} files, and {len(files)} are there",
                code=WRONG_USE,
            )


def _limit(share: str | None, name: str, total: Callable[[], int]) -> int | None:
    """How many rows a share is; None for all. Raises UserError, exit code 2, for a share that leaves no row."""
    if share is None:
        return None
    if not share.endswith("%"):
        rows, of = int(Fraction(share)), "of the rows"
    elif Fraction(share[:-1]) > 100:
        raise UserError(f"--split {share} is more than the whole", code=WRONG_USE)
    else:
        rows, of = int(total() * Fraction(share[:-1]) / 100), f"of the {total():,} rows"
    if rows < 1:
        raise UserError(
            f"--split {share} leaves none {of} of {name}", next_command="give a larger --split", code=WRONG_USE
        )
    return rows
