"""A computation before it is done: all that its result depends on, and the CID of that, which is its key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from holdfast.errors import Corrupt, InvalidInput
from holdfast.storage.cid import DAG_CBOR, Cid
from holdfast.storage.formats import dag_cbor

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Computation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Computation:
    """What is to be computed. Two of them with the same key give the same result.

    Raises:
        InvalidInput: It holds a value that no record can hold.
    """

    function: str
    """What is done: ``train``, ``convert`` or ``index``."""
    code: Cid | None = None
    """The code record that runs; None where it is holdfast's own, whose version is in the environment."""
    inputs: Mapping[str, Cid] = field(default_factory=dict)
    """What goes in, by role: ``data``, ``model``, ..."""
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    """What it runs on, as far as it can change numbers; see :func:`~holdfast.registry.compute.environment.numeric_environment`."""

    def __post_init__(self) -> None:
        if not self.function:
            raise InvalidInput("a computation has a function, such as 'train'")
        try:
            self.encode()
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"the computation {self.function!r} can't be recorded: {error}") from error

    @property
    def key(self) -> Cid:
        """The CID of its record."""
        return Cid.of(self.encode(), DAG_CBOR)

    def to_record(self) -> dict[str, Any]:
        """Plain values and Cids, as they are hashed."""
        return {
            "kind": "computation",
            "function": self.function,
            "code": self.code,
            "inputs": dict(self.inputs),
            "config": dict(self.config),
            "environment": dict(self.environment),
        }

    def encode(self) -> bytes:
        """The record's bytes; :meth:`decode` reads them."""
        return dag_cbor.encode(self.to_record())

    @classmethod
    def decode(cls, data: bytes) -> Computation:
        """The computation that :meth:`encode` wrote.

        Raises:
            Corrupt: It is none.
        """
        record = dag_cbor.decode(data)
        body = (
            {name: value for name, value in record.items() if name != "kind"}
            if isinstance(record, dict)
            else {}
        )
        code = body.get("code")
        plain = all(isinstance(body.get(name), dict) for name in ("inputs", "config", "environment"))
        if (
            not plain
            or not isinstance(body.get("function"), str)
            or not (code is None or isinstance(code, Cid))
        ):
            raise Corrupt(f"this record is not a computation: {record!r:.100}")
        try:
            return cls(**body)
        except TypeError as error:
            raise Corrupt(f"the computation has other fields than it must: {error}") from error

    def flat(self) -> dict[str, Any]:
        """Every value under its dotted path: ``config.lr``, ``environment.packages.torch``, ``inputs.data``.

        A name with a dot in it is quoted, so that no two paths are the same.
        """
        found: dict[str, Any] = {"function": self.function, "code": self.code}
        for field_name in ("inputs", "config", "environment"):
            for name, value in getattr(self, field_name).items():
                found.update(_flat(f"{field_name}.{_quoted(name)}", value))
        return found


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(f"{path}.{_quoted(name)}", inner)
    else:
        yield path, value


def _quoted(name: str) -> str:
    return json.dumps(name) if not name or "." in name or '"' in name else name
