"""Batches for JAX and TensorFlow, which are optional."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.errors import InvalidInput, require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["jax_converter", "tensorflow_dataset"]


def jax_converter() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What turns a batch's numbers into JAX arrays on the default device; text and dates stay what they are.

    Raises:
        Unsupported: JAX is not installed.
    """
    jax = require("jax", extra="jax", why="to_jax()")

    def convert(batch: dict[str, Any]) -> dict[str, Any]:
        numbers = {
            name: values
            for name, values in batch.items()
            if isinstance(values, np.ndarray) and values.dtype.kind in "biufc"
        }
        if not jax.config.jax_enable_x64:
            for name, values in numbers.items():
                _fits_32_bits(name, values)
        placed = jax.device_put(numbers)
        return {
            name: placed[name]
            if name in placed
            else values.tolist()
            if isinstance(values, np.ndarray) and values.dtype == object
            else values
            for name, values in batch.items()
        }

    return convert


def _fits_32_bits(name: str, values: np.ndarray[Any, Any]) -> None:
    """Refuse integers that JAX would cut off without a word."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize < 8 or not values.size:
        return
    narrow = np.iinfo(np.int32 if values.dtype.kind == "i" else np.uint32)
    if values.min() < narrow.min or values.max() > narrow.max:
        raise InvalidInput(
            f"column {name!r} has numbers from {values.min()} to {values.max()}, which JAX would cut off to 32 bits: "
            "jax.config.update('jax_enable_x64', True) keeps them"
        )


def tensorflow_dataset(batches: Iterable[dict[str, Any]], first_batch: Callable[[], dict[str, Any]]) -> Any:
    """A ``tf.data.Dataset`` over batches that can be iterated again and again.

    Args:
        batches: Dicts of NumPy arrays.
        first_batch: Gives one of them, which shows the types and the number of dimensions. All sizes but those of tensors may
            differ from batch to batch.

    Raises:
        Unsupported: TensorFlow is not installed.
    """
    tf = require("tensorflow", extra="tensorflow", why="to_tensorflow()")

    def plain(name: str, values: Any) -> np.ndarray[Any, Any]:
        array = np.asarray(values)
        if array.dtype.kind in "biufcSU":
            return array
        if array.dtype == object and all(isinstance(value, (str, bytes)) for value in array.flat):
            return array
        raise InvalidInput(
            f"column {name!r} has no form in TensorFlow: dates, missing values and lists of different lengths have none; "
            "leave it out with columns=, or change it with transform="
        )

    def signature(name: str, values: Any) -> Any:
        array = plain(name, values)
        kind = tf.string if array.dtype.kind in "OSU" else tf.as_dtype(array.dtype)
        return tf.TensorSpec(shape=(None,) * array.ndim, dtype=kind)

    def generate() -> Any:
        for batch in batches:
            yield {name: plain(name, values) for name, values in batch.items()}

    first = first_batch()
    return tf.data.Dataset.from_generator(
        generate, output_signature={name: signature(name, values) for name, values in first.items()}
    )
