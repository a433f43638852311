"""Records on disk: one JSON object a line, read strictly and written all or nothing.

A line is accepted only if it says exactly one thing: UTF-8 without a byte order mark, one object,
no key twice, no NaN or Infinity, and a newline at its end, for a file without one was cut off.
Files are written beside their destination and moved over it once they are safely on disk, so a
reader sees the old file or the new one and never half of either.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from itg_data.errors import RecordError
from itg_data.files import replacing
from itg_data.records import from_json, to_json

RecordT = TypeVar("RecordT")

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_jsonl(
    path: str | os.PathLike[str],
    record_type: type[RecordT],
    *,
    on_bad: Callable[[RecordError], None] | None = None,
) -> Iterator[RecordT]:
    """Reads records one by one, without holding the file in memory.

    Args:
        path: The file; an empty one holds no records.
        record_type: The record class of every line.
        on_bad: Called with the complaint about a line that is no such record, which is then left
            out. None stops at the first one.

    Raises:
        RecordError: A line breaks the rules above or the record's own and `on_bad` is None; the
            message names the file, the line, counted from 1, and the field. Also if the file
            cannot be opened.
    """
    return (record for _, record in read_jsonl_places(path, record_type, on_bad=on_bad))


def read_jsonl_places(
    path: str | os.PathLike[str],
    record_type: type[RecordT],
    *,
    on_bad: Callable[[RecordError], None] | None = None,
) -> Iterator[tuple[int, RecordT]]:
    """Reads records as `read_jsonl` does, each with its place in the file for `read_record_at`."""
    name = os.fspath(path)
    place = 0
    try:
        with Path(name).open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    record = parse_record(line, record_type)
                except RecordError as error:
                    complaint = RecordError(f"{name}:{number}: {error}")
                    if on_bad is None:
                        raise complaint from None
                    on_bad(complaint)
                else:
                    yield place, record
                place += len(line)
    except OSError as error:
        raise RecordError(f"{name}: {error.strerror or error}") from None


def read_record_at(file: BinaryIO, place: int, record_type: type[RecordT]) -> RecordT:
    """Reads the record that begins at a byte of an open file."""
    file.seek(place)
    return from_json(record_type, _parse_line(file.readline()))


def write_jsonl(path: str | os.PathLike[str], records: Iterable[Any]) -> int:
    """Writes records, replacing the file as a whole, without holding them in memory.

    Args:
        path: The file; its folder must exist.
        records: Record dataclasses; if drawing one fails, the old file stays as it was.

    Returns:
        How many were written.

    Raises:
        RecordError: A record holds what JSON in UTF-8 cannot: NaN, an infinity, half a character.
    """
    number = 0
    with replacing(path, follow_links=True) as part, part.open("wb") as file:
        for number, record in enumerate(records, start=1):
            try:
                file.write(format_record(record))
            except RecordError as error:
                raise RecordError(f"{os.fspath(path)}:{number}: {error}") from None
    return number


def parse_record(line: bytes, record_type: type[RecordT]) -> RecordT:
    """Reads one line, its newline included.

    Raises:
        RecordError: It breaks the rules above or the record's own; the message names the field.
    """
    return from_json(record_type, _parse_line(line))


def format_record(record: Any) -> bytes:
    """Puts a record into one line, newline included.

    Raises:
        RecordError: It holds what JSON in UTF-8 cannot: NaN, an infinity, half a character.
    """
    try:
        line = json.dumps(to_json(record), ensure_ascii=False, allow_nan=False)
        return line.encode() + b"\n"
    except UnicodeEncodeError as error:
        nearby = error.object[max(0, error.start - 40) : error.end]
        raise RecordError(f"holds half a character at the end of {nearby!a}") from None
    except ValueError as error:
        raise RecordError(str(error)) from None


def _parse_line(line: bytes) -> Any:
    if not line.endswith(b"\n"):
        raise RecordError("the line has no end: the file was cut off")
    if line.startswith(_BYTE_ORDER_MARK):
        raise RecordError("starts with a byte order mark; save the file as plain UTF-8")
    if not line.strip():
        raise RecordError("is blank")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise RecordError(f"is not UTF-8 at byte {error.start}") from None
    return parse_json(text)


def parse_json(text: str) -> Any:
    """Reads a JSON text that says exactly one thing: no key twice, no NaN, no endless nesting.

    Raises:
        RecordError: It is not JSON, or breaks these rules.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_object_of,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except json.JSONDecodeError as error:
        raise RecordError(f"is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise RecordError("is nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise RecordError(f"is not readable JSON: {error}") from None


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RecordError(f"field {key!r} is there twice")
            seen.add(key)
    return built


def _refuse_constant(name: str) -> float:
    raise RecordError(f"{name} is not a JSON number")


def _finite_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise RecordError(f"{digits} is too large for a number")
    return number
