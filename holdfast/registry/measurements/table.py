"""Measurements as one Arrow table: one row for each number, stored as an Arrow file that any Arrow program opens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from holdfast.errors import Corrupt
from holdfast.registry.measurements.measurement import Kind, Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from holdfast.storage.cid import Buffer, Cid

__all__ = ["from_bytes", "from_table", "to_bytes", "to_table"]

_VERSION = b"1"
_ABOUT = b"holdfast.measurements"
_DROPPED = b"holdfast.dropped"


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("number", pa.int64(), nullable=False),
            pa.field("time_s", pa.float64(), nullable=False),
            pa.field("kind", pa.string(), nullable=False),
            pa.field("subject", pa.string(), nullable=False),
            pa.field("step", pa.int64()),
            pa.field("name", pa.string(), nullable=False),
            pa.field("value", pa.float64(), nullable=False),
            pa.field("error", pa.string()),
            pa.field("about", pa.string()),
        ]
    )


def to_table(measurements: Sequence[Measurement], *, dropped: Mapping[str, int]) -> pa.Table:
    """The table: ``number``, ``time_s``, ``kind``, ``subject``, ``step``, ``name``, ``value``, ``error``, ``about`` (JSON)."""
    import pyarrow as pa

    schema = _schema()
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for m in measurements:
        about = json.dumps(dict(m.about)) if m.about else None
        for name, value in m.values.items():
            row = (m.number, m.time_s, m.kind.value, m.subject, m.step, name, value, m.error, about)
            for column, cell in zip(columns.values(), row, strict=True):
                column.append(cell)
    metadata = {_ABOUT: _VERSION, _DROPPED: json.dumps(dict(dropped), sort_keys=True).encode()}
    return pa.table(columns, schema=schema.with_metadata(metadata))


def from_table(table: pa.Table, cid: Cid) -> tuple[list[Measurement], dict[str, int]]:
    """The measurements in a table that was read from ``cid``, and how many of each kind had been dropped.

    Raises:
        Corrupt: The table is another one, or breaks its own form.
    """
    metadata = table.schema.metadata or {}
    if metadata.get(_ABOUT) != _VERSION or not table.schema.equals(_schema()):
        raise Corrupt(f"{cid} is an Arrow table, but not one of measurements: {table.schema.names}")
    try:
        dropped = {Kind(kind).value: int(count) for kind, count in json.loads(metadata[_DROPPED]).items()}
        found: dict[int, Measurement] = {}
        values: dict[int, dict[str, float]] = {}
        for row in table.to_pylist():
            key = row["number"]
            values.setdefault(key, {})[row["name"]] = row["value"]
            if key not in found:
                found[key] = Measurement(
                    number=key,
                    time_s=row["time_s"],
                    kind=Kind(row["kind"]),
                    subject=row["subject"],
                    step=row["step"],
                    values=values[key],
                    error=row["error"],
                    about=json.loads(row["about"] or "{}"),
                )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"the measurements {cid} break their own form: {error!r}") from error
    return list(found.values()), dropped


def to_bytes(table: pa.Table) -> bytes:
    """An Arrow file of one table; equal tables give equal bytes with the same version of pyarrow."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def from_bytes(data: Buffer, cid: Cid) -> pa.Table:
    """The table in an Arrow file.

    Raises:
        Corrupt: It is no Arrow file.
    """
    import pyarrow as pa

    try:
        with pa.ipc.open_file(pa.py_buffer(data)) as reader:
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise Corrupt(f"{cid} is not a file of measurements: {error}") from error
    return table
