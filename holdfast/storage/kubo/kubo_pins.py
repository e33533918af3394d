"""What an IPFS daemon keeps: its pins, and holds, which are entries of its mutable file system (MFS)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from holdfast.errors import InvalidInput, NotFound
from holdfast.storage.block_store import Pin
from holdfast.storage.cid import DAG_PB, Cid
from holdfast.storage.formats.dag import reachable
from holdfast.storage.formats.dag_pb import PbLink, PbNode, UnixFs, UnixFsType, encode_node

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from holdfast.storage.kubo.kubo_store import KuboStore

__all__ = ["KuboPins"]

_HOLDS = "/holdfast"
_TIMEOUT = (5.0, 600.0)
"""To connect, and to answer: a recursive pin reads everything below it."""
MAX_LABEL_BYTES = 400


class KuboPins:
    """The pins of a daemon, whoever set them; implements :class:`SupportsPins`.

    A hold is a small directory in the daemon's MFS that links to what is held. Kubo's garbage collection keeps as much as
    is there of everything that MFS leads to.
    """

    def __init__(self, store: KuboStore) -> None:
        self._store = store
        self._rpc = store.rpc

    # ------------------------------------------------------------------------------------------- pins

    def pin(self, cid: Cid, *, recursive: bool = True, name: str = "") -> None:
        """Keep ``cid``; pinning again changes the name, and recursive stays recursive.

        Kubo keeps names since 0.27; before, they are dropped.

        Raises:
            NotFound: A block of what is to be kept is not in the daemon.
        """
        if not recursive:
            recursive = any(pin.cid == cid for pin in self._pins_of("recursive"))
        options: dict[str, Any] = {"offline": True, "name": name}
        if not self._store.stays_offline:
            # It would look for what is missing until its time is up: find that out first.
            missing = self._store.lacking(list(reachable(self._store.get, cid, recursive=recursive)))
            if missing:
                raise NotFound(
                    f"{cid} can't be pinned: {missing[0]} is not in the IPFS daemon; fetch it first"
                )
            options = {"metadata": json.dumps({"name": name})}
        try:
            self._rpc.control(
                lambda client: client.pin.add(str(cid), recursive=recursive, opts=options, timeout=_TIMEOUT)
            )
        except NotFound as error:
            raise NotFound(
                f"{cid} can't be pinned, a block of it is missing; fetch it first: {error}"
            ) from error

    def unpin(self, cid: Cid) -> None:
        """Keep ``cid`` no longer on its own behalf.

        Raises:
            NotFound: It is not pinned.
        """
        try:
            self._rpc.control(lambda client: client.pin.rm(str(cid)))
        except NotFound as error:
            raise NotFound(f"{cid} is not pinned: {error}") from error

    def pins(self) -> list[Pin]:
        """Every pin, sorted by CID."""
        found = {pin.cid: pin for kind in ("direct", "recursive") for pin in self._pins_of(kind)}
        return [found[cid] for cid in sorted(found)]

    def _pins_of(self, kind: str) -> list[Pin]:
        answer = self._rpc.control(
            lambda client: client.pin.ls(type=kind, opts={"names": True}, timeout=_TIMEOUT)
        )
        return [
            Pin(cid=Cid.parse(text), recursive=kind == "recursive", name=_name(facts))
            for text, facts in (answer.get("Keys") or {}).items()
        ]

    # ------------------------------------------------------------------------------------------ holds

    def hold(self, label: str, cid: Cid, *, recursive: bool = True) -> None:  # noqa: ARG002 -- MFS keeps all below it
        """Keep as much of ``cid`` as is here, for as long as the label stands for it; set again, it moves.

        Raises:
            InvalidInput: The label is empty or too long.
        """
        folder = _folder(label)
        directory = UnixFs(type=UnixFsType.DIRECTORY).encode()
        node = encode_node(PbNode((PbLink(cid, "held", 0),), directory))
        held = Cid.of(node, DAG_PB)
        self._store.put_many([(held, node)])
        self._rpc.control(lambda client: client.files.mkdir(folder, parents=True))
        before = self._entries(folder)
        if str(held) not in before:
            self._rpc.control(lambda client: client.files.cp(f"/ipfs/{held}", f"{folder}/{held}"))
        for name in before - {str(held)}:
            self._remove(f"{folder}/{name}")

    def release(self, label: str) -> None:
        """Forget a hold; one that is not there is fine."""
        self._remove(_folder(label))

    def held(self, label: str) -> Cid | None:
        """What a label holds."""
        from holdfast.storage.formats.dag_pb import decode_node

        try:
            names = self._entries(_folder(label))
        except NotFound:
            return None
        for name in names:
            return decode_node(self._store.get(Cid.parse(name))).links[0].cid
        return None

    def _entries(self, folder: str) -> set[str]:
        answer = self._rpc.control(lambda client: client.files.ls(folder))
        return {str(entry["Name"]) for entry in answer.get("Entries") or ()}

    def _remove(self, path: str) -> None:
        try:
            self._rpc.control(lambda client: client.files.rm(path, recursive=True, opts={"force": True}))
        except NotFound:
            return  # what was to go is gone

    def adding(self) -> AbstractContextManager[None]:
        """While this lasts, what this thread adds, or finds to be there already, can't be collected: time to pin it.

        The daemon pins it with the import; see :mod:`~holdfast.storage.kubo.kubo_guard`.
        """
        return self._store.guarding()

    # -------------------------------------------------------------------------------------------- use

    def used(self, cid: Cid) -> None:
        """Nothing to note: the daemon's garbage collection does not ask what was used when."""


def _folder(label: str) -> str:
    if not label or len(label.encode()) > MAX_LABEL_BYTES:
        raise InvalidInput(f"the label {label[:40]!r} of a hold must have 1 to {MAX_LABEL_BYTES} bytes")
    # Dots alone would be a path, and a name of three times the bytes fits into what the daemon takes.
    return f"{_HOLDS}/hold-{quote(label, safe='')[:200]}-{Cid.of(label.encode())}"


def _name(facts: Any) -> str:
    """The name of a pin, where Kubo or js-ipfs has it."""
    if not isinstance(facts, dict):
        return ""
    metadata = facts.get("Metadata")
    name = facts.get("Name") or (metadata.get("name") if isinstance(metadata, dict) else "")
    return name if isinstance(name, str) else ""
