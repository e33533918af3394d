"""What is done to a batch between the dataset and whoever asked for it: images, text, then the caller's own function."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.schema import media_of
from holdfast.storage.loaders.images import BadImages, ImageDecoder, check_image_options
from holdfast.storage.loaders.text import TextTokenizer, Tokenize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.storage.datasets.dataset import Dataset

__all__ = ["BatchOptions", "BatchSteps", "Transform", "image_columns"]

_IMAGE = "image"

Transform: TypeAlias = Callable[[dict[str, Any]], Mapping[str, Any]]
"""Takes a batch as arrays with rows first; what it gives takes the batch's place."""


def image_columns(dataset: Dataset, columns: Sequence[str] | None = None) -> tuple[str, ...]:
    """The columns that hold encoded images, of all or of some."""
    return tuple(
        field.name
        for field in dataset.schema
        if media_of(field) == _IMAGE and (columns is None or field.name in columns)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """What the caller asked for; may be pickled if his functions may.

    Args:
        image_size: See :class:`ImageDecoder`.
        bad_images: See :class:`ImageDecoder`.
        tokenize: See :class:`TextTokenizer`.
        keep_text: See :class:`TextTokenizer`.
        transform: The last step, in NumPy.

    Raises:
        InvalidInput: One of them is impossible.
    """

    image_size: tuple[int, int] | None = None
    bad_images: BadImages = "fail"
    tokenize: Mapping[str, Tokenize] | None = None
    keep_text: bool = False
    transform: Transform | None = None

    def __post_init__(self) -> None:
        check_image_options(self.image_size, self.bad_images)
        TextTokenizer({} if self.tokenize is None else self.tokenize)
        if self.transform is not None and not callable(self.transform):
            raise InvalidInput(f"transform must take a batch, but {self.transform!r} can't be called")


class BatchSteps:
    """The steps at work, for one dataset in one process; may be called by several threads at once.

    Args:
        options: Which steps.
        dataset: Says which columns are images.
        columns: Those that are read; None for all.
        threads: How many decode images at once.

    Raises:
        InvalidInput: A column to tokenize is not read.
        Unsupported: Pillow is not installed, and there are images to decode.
    """

    def __init__(
        self,
        options: BatchOptions,
        dataset: Dataset,
        columns: Sequence[str] | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        for name in options.tokenize or {}:
            if name not in (dataset.columns if columns is None else columns):
                raise InvalidInput(
                    f"there is no column {name!r} to tokenize; read are {', '.join(columns or dataset.columns)}"
                )
        self._images = ImageDecoder(
            image_columns(dataset, columns),
            image_size=options.image_size,
            bad_images=options.bad_images,
            threads=threads,
        )
        self._text = TextTokenizer(options.tokenize, options.keep_text) if options.tokenize else None
        self._transform = options.transform
        self._lock = threading.Lock()
        self.image_s = 0.0
        """Seconds of image decoding, summed over batches."""

    @property
    def skipped_images(self) -> int:
        """Rows left out because an image could not be decoded."""
        return self._images.skipped

    def __bool__(self) -> bool:
        return bool(self._images.columns or self._text or self._transform)

    def __call__(self, batch: Mapping[str, Any], row_name: Callable[[int], str]) -> dict[str, Any]:
        """The batch after all steps.

        Raises:
            Corrupt: An image can't be decoded.
            InvalidInput: Images differ in size, a text is missing, or the transform gives no mapping.
        """
        done = dict(batch)
        if self._images.columns:
            began = time.perf_counter()
            done = self._images(done, row_name)
            with self._lock:
                self.image_s += time.perf_counter() - began
        if self._text is not None:
            done = self._text(done)
        if self._transform is None:
            return done
        made = self._transform(done)
        if not isinstance(made, Mapping):
            raise InvalidInput(
                f"transform must give a mapping from column to values, not {type(made).__name__}"
            )
        return dict(made)

    def close(self) -> None:
        """End the threads that decode images."""
        self._images.close()
