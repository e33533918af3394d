"""What every kind of data is turned into before it is stored: a schema and a stream of bounded batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.batch_sizes import bounded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = [
    "BATCH_BYTES",
    "IMAGE",
    "MEDIA",
    "BatchSource",
    "Source",
    "check_columns",
    "in_words",
    "reworded",
    "rows_a_batch",
]

BATCH_BYTES = 8 << 20
"""What a batch holds at most, unless a single row is larger."""
MEDIA = b"holdfast.media"
"""Key of a field's metadata that says what its bytes are."""
IMAGE = b"image"
"""Value of :data:`MEDIA` for encoded images: PNG, JPEG or whatever the file was."""


class Source(Protocol):
    """One split of something that holds rows, as it was found.

    Nothing is normalised here: types may be views, dictionaries or large ones, and batches have any number of rows. Who
    stores it normalises, and merges ``metadata`` into what the manifest says about the dataset (what the caller gives
    wins). The only mark on a field is ``{MEDIA: IMAGE}``, which belongs to the data and is to be kept.
    """

    @property
    def schema(self) -> pa.Schema:
        """The columns; every batch has exactly these. No two have the same name."""

    @property
    def rows(self) -> int | None:
        """How many rows ``batches`` will give, where that is known without reading them."""

    @property
    def size_bytes(self) -> int | None:
        """About how much is to be read, where that is known: for a progress bar, not a promise."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Plain values that belong to the data: ``classes`` names the labels of each column of class numbers."""

    @property
    def skipped(self) -> int:
        """Rows left out because their image is unreadable, so far. Only ``verify_images="skip"`` leaves out any."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in order, in batches of about ``BATCH_BYTES`` at most, reading on as they are asked for.

        Files and tables give them again at each call; readers and generators once.

        Raises:
            InvalidInput: A row does not fit; the message has the file, row, column and value. Or the rows of a
                reader or generator were given already.
            Corrupt: A file is damaged or ends too early.
            NotFound: A file has gone since it was opened.
        """


@dataclass(slots=True, kw_only=True)
class BatchSource:
    """A :class:`Source` over a function that reads.

    Args:
        schema: What the batches have.
        read: Starts reading and gives the batches, of any size.
        what: Names the data in errors: ``"the Arrow reader"``, or a path.
        once: The data can be read only once.
        locate: Names a row in errors, such as by its image's path; without it rows are named by number.
    """

    schema: pa.Schema
    read: Callable[[], Iterable[pa.RecordBatch]]
    what: str
    rows: int | None = None
    size_bytes: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    once: bool = False
    locate: Callable[[int], str] | None = None
    skipped: int = 0
    _given: bool = False

    def __post_init__(self) -> None:
        check_columns(self.schema.names, what=self.what)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """See :meth:`Source.batches`."""
        if self.once and self._given:
            raise InvalidInput(f"{self.what} can be read only once, and was: open it anew")
        self._given = True
        return self._batches()

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for batch in self.read():
            yield from bounded(batch, BATCH_BYTES)


def rows_a_batch(rows: int, size_bytes: int) -> int:
    """How many rows make a batch, by the average of what is known about all of them."""
    return max(1, min(rows, 1 << 20, BATCH_BYTES * rows // max(1, size_bytes))) if rows else 1


def check_columns(names: Iterable[str], *, what: str) -> None:
    """Refuse a table that nobody could read by column.

    Raises:
        InvalidInput: Two columns have the same name, or there is none.
    """
    names = list(names)
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise InvalidInput(
            f"{what} has several columns of the same name: {', '.join(map(repr, twice))}; rename all but one"
        )
    if not names:
        raise InvalidInput(f"{what} has no columns: there is nothing to store")


def in_words(value: Any) -> str:
    """A value for an error message, however large it is."""
    if isinstance(value, (str, bytes)):  # its text would be built whole otherwise
        value = value[:80] if len(value) > 80 else value
    try:
        text = repr(value)
        if not isinstance(value, (str, bytes)):
            text = " ".join(text.split())  # arrays are shown on several lines
    except Exception as error:  # noqa: BLE001 -- the caller's own class; its value is what can't be shown
        text = f"<{type(value).__name__}, whose repr failed: {type(error).__name__}>"
    return text if len(text) <= 100 else f"{text[:97]}..."


def reworded(batches: Iterable[pa.RecordBatch], *, what: str) -> Iterator[pa.RecordBatch]:
    """The batches; an error of Arrow's on the way becomes one that names ``what`` and the rows read before.

    Raises:
        InvalidInput: Arrow could not go on.
    """
    rows = 0
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator, None)
        except pa.ArrowException as error:
            raise InvalidInput(f"{what} can't be read on after {rows} rows: {error}") from error
        if batch is None:
            return
        rows += batch.num_rows
        yield batch
