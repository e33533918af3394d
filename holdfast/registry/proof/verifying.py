"""What a model is made of, checked: every record, whether they agree, who signed them, and, when asked to, every byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast.errors import Corrupt, Denied, HoldfastError, InvalidInput, NotFound
from holdfast.registry.graph.facts import facts_of
from holdfast.registry.graph.record_links import DATASET
from holdfast.registry.proof.attestations import read_attestation
from holdfast.registry.proof.hashing import BlockHasher, named_links
from holdfast.registry.proof.lineage_node import SEE_ABOVE, Fault, LineageNode
from holdfast.registry.proof.looking import Look
from holdfast.registry.proof.policy import required_signers
from holdfast.registry.records import RECORDS
from holdfast.storage.formats.dag import RECORD_CODECS, decode_record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from holdfast.registry.proof.signatures import Signatures
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

    _Roots: TypeAlias = list[tuple[tuple[str, ...], Cid]]

__all__ = ["verify"]

MAX_DEPTH = 64
_ANCESTORS = ("parent", "provenance")
"""The fields of a dataset's manifest that link what it was made from, and the roles of those in the tree."""
_KINDS = {
    "model": {"run": "run", "parent": "model", "code": "code", "data": DATASET},
    "run": {"code": "code", "data": DATASET, "environment": "environment"},
    "conversion": {"model": "model", "data": DATASET},
    "index": {"corpus": DATASET, "model": "model", "conversion": "conversion"},
}
"""What each field of a kind of records must link."""
_PLAIN = ("commit", "dataset-shards")
"""Kinds of records that are parts of something, and are hashed like any bytes."""


def verify(
    store: ContentStore,
    cid: Cid,
    *,
    deep: bool = False,
    signatures: Signatures | None = None,
    require_signed_by: Sequence[str] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> LineageNode:
    """The lineage below ``cid``, checked; look at ``ok``, :meth:`~LineageNode.broken` and :meth:`~LineageNode.render`.

    Every record is read and hashed, and must be of a kind and a version that this release knows; records must agree with each
    other: a model's weights are what its run made, a run's data is a dataset, and an index' vectors come from its model. Of each
    file the first block is read and hashed, and of each shard its root; that the other blocks are there is looked up, and what is
    in them is not read. Of those that this node has not got one is fetched, to see whether they can be had. With ``deep``, every
    byte is fetched and hashed: only that finds a wrong one in the middle of a file.

    It never stops at the first error: what is missing or wrong is noted in its node, and ``ok`` of the root tells about
    everything. The shards of a dataset are parts of it, and not listed one by one. Of the datasets that it was made from
    the manifests are checked, and not the rows: none of those need be in it any more.

    Args:
        store: Has it, or fetches it.
        cid: Where to begin.
        deep: Hash every byte below, on all processors.
        signatures: Who signed what, to be checked and shown; None looks for none.
        require_signed_by: Names or keys, one of which must have signed ``cid``, besides what the home requires.
        progress: Told how many more bytes ``deep`` hashed, and of how many, as the records state.

    Raises:
        NotFound: A name in ``require_signed_by`` is no key's.
        InvalidInput: ``require_signed_by`` names nobody.
    """
    if signatures is not None:
        required_signers(signatures, require_signed_by)  # a name that is no key's is told before the work
    elif require_signed_by is not None:
        raise InvalidInput("require_signed_by can't be checked without signatures")
    walk = _Walk(store, deep=deep)
    tree = walk.visit(cid, "", 0)
    if deep:
        walk.hash_all(progress)
    if signatures is not None:
        _add_signatures(tree, signatures, require_signed_by)
    return tree


def _add_signatures(
    tree: LineageNode, signatures: Signatures, require_signed_by: Sequence[str] | None
) -> None:
    nodes = list(tree.flat())
    found = signatures.of([node.cid for node in nodes])
    for node in nodes:
        node.signatures = found.pop(node.cid, [])  # where something is met again, they stand above
    try:
        signatures.require(tree.cid, require_signed_by)
    except Denied as error:
        tree.error = tree.error or str(error)


class _Walk:
    """One verification: the tree as it grows, and what is to be hashed for it."""

    def __init__(self, store: ContentStore, *, deep: bool) -> None:
        self._store = store
        self._deep = deep
        self._seen: dict[tuple[Cid, bool], str] = {}
        """The kind of everything that was met, with whether its rows counted."""
        self._unread: dict[Cid, str] = {}
        """What could not be read, and why: nobody is asked for it twice."""
        self._jobs: list[tuple[LineageNode, _Roots]] = []
        self._stated_bytes = 0

    # ------------------------------------------------------------------------------------------- records

    def visit(self, cid: Cid, role: str, depth: int, *, whole: bool = True) -> LineageNode:
        """The node of ``cid`` and all below it.

        Args:
            cid: What it is.
            role: What it is to its parent; empty for the root.
            depth: How far below the root it is.
            whole: Of a dataset, look at its rows, too.
        """
        node = LineageNode(role=role or "root", kind="", cid=cid)
        if depth > MAX_DEPTH:
            node.error = f"the lineage is deeper than {MAX_DEPTH}"
            return node
        before = self._seen.get((cid, True)) or (None if whole else self._seen.get((cid, False)))
        if before is not None:
            node.kind, node.detail = before, SEE_ABOVE
            return node
        try:
            data = self._read(cid)
            node.blocks, node.size_bytes = 1, data.nbytes
            record: Any = decode_record(cid, data) if cid.codec in RECORD_CODECS else None
            kind = _kind_of(record, cid)
            node.kind = kind or self._store.stat(cid).kind
            node.role = role or node.kind
            self._seen[cid, whole] = node.kind
            if kind == DATASET:
                self._visit_dataset(node, record, depth, whole=whole)
            elif kind and kind not in _PLAIN:
                self._visit_record(node, record, depth)
            else:
                self._visit_content(node)
        except HoldfastError as error:
            node.kind = node.kind or "unknown"
            node.role = role or node.kind
            node.error = str(error)
        except (AttributeError, KeyError, TypeError) as error:
            # The hash is right, but whoever made the record did not know its format.
            node.error = f"the {node.kind} record {cid} is not what its kind must be: {error!r}"
        return node

    def _read(self, cid: Cid) -> memoryview:
        """A block, hashed before anything in it is believed."""
        if cid in self._unread:
            raise NotFound(self._unread[cid])
        try:
            data = memoryview(self._store.blocks.get(cid))
            cid.check(data, source="the store")
        except HoldfastError as error:
            self._unread[cid] = str(error)
            raise
        return data

    def _visit_record(self, node: LineageNode, record: dict[str, Any], depth: int) -> None:
        """Look below a record first, and believe what it says only then: a tree is worth most where something is wrong."""
        node.hashed = True
        for name, link in named_links(record):
            node.children.append(self.visit(link, name, depth + 1))
        if node.kind not in RECORDS:
            raise Corrupt(
                f"{node.cid} is a record of the kind {node.kind[:40]!r}, which this release of holdfast does not know: its bytes "
                "are right, and nothing that it says was checked; look with a newer release"
            )
        RECORDS[node.kind].from_record(record, node.cid)
        node.detail = ", ".join(facts_of(node.kind, record))
        if all(child.error is None for child in node.children):
            self._check_agreement(node, record)

    def _visit_dataset(self, node: LineageNode, record: dict[str, Any], depth: int, *, whole: bool) -> None:
        from holdfast.storage.datasets.manifest import Manifest

        node.hashed = self._deep
        manifest = Manifest.from_plain(node.cid, record)
        node.detail = ", ".join(facts_of(DATASET, record))
        if whole:
            lists: _Roots = [((split,), link) for split, one in manifest.splits.items() for link in one.lists]
            shards = [
                shard
                for path, link in lists
                for shard in self._shards(node, path, link, manifest.schema.names)
            ]
            if self._deep:
                stated = sum(split.size_bytes for split in manifest.splits.values())
                self._later(node, lists, stated)
            else:
                self._look_at(node, shards, first_leaves=False)
        if depth == MAX_DEPTH:
            node.detail += "; what it was made from is not listed"
            return
        parts = {name: value for name, value in record.items() if name != "splits"}
        for name, link in named_links(parts):
            first = name.partition(".")[0]
            ancestor = first in _ANCESTORS
            role = first if ancestor else name
            node.children.append(self.visit(link, role, depth + 1, whole=not ancestor))

    def _shards(self, node: LineageNode, path: tuple[str, ...], link: Cid, columns: Sequence[str]) -> _Roots:
        """The shards in a list, each with the way to it; none where the list is bad, which is noted."""
        from holdfast.storage.datasets.manifest import shards_from_plain

        try:
            data = self._read(link)
            shards = shards_from_plain(link, decode_record(link, data), columns)
        except HoldfastError as error:
            node.faults.append(Fault(path, link, str(error)))
            return []
        if not self._deep:
            node.blocks += 1
            node.size_bytes += data.nbytes
        return [((*path, f"shards.{at}.cid"), shard.cid) for at, shard in enumerate(shards)]

    def _visit_content(self, node: LineageNode) -> None:
        """A file, a directory, or a record that is no part of our lineage."""
        stat = self._store.stat(node.cid)
        if stat.kind == "record" and not self._deep:
            return
        node.blocks = node.size_bytes = 0
        if self._deep:
            self._later(node, [((), node.cid)], stat.size)
        elif self._look_at(node, [((), node.cid)]):
            node.hashed = not node.faults
        else:
            node.detail = ", ".join(filter(None, (f"the first of {stat.size:,} B", node.detail)))

    # -------------------------------------------------------------------------------------------- bytes

    def _look_at(self, node: LineageNode, roots: _Roots, *, first_leaves: bool = True) -> bool:
        """Hash the first block of each, and see that the others are there; whether those are all that there is."""
        look = Look(self._store.blocks, self._read, root=node.cid)
        look.below(roots, first_leaves=first_leaves)
        node.blocks += look.found.blocks
        node.size_bytes += look.found.size_bytes
        node.faults += look.found.faults
        if look.elsewhere:
            told = f"{look.elsewhere:,} blocks are not on this node and were not fetched"
            node.detail = ", ".join(filter(None, (node.detail, told)))
        return look.is_all

    def _later(self, node: LineageNode, roots: _Roots, stated_bytes: int) -> None:
        self._jobs.append((node, roots))
        self._stated_bytes += stated_bytes

    def hash_all(self, progress: Callable[[int, int], object] | None) -> None:
        """Hash every byte below the nodes that were met."""
        total = self._stated_bytes

        def tell(more: int) -> None:
            if progress is not None:
                progress(more, total)

        with BlockHasher(self._store, progress=tell) as hasher:
            for node, roots in self._jobs:
                found = hasher.hash_below(roots)
                node.hashed = True
                node.blocks += found.blocks
                node.size_bytes += found.size_bytes
                noted = {fault.cid for fault in node.faults}
                node.faults += [fault for fault in found.faults if fault.cid not in noted]

    # ---------------------------------------------------------------------------------------- agreement

    def _check_agreement(self, node: LineageNode, record: dict[str, Any]) -> None:
        """Return if a record agrees with those that it links.

        Raises:
            Corrupt: It does not; each may be what its CID says, and still not belong to the other.
        """
        kind = node.kind
        for child in node.children:
            wanted = _KINDS.get(kind, {}).get(child.role.partition(".")[0], child.kind)
            if child.kind != wanted:
                raise Corrupt(
                    f"the {kind}'s {child.role} {child.cid} is no {wanted}: its kind is {child.kind!r:.80}"
                )
        if kind == "model" and record.get("run") is not None:
            self._check_made_by_run(record)
        if kind == "index" and self._store.get_record(record["conversion"])["model"] != record["model"]:
            raise Corrupt(f"the index is of model {record['model']}, but its vectors are another one's")
        if kind == "attestation":
            checked = read_attestation(self._store, node.cid).envelope.check()
            wrong = [one for one in checked if one.problem is not None]
            if wrong:
                raise Corrupt(
                    f"the attestation {node.cid} is not signed rightly: {wrong[0].keyid}: {wrong[0].problem}"
                )

    def _check_made_by_run(self, model: dict[str, Any]) -> None:
        outputs = self._store.get_record(model["run"]).get("outputs", {})
        if outputs.get("files") != model["files"]:
            told = outputs.get("files") or "none"
            raise Corrupt(f"the model's files are not those that its run made ({told})")


def _kind_of(record: Any, cid: Cid) -> str | None:
    kind = record.get("kind") if isinstance(record, dict) else None
    if kind is not None and not isinstance(kind, str):
        raise Corrupt(f"the record {cid} has a kind that is no text: {kind!r:.80}")
    return kind
