"""Rows out of files: JSON lines, plain or gzipped, and Parquet; one at a time, whatever the size of the file.

What is wrong with one row is that row's Fault; what is wrong with the whole file is a UserError.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from infra.cli import WRONG_USE, UserError
from training.rows import SIDES, Fault, Row

MAX_LINE = 64 * 2**20
"""Bytes. A longer line is no conversation, and is not read into memory."""

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")


def rows_of_file(path: Path, name: str | None = None) -> Iterator[Row]:
    """The rows of a file, one at a time; `name` stands for the file in their places.

    Raises:
        UserError: exit code 2, the file cannot be read, or is of another kind.
    """
    name = name or str(path)
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{name} is not a file of conversations: {', '.join(SUFFIXES)}", code=WRONG_USE)
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, name)
    else:
        with _opened(path, name) as file:
            yield from _json_rows(file, name)


def count_rows(path: Path, name: str | None = None) -> int:
    """How many rows a file holds, good or bad. Raises what `rows_of_file` raises."""
    name = name or str(path)
    if path.suffix == ".parquet":
        with _parquet(path, name) as file:
            return int(file.metadata.num_rows)
    with _opened(path, name) as lines:
        return sum(1 for _, line in _lines(lines) if line.strip())


@contextlib.contextmanager
def _opened(path: Path, name: str) -> Iterator[BinaryIO]:
    with _readable(name), path.open("rb") as file:
        yield cast(BinaryIO, gzip.GzipFile(fileobj=file)) if path.suffix == ".gz" else file


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Raises UserError, exit code 2, for what goes wrong with the file itself."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UserError(f"cannot read {name}: {reason}", code=WRONG_USE) from None


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Each line and its number; of a line above MAX_LINE only the first MAX_LINE + 1 bytes."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        yield number, line
        while len(line) > MAX_LINE and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE + 1)


def _json_rows(file: BinaryIO, name: str) -> Iterator[Row]:
    for number, line in _lines(file):
        if number == 1 and line.lstrip().startswith(b"["):
            raise UserError(
                f"{name} is one JSON array, where each line should be an object of its own",
                next_command=f"jq -c '.[]' {name} > rows.jsonl",
                code=WRONG_USE,
            )
        if line.strip():
            yield Row(f"{name}:{number}", _json_of(line))


def _json_of(line: bytes) -> Any:
    """The values of a line, or its Fault."""
    if len(line) > MAX_LINE:
        return Fault("line_too_long", f"the line has more than {MAX_LINE >> 20} MiB")
    try:
        return _DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        utf16 = " (it begins as UTF-16 does)" if line.startswith((b"\xff\xfe", b"\xfe\xff")) else ""
        return Fault("not_utf8", f"it is not UTF-8 at byte {error.start + 1} of the line{utf16}")
    except _NoNumber as error:
        return Fault("not_a_number", f"it holds {error}, which is not JSON")
    except json.JSONDecodeError as error:
        if line.startswith(b"\xef\xbb\xbf"):
            return Fault(
                "byte_order_mark", "the line begins with a byte order mark; save the file as UTF-8 without one"
            )
        return Fault("not_json", f"it is not JSON: {error.msg} (column {error.colno})")
    except (ValueError, RecursionError) as error:
        return Fault("not_json", f"it is not JSON that can be read: {error}")


class _NoNumber(ValueError):
    """NaN, Infinity or -Infinity, which Python's json takes for JSON."""


def _refuse_constant(text: str) -> NoReturn:
    raise _NoNumber(text)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


@contextlib.contextmanager
def _parquet(path: Path, name: str) -> Iterator[Any]:
    """An opened ParquetFile. Raises UserError, exit code 2, for what goes wrong with the file itself."""
    import pyarrow  # type: ignore[import-untyped]  # ships no type information
    from pyarrow import parquet

    with _readable(name):
        try:
            # pre_buffer, the default, keeps all that was read until the file is closed
            yield parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
        except pyarrow.ArrowException as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"cannot read {name}: {reason}", code=WRONG_USE) from None


def _parquet_rows(path: Path, name: str) -> Iterator[Row]:
    """The rows, a few hundred in memory at a time. Columns without part in a conversation are not read."""
    with _parquet(path, name) as file:
        columns = file.schema_arrow.names
        read = ["messages"] if "messages" in columns else [column for column in SIDES if column in columns]
        if read not in (["messages"], list(SIDES)):
            raise UserError(
                f"{name} has the columns {', '.join(columns)}: neither `messages` nor `prompt` and `completion`",
                code=WRONG_USE,
            )
        ignored = tuple(column for column in columns if column not in read)
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=read):
            for values in _values_of(batch):
                number += 1
                yield Row(f"{name}, row {number}", values, ignored)


def _values_of(batch: Any) -> list[Any]:
    """The batch's rows; a row whose text is not UTF-8 is a Fault, and spoils no other."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            return [Fault("not_utf8", f"its text is not UTF-8 at byte {error.start + 1}")]
        return [values for number in range(len(batch)) for values in _values_of(batch.slice(number, 1))]
