"""Where a pass over a dataset is: enough to go on exactly there, with any number of workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from holdfast.errors import InvalidInput

if TYPE_CHECKING:
    from holdfast.storage.cid import Cid

__all__ = ["REMAINDERS", "LoaderState"]

_VERSION = 2
REMAINDERS = ("keep", "drop", "pad")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderState:
    """How far an epoch is, counted in rows of all workers together.

    It says nothing about ranks or batch sizes: whoever goes on from it may have others. Workers that go on with another
    number of workers need one common position, so they save their states after the same number of batches.
    """

    dataset: str
    """The dataset's CID as text."""
    split: str
    seed: int
    epoch: int
    position: int
    """Rows of the epoch's global order that all workers together have received; all of them, and more if the end was
    padded, when it is over."""
    shuffle: bool
    remainder: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, DAG-CBOR or a checkpoint."""
        return {"version": _VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` gave.

        Raises:
            InvalidInput: It is something else.
        """
        if not isinstance(values, Mapping):
            raise InvalidInput(f"a loader's state is a mapping, not {type(values).__name__}")
        if values.get("version") != _VERSION:
            raise InvalidInput(
                f"this is no loader's state of version {_VERSION}: its version is {values.get('version')!r}"
            )
        given: dict[str, Any] = {}
        for field in fields(cls):
            kind: type = {"str": str, "int": int, "bool": bool}[str(field.type)]
            value = values.get(field.name)
            if type(value) is not kind or (isinstance(value, int) and value < 0):
                raise InvalidInput(f"a loader's state has no {field.name} like {value!r}")
            given[field.name] = value
        if given["remainder"] not in REMAINDERS:
            raise InvalidInput(f"a loader's state has no remainder like {given['remainder']!r}")
        return cls(**given)

    def check(self, *, dataset: Cid, split: str, rows: int) -> None:
        """See that the state was saved over this split of this dataset, which has so many rows.

        Raises:
            InvalidInput: It was another one, and the message says both; or it stands behind the last row.
        """
        if self.dataset != str(dataset) or self.split != split:
            raise InvalidInput(
                f"the state was saved over split {self.split!r} of dataset {self.dataset}, but this loader reads split "
                f"{split!r} of dataset {dataset}: load it into a loader of the same dataset"
            )
        if self.position > rows and self.remainder != "pad":
            raise InvalidInput(
                f"a loader's state stands behind {self.position} rows, but split {split!r} of dataset {dataset} has {rows}"
            )
