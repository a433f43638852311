"""Annotations as a Parquet table, with a schema that follows from the record's own fields."""

# pyarrow comes without types
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

import dataclasses
import os
import types
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.parquet as pq  # pyright: ignore[reportMissingTypeStubs]

from itg_data.annotate.records import Annotation
from itg_data.files import replacing
from itg_data.records import SCHEMA_VERSION

_ROWS_PER_GROUP = 2000


@contextmanager
def writing_parquet(path: str | os.PathLike[str]) -> Generator[Callable[[Annotation], None]]:
    """Yields what writes the next annotation as a row; the file appears when the block ends well.

    Beside the annotation's fields there is `label_s`, the seconds that are labels.
    """
    schema = arrow_schema()
    rows: list[dict[str, Any]] = []

    def flush() -> None:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        rows.clear()

    def write(annotation: Annotation) -> None:
        rows.append({**dataclasses.asdict(annotation), "label_s": annotation.label_s})
        if len(rows) == _ROWS_PER_GROUP:
            flush()

    with replacing(path) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
        yield write
        flush()


def arrow_schema() -> Any:
    """Gives the `pyarrow.Schema` of the table; its metadata names the schema version."""
    fields = [pa.field(name, type_, nullable) for name, type_, nullable in _fields(Annotation)]
    fields.append(pa.field("label_s", _list_of(pa.int64()), nullable=False))
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})


def _fields(record_type: type[Any]) -> Generator[tuple[str, Any, bool]]:
    hints = get_type_hints(record_type)
    for field in dataclasses.fields(record_type):
        hint = hints[field.name]
        nullable = get_origin(hint) in (Union, types.UnionType)
        if nullable:
            (hint,) = (inner for inner in get_args(hint) if inner is not types.NoneType)
        yield field.name, _arrow_type(hint), nullable


def _arrow_type(hint: Any) -> Any:
    if get_origin(hint) is tuple:
        return _list_of(_arrow_type(get_args(hint)[0]))
    if get_origin(hint) is Literal:
        return pa.string()
    if dataclasses.is_dataclass(hint):
        inner = _fields(hint)  # pyright: ignore[reportArgumentType]
        return pa.struct([pa.field(name, type_, nullable) for name, type_, nullable in inner])
    return {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}[hint]


def _list_of(element: Any) -> Any:
    # named as Parquet names it, so that what is read back has the schema that was written
    return pa.list_(pa.field("element", element, nullable=False))
