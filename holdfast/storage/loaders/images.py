"""Encoded images become arrays of pixels, in threads: Pillow gives up the GIL while it decodes and resizes."""

from __future__ import annotations

import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from holdfast.errors import Corrupt, InvalidInput, require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import ModuleType

__all__ = ["BadImages", "ImageDecoder", "check_image_options"]

BadImages = Literal["fail", "skip"]

_WIDE_MODES = ("I", "F")
"""Pillow's modes of more than 8 bits begin like this. Made 8 bits, their values would be clipped without a word."""


class ImageDecoder:
    """Turns the image columns of a batch into uint8 arrays of shape [rows, 3, height, width].

    Grey, palette and CMYK images become RGB; transparency is dropped; of an animation the first frame counts. Orientation that
    a camera noted is not applied.

    Args:
        columns: The columns with encoded images, such as JPEG or PNG.
        image_size: Height and width to resize all images to (bilinear, with antialiasing); None leaves them as they are,
            and then those of a batch must have one size.
        bad_images: What becomes of a row with an image that can't be decoded: ``"fail"`` raises, ``"skip"`` leaves
            the row out of its batch, which is then shorter, and counts it in :attr:`skipped`.
        threads: How many decode at once; default: one a CPU, and 4 at most.

    Raises:
        InvalidInput: ``image_size``, ``bad_images`` or ``threads`` is impossible.
        Unsupported: Pillow is not installed.
    """

    def __init__(
        self,
        columns: Iterable[str],
        *,
        image_size: tuple[int, int] | None = None,
        bad_images: BadImages = "fail",
        threads: int | None = None,
    ) -> None:
        check_image_options(image_size, bad_images)
        if threads is not None and threads < 1:
            raise InvalidInput(f"threads={threads}: at least one must decode")
        self.columns = tuple(columns)
        self.skipped = 0
        self._pillow = require("PIL.Image", extra="images", why="decoding images") if self.columns else None
        self._size = None if image_size is None else (image_size[0], image_size[1])
        self._skip = bad_images == "skip"
        self._threads = threads or min(4, os.cpu_count() or 1)
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the threads; the next batch would start new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)

    def __call__(
        self, batch: Mapping[str, Any], row_name: Callable[[int], str] = lambda at: f"row {at} of the batch"
    ) -> dict[str, Any]:
        """The batch with pixels in the place of encoded images.

        Args:
            batch: One array or list a column, rows first.
            row_name: What to call a row, by its number in the batch, in errors.

        Raises:
            Corrupt: An image can't be decoded, and ``bad_images`` is ``"fail"``.
            InvalidInput: The images have different sizes, and no ``image_size`` was asked for.
        """
        present = [name for name in self.columns if name in batch]
        if not present:
            return dict(batch)
        decoded = {name: self._decode(batch[name]) for name in present}
        bad: dict[int, str] = {}
        for name, images in decoded.items():
            for row, image in enumerate(images):
                if isinstance(image, str):
                    bad.setdefault(row, f"{row_name(row)}, column {name!r}: {image}")
        if bad and not self._skip:
            more = f" ({len(bad) - 1} more in the same batch)" if len(bad) > 1 else ""
            raise Corrupt(
                f"an image can't be decoded: {bad[min(bad)]}{more}; bad_images='skip' leaves such rows out"
            )
        done = dict(batch)
        if bad:
            with self._lock:
                self.skipped += len(bad)
            rows = len(next(iter(decoded.values())))
            kept = [row for row in range(rows) if row not in bad]
            done = {name: _rows_of(values, kept) for name, values in done.items()}
            decoded = {name: [images[row] for row in kept] for name, images in decoded.items()}
            names = [row_name(row) for row in kept]
        else:
            names = [row_name(row) for row in range(len(decoded[present[0]]))] if not self._size else []
        for name, images in decoded.items():
            done[name] = self._stacked(name, images, names)
        return done

    def _decode(self, values: Sequence[Any]) -> list[np.ndarray[Any, Any] | str]:
        """Each image's pixels, or why there are none."""
        if self._threads == 1 or len(values) < 2:
            return [self._decode_one(value) for value in values]
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="holdfast-images")
            pool = self._pool
        return list(pool.map(self._decode_one, values))

    def _decode_one(self, value: Any) -> np.ndarray[Any, Any] | str:
        if value is None:
            return "the value is missing"
        pillow: ModuleType = self._pillow  # type: ignore[assignment]  # there is a column, so it was imported
        try:
            with pillow.open(io.BytesIO(value)) as image:
                if image.mode.startswith(_WIDE_MODES):
                    return f"its pixels have the mode {image.mode}, which 8 bits can't hold"
                rgb = image.convert("RGB")
            if self._size is not None and rgb.size != self._size[::-1]:
                rgb = rgb.resize(self._size[::-1], pillow.Resampling.BILINEAR)
            return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))
        except Exception as error:  # noqa: BLE001 -- a broken file makes Pillow's formats raise anything
            return f"{type(error).__name__}: {error}"[:200]

    def _stacked(self, name: str, images: list[Any], names: Sequence[str]) -> np.ndarray[Any, Any]:
        if not images:
            return np.empty((0, 3, *(self._size or (0, 0))), dtype=np.uint8)
        for row, image in enumerate(images):
            if image.shape != images[0].shape:
                raise InvalidInput(
                    f"the images of column {name!r} have different sizes: {_size(images[0])} in {names[0]}, "
                    f"{_size(image)} in {names[row]}; image_size=(height, width) makes them one size"
                )
        return np.stack(images)


def check_image_options(image_size: tuple[int, int] | None, bad_images: str) -> None:
    """Refuse options that can't be.

    Raises:
        InvalidInput: As it says.
    """
    if bad_images not in ("fail", "skip"):
        raise InvalidInput(f"bad_images is 'fail' or 'skip', not {bad_images!r}")
    if image_size is not None and (
        not isinstance(image_size, (tuple, list))
        or len(image_size) != 2
        or not all(isinstance(side, int) and side > 0 for side in image_size)
    ):
        raise InvalidInput(f"image_size is (height, width) in pixels, not {image_size!r}")


def _rows_of(values: Any, rows: list[int]) -> Any:
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]


def _size(image: np.ndarray[Any, Any]) -> str:
    return f"{image.shape[1]}x{image.shape[2]}"
