"""The tree that verification gives: what something is made of, and what of it is not as it must be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from holdfast.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from holdfast.registry.proof.signatures import Signed
    from holdfast.storage.cid import Cid

__all__ = ["BrokenLink", "Fault", "LineageNode"]

SEE_ABOVE = "see above"
"""The detail of a node that stands in the tree already, with all below it."""
_SHOWN = 3
"""Faults of one node that its line in the tree tells in full."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A block below a node that is missing or wrong."""

    path: tuple[str, ...]
    """The way to it from the node: names in directories, fields of records, positions in files."""
    cid: Cid
    problem: str


@dataclass(frozen=True, slots=True)
class BrokenLink:
    """One thing that is wrong, and the way to it."""

    path: tuple[str, ...]
    """Roles from the root on, then the way inside the last one."""
    cid: Cid
    """Where the path ends."""
    problem: str

    def __str__(self) -> str:
        return printable(f"{' → '.join(self.path)}  {self.cid}: {self.problem}")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"path": list(self.path), "cid": str(self.cid), "problem": self.problem}


@dataclass(slots=True)
class LineageNode:
    """One thing in the tree: a record, a file or a directory, and whether it is what its CID says."""

    role: str
    """What it is to its parent: ``weights``, ``run``, ``data``, ..."""
    kind: str
    cid: Cid
    blocks: int = 0
    """How many blocks of it were read and hashed."""
    size_bytes: int = 0
    """Their bytes."""
    hashed: bool = False
    """Whether every byte of it was hashed, and not only its record, or the first block of a file."""
    error: str | None = None
    detail: str = ""
    faults: list[Fault] = field(default_factory=list)
    signatures: list[Signed] = field(default_factory=list)
    children: list[LineageNode] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether this and everything below it was read and matched, and no signature on any of it is wrong."""
        return not any(True for _ in self.broken())

    def flat(self) -> Iterator[LineageNode]:
        """This node and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.flat()

    def broken(self, above: tuple[str, ...] = ()) -> Iterator[BrokenLink]:
        """Everything that is wrong, each with the exact way to it from the root, parents first.

        Args:
            above: The roles on the way to this node.
        """
        path = (*above, self.role)
        if self.error is not None:
            yield BrokenLink(path, self.cid, self.error)
        for fault in self.faults:
            yield BrokenLink(path + fault.path, fault.cid, fault.problem)
        for signed in self.wrong_signatures():
            yield BrokenLink((*path, "signature"), signed.attestation, f"{signed.keyid}: {signed.problem}")
        for child in self.children:
            yield from child.broken(path)

    def wrong_signatures(self) -> list[Signed]:
        """Those that prove nothing; one by a key of an unknown form is no fault beside a right one."""
        proved = {one.attestation for one in self.signatures if one.problem is None}
        return [
            one
            for one in self.signatures
            if one.problem is not None and (one.key is not None or one.attestation not in proved)
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values, nested."""
        return {
            "role": self.role,
            "kind": self.kind,
            "cid": str(self.cid),
            "ok": self.ok,
            "blocks": self.blocks,
            "size_bytes": self.size_bytes,
            "hashed": self.hashed,
            "error": self.error or self._faults_in_words(),
            "detail": self.detail,
            "broken": [link.to_json() for link in self.broken()],
            "signatures": [one.to_json() for one in self.signatures],
            "children": [child.to_json() for child in self.children],
        }

    def render(self) -> str:
        """The tree as text: one line for each node, with a tick, a cross, or an arrow to where it stands already, and one for each signature."""
        return "\n".join(self._lines("", ""))

    def _lines(self, first: str, rest: str) -> Iterator[str]:
        wrong = self.error or self._faults_in_words()
        size = f"{self.blocks} block{'s' * (self.blocks != 1)}, {self.size_bytes:,} B"
        label = self.role if self.role == self.kind else f"{self.role} ({self.kind})"
        told = wrong or ", ".join(filter(None, (size if self.blocks else "", self.detail)))
        tick = "✗" if wrong else "↑" if self.detail == SEE_ABOVE else "✓"
        yield first + printable(f"{tick} {label}  {self.cid}  {told}")
        bar = "│  " if self.children else "   "
        failed = self.wrong_signatures()
        for one in self.signatures:
            mark = "✗" if one in failed else "✓" if one.problem is None else "?"
            said = one.problem or ("" if one.vouches else f"states {one.predicate_type}")
            yield rest + bar + printable(f"{mark} signed by {one.who}{f': {said}' if said else ''}")
        for index, child in enumerate(self.children):
            last = index == len(self.children) - 1
            yield from child._lines(  # noqa: SLF001 -- of its own class
                rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  ")
            )

    def _faults_in_words(self) -> str | None:
        if not self.faults:
            return None
        told = [f"{'/'.join(fault.path) or 'its root'}: {fault.problem}" for fault in self.faults[:_SHOWN]]
        more = len(self.faults) - len(told)
        return "; ".join(told) + (f"; and {more} more" if more else "")
