"""torch: datasets with a length and an index, iterable ones, and tensors."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.sources.arrays import open_arrays
from holdfast.storage.datasets.sources.rows import open_rows
from holdfast.storage.datasets.sources.source import in_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from holdfast.storage.datasets.sources.source import BatchSource

__all__ = [
    "as_array",
    "is_map_style",
    "is_tensor",
    "is_torch_dataset",
    "open_samples",
    "open_tensors",
    "open_torch",
]


def is_tensor(data: Any) -> bool:
    """Whether it is a torch tensor; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(data, torch.Tensor)


def is_torch_dataset(data: Any) -> bool:
    """Whether :func:`open_torch` takes it."""
    utils = sys.modules.get("torch.utils.data")
    return utils is not None and isinstance(data, (utils.Dataset, utils.DataLoader))


def as_array(tensor: Any, name: str) -> Any:
    """A tensor as a NumPy array that shares its memory where it is on the CPU.

    Raises:
        InvalidInput: NumPy has no such type.
    """
    try:
        return tensor.detach().cpu().numpy()
    except (TypeError, RuntimeError) as error:
        raise InvalidInput(
            f"the tensor {name!r} of {tensor.dtype} has no NumPy form ({error}): convert it, such as by .float()"
        ) from error


def open_tensors(tensors: Mapping[str, Any]) -> BatchSource:
    """Tensors as columns, rows first."""
    return open_arrays(
        {name: as_array(tensor, name) for name, tensor in tensors.items()}, what="the torch tensors"
    )


def open_torch(data: Any) -> BatchSource:
    """A torch dataset as a source: columns ``"0"``, ``"1"``, ... of samples that are tuples, or the keys of mappings.

    Raises:
        InvalidInput: It is a loader, or has no samples.
    """
    from torch.utils import data as utils

    if isinstance(data, utils.DataLoader):
        raise InvalidInput(
            "a torch DataLoader gives batches, not rows: give the dataset behind it (loader.dataset)"
        )
    if isinstance(data, utils.TensorDataset):
        return open_tensors({str(number): tensor for number, tensor in enumerate(data.tensors)})
    if isinstance(data, utils.IterableDataset):
        what = f"the torch dataset {type(data).__name__}"
        return open_rows(
            lambda: (_row(sample, number, what) for number, sample in enumerate(data)), what=what
        )
    return open_samples(data)


def open_samples(data: Any) -> BatchSource:
    """Anything with a length and ``data[i]``, as torch's map-style datasets have."""
    what = f"the dataset {type(data).__name__}"
    try:
        rows = len(data)
    except (TypeError, NotImplementedError) as error:
        raise InvalidInput(
            f"{what} has no length: make it a torch IterableDataset, or give its rows"
        ) from error

    def samples() -> Iterator[Mapping[str, Any]]:
        for number in range(rows):
            yield _row(data[number], number, what)

    return open_rows(samples, what=what, rows=rows)


def _row(sample: Any, number: int, what: str) -> Mapping[str, Any]:
    if isinstance(sample, Mapping):
        return sample
    fields = getattr(sample, "_fields", None)
    if isinstance(sample, tuple) and fields is not None:
        return dict(zip(fields, sample, strict=True))
    if isinstance(sample, (tuple, list)):
        if not sample:
            raise InvalidInput(
                f"{what}, row {number} (the first is 0) is {in_words(sample)}: it has no values"
            )
        return {str(position): value for position, value in enumerate(sample)}
    return {"0": sample}


def is_map_style(data: Any) -> bool:
    """Whether :func:`open_samples` takes it, torch or not."""
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not hasattr(data, "__iter__")
