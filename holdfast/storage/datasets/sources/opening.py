"""One door for everything that holds rows: looks at what it is given and opens it as sources, one a split."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.sources import arrow, frames, hugging_face, torch_data
from holdfast.storage.datasets.sources.arrays import column_array, column_field, columns_of_array, open_arrays
from holdfast.storage.datasets.sources.folders import SPLITS, open_path, open_split
from holdfast.storage.datasets.sources.images import verified
from holdfast.storage.datasets.sources.rows import open_rows, row_error
from holdfast.storage.datasets.sources.values import Misfit, convert, infer_field

if TYPE_CHECKING:
    from holdfast.storage.datasets.sources.source import BatchSource, Source

__all__ = ["VerifyImages", "open_sources"]

VerifyImages: TypeAlias = Literal["fail", "skip"] | None

DEFAULT_SPLIT = "train"


def open_sources(
    data: Any = None,
    *,
    path: str | os.PathLike[str] | None = None,
    format: str | None = None,  # noqa: A002 -- what every library calls it
    verify_images: VerifyImages = None,
) -> dict[str, Source]:
    """Open data of any kind as one source a split. Nothing is read beyond what tells the columns.

    Args:
        data: Rows in memory or behind an iterator: an Arrow table, batch, reader or dataset, or anything with
            ``__arrow_c_stream__`` (polars, DuckDB); a pandas frame; NumPy arrays or a mapping from column to
            array, tensor or list; a torch dataset or tensor; a Hugging Face dataset; rows as mappings in a sequence,
            generator or other iterable. Or a mapping from split to any of these. A path is taken, too.
        path: A file or a folder, instead of ``data``: Parquet, CSV, TSV, JSON Lines, Arrow IPC, Feather, NumPy or an
            image; a folder of such files, in the order of their names; a folder with a folder of images for each
            class. Folders or file names that begin with train, test, validation, val or dev make splits.
        format: What the files are, where their names don't tell: ``parquet``, ``csv``, ``tsv``, ``jsonl``, ``arrow``,
            ``npy``, ``npz`` or ``image``.
        verify_images: Decode each image once: ``"fail"`` raises at the first that can't be, ``"skip"`` leaves its row
            out and counts it in the source's ``skipped``. Images are taken as they are without it.

    Returns:
        The sources by split; ``{"train": ...}`` where the data says nothing of splits.

    Raises:
        InvalidInput: The data is of no kind that can be stored, has no rows to tell its columns from, or does
            not fit together; the message says where and what to do.
        NotFound: There is no such file or folder.
        Corrupt: A file is damaged or ends too early.
        Unsupported: A package that the data needs is not installed.
    """
    if (data is None) == (path is None):
        raise InvalidInput("give either data or a path to store as a dataset, and not both")
    if verify_images not in {None, "fail", "skip"}:
        raise InvalidInput(f"verify_images is 'fail', 'skip' or None, not {verify_images!r}")
    given = path if path is not None else data
    if isinstance(given, str) and not given:
        raise InvalidInput("the path is empty: name a file or a folder")
    if isinstance(given, (str, os.PathLike)):
        found = open_path(Path(given), format)
    elif format is not None:
        raise InvalidInput(f"format={format!r} says what files are; {type(data).__name__} is none")
    elif isinstance(given, Mapping):
        found = _open_mapping(given)
    else:
        found = _open_one(given)
    sources: dict[str, BatchSource] = found if isinstance(found, dict) else {DEFAULT_SPLIT: found}
    if verify_images is None:
        return dict(sources)
    return {split: verified(source, verify_images, what=source.what) for split, source in sources.items()}


def _open_mapping(data: Mapping[Any, Any]) -> dict[str, BatchSource] | BatchSource:
    """A mapping is one from split to data, unless all its values are columns."""
    if not data:
        raise InvalidInput("the mapping is empty: there is nothing to store")
    if hugging_face.is_dataset_dict(data):
        return {str(split): hugging_face.open_dataset(part) for split, part in data.items()}
    columns = [name for name, values in data.items() if _is_column(values)]
    if len(columns) == len(data):
        if all(name in SPLITS for name in data):
            raise InvalidInput(
                f"are {', '.join(data)} columns or splits? For splits of plain arrays name the column, as in "
                "{'train': {'data': array}}; for columns of that name give a pyarrow table"
            )
        return _open_columns(data)
    if columns:
        raise InvalidInput(
            f"in the mapping {', '.join(map(repr, columns))} are columns and the others are not: give columns only, or a "
            "mapping from split to tables"
        )
    sources = {}
    for split, part in data.items():
        if not isinstance(split, str) or not split:
            raise InvalidInput(f"{split!r} is no name of a split: it is text")
        if isinstance(part, (str, os.PathLike)):
            sources[split] = open_split(Path(part))
            continue
        opened = _open_mapping(part) if isinstance(part, Mapping) else _open_one(part)
        if isinstance(opened, dict):
            raise InvalidInput(f"the split {split!r} has splits itself: {', '.join(opened)}")
        sources[split] = opened
    return sources


def _is_column(values: Any) -> bool:
    """Whether a value of a mapping is a column: an array, a series or a tensor, or a list of what are no rows."""
    if isinstance(values, np.ndarray):
        return values.dtype.names is None
    if (
        isinstance(values, (pa.Array, pa.ChunkedArray))
        or frames.is_series(values)
        or torch_data.is_tensor(values)
    ):
        return True
    return isinstance(values, (list, tuple)) and not any(isinstance(value, Mapping) for value in values[:1])


def _open_columns(columns: Mapping[str, Any]) -> BatchSource:
    arrays = {
        name: torch_data.as_array(values, name) if torch_data.is_tensor(values) else values
        for name, values in columns.items()
    }
    if all(isinstance(values, np.ndarray) for values in arrays.values()):
        return open_arrays(arrays)
    return arrow.from_columns({name: _as_arrow(name, values) for name, values in arrays.items()})


def _as_arrow(name: str, values: Any) -> Any:
    what = "the columns"
    if isinstance(values, np.ndarray):
        return column_array(values, column_field(name, values, what=what), 0, what=what)
    if frames.is_series(values):
        return frames.series_array(name, values)
    if isinstance(values, (list, tuple)):
        try:
            return convert(values, infer_field(name, values))
        except Misfit as error:
            raise row_error(what, error.index, name, error.value, error.reason) from error
    return values


def _open_one(data: Any) -> BatchSource:
    """Data of one split, which is no mapping."""
    if frames.is_frame(data):
        return frames.open_frame(data)
    if hugging_face.is_dataset(data):
        return hugging_face.open_dataset(data)
    if isinstance(data, np.ndarray):
        return open_arrays(columns_of_array(data), what="the NumPy array")
    if torch_data.is_tensor(data):
        return torch_data.open_tensors({"data": data})
    if torch_data.is_torch_dataset(data):
        return torch_data.open_torch(data)
    if isinstance(data, (pa.Array, pa.ChunkedArray)) or frames.is_series(data):
        raise InvalidInput(f"a {type(data).__name__} has no name for its column: give {{'name': values}}")
    if arrow.is_arrow(data):
        return arrow.open_arrow(data)
    if torch_data.is_map_style(data):
        return torch_data.open_samples(data)
    if isinstance(data, Iterable) and not isinstance(data, (bytes, bytearray, memoryview)):
        what = f"the {type(data).__name__}"
        once = isinstance(data, Iterator)
        rows = len(data) if isinstance(data, Sequence) else None
        return open_rows(lambda: iter(data), what=what, rows=rows, once=once)
    raise InvalidInput(
        f"{type(data).__module__}.{type(data).__name__} is nothing that holds rows. A dataset is made from Arrow, pandas, polars "
        "or NumPy data, torch and Hugging Face datasets, rows as mappings, or files and folders"
    )
