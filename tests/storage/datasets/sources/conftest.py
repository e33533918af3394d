"""The same few rows, and images, for every kind of source."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from holdfast.storage.datasets.sources import Source, open_sources

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def table_of(source: Source) -> pa.Table:
    """All rows of a source, with the types that only differ in their layout made one."""
    table = pa.Table.from_batches(source.batches(), source.schema)
    plain = {
        pa.large_string(): pa.string(),
        pa.string_view(): pa.string(),
        pa.large_binary(): pa.binary(),
        pa.dictionary(pa.uint32(), pa.string()): pa.string(),
    }
    types = [field.with_type(plain.get(field.type, field.type)) for field in table.schema]
    return table.cast(pa.schema(types)).combine_chunks()


@pytest.fixture
def read() -> Callable[..., pa.Table]:
    """The rows of what has one split only."""

    def read(*args, **options) -> pa.Table:
        sources = open_sources(*args, **options)
        assert list(sources) == ["train"]
        return table_of(sources["train"])

    return read


@pytest.fixture
def read_splits() -> Callable[..., dict[str, pa.Table]]:
    def read(*args, **options) -> dict[str, pa.Table]:
        return {split: table_of(source) for split, source in open_sources(*args, **options).items()}

    return read


@pytest.fixture
def rows() -> list[dict[str, object]]:
    return [{"n": i, "x": i / 4, "s": f'text {i}, "quoted"\nand more', "b": i % 3 == 0} for i in range(2500)]


@pytest.fixture
def table(rows) -> pa.Table:
    return pa.Table.from_pylist(rows)


@pytest.fixture
def png() -> Callable[[int], bytes]:
    """A small image of one grey, encoded."""
    image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install 'holdfast[images]'")

    def png(grey: int) -> bytes:
        buffer = io.BytesIO()
        image.fromarray(np.full((4, 5, 3), grey, np.uint8)).save(buffer, format="PNG")
        return buffer.getvalue()

    return png


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes | str], Path]:
    """Writes a file under the test's folder, with the folders that it needs."""

    def write(name: str, content: bytes | str) -> Path:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
