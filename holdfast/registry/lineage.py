"""What a model is made of, checked: every record and every block below it is hashed again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from holdfast.errors import Corrupt, HoldfastError
from holdfast.registry.records import RECORDS
from holdfast.storage.cid import DAG_CBOR, Cid
from holdfast.storage.formats import dag_cbor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from holdfast.storage.content import ContentStore

__all__ = ["LineageNode", "verify"]

DATASET = "dataset"
MAX_DEPTH = 64


@dataclass(slots=True)
class LineageNode:
    """One thing in the tree: a record, a file or a directory, and whether everything in it is what its CID says."""

    role: str
    """What it is to its parent: ``files``, ``run``, ``data``, ..."""
    kind: str
    cid: Cid
    blocks: int = 0
    size_bytes: int = 0
    error: str | None = None
    detail: str = ""
    children: list[LineageNode] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether this and everything below it was read and matched."""
        return self.error is None and all(child.ok for child in self.children)

    def flat(self) -> Iterator[LineageNode]:
        """This node and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.flat()

    def to_json(self) -> dict[str, Any]:
        """Plain values, nested."""
        return {
            "role": self.role,
            "kind": self.kind,
            "cid": str(self.cid),
            "ok": self.ok,
            "blocks": self.blocks,
            "size_bytes": self.size_bytes,
            "error": self.error,
            "detail": self.detail,
            "children": [child.to_json() for child in self.children],
        }

    def render(self) -> str:
        """The tree as text, one line a node."""
        return "\n".join(self._lines("", ""))

    def _lines(self, first: str, rest: str) -> Iterator[str]:
        mark = "ok " if self.error is None else "BAD"
        size = f"{self.blocks} block{'s' * (self.blocks != 1)}, {self.size_bytes:,} B"
        label = self.role if self.role == self.kind else f"{self.role} ({self.kind})"
        yield f"{first}{mark} {label}  {self.cid}  {self.error or ', '.join(filter(None, (size, self.detail)))}"
        for index, child in enumerate(self.children):
            last = index == len(self.children) - 1
            yield from child._lines(  # noqa: SLF001 -- of its own class
                rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  ")
            )


def verify(store: ContentStore, cid: Cid) -> LineageNode:
    """The lineage below ``cid``, with every block read and hashed.

    It never stops at the first error: what is missing or wrong is noted in its node (``error``), and ``ok`` of
    the root tells about everything. Beyond hashes, it checks that the records agree with each other: a model's files
    must be what its run made, a run's data must be a dataset, and an index' vectors must come from its model.

    The shards of a dataset are parts of it: hashed with it, and not listed one by one. Of the datasets that it was made from
    the manifests are checked, and not the rows: none of those need be in it any more.
    """
    return _verify(store, cid, "", {}, 0)


def _verify(store: ContentStore, cid: Cid, role: str, seen: dict[Cid, str], depth: int) -> LineageNode:
    node = LineageNode(role=role or "root", kind="", cid=cid)
    if depth > MAX_DEPTH:
        node.error = f"the lineage is deeper than {MAX_DEPTH}"
        return node
    if cid in seen:
        node.kind, node.detail = seen[cid], "see above"
        return node
    try:
        data = store.blocks.get(cid)
        cid.check(data, source="the store")  # before anything in it is believed
        record = dag_cbor.decode(data) if cid.codec == DAG_CBOR else None
        kind = record.get("kind") if isinstance(record, dict) else None
        node.kind = seen[cid] = str(kind) if kind else store.stat(cid).kind
        node.role = role or node.kind
        if isinstance(record, dict) and kind == DATASET:
            node.blocks, node.size_bytes = 1, len(data)
            _verify_dataset(store, node, record, seen, depth)
        elif isinstance(record, dict) and kind:
            node.blocks, node.size_bytes = 1, len(data)
            if kind in RECORDS:
                RECORDS[kind].from_record(record, cid)
            node.detail = _detail(record)
            for name, link in _links(record):
                node.children.append(_verify(store, link, name, seen, depth + 1))
            if all(child.error is None for child in node.children):
                _check_agreement(store, record)
        else:
            _hash_all(store, node, [cid], set())
    except HoldfastError as error:
        node.kind = node.kind or "unknown"
        node.error = str(error)
    except (AttributeError, KeyError, TypeError) as error:
        # The hash is right, but whoever made the record did not know its format.
        node.error = f"the {node.kind} record {cid} is not what its kind must be: {error!r}"
    return node


_ANCESTORS = ("parent", "provenance")
"""The fields of a dataset's manifest that link what it was made from, and the roles of those in the tree."""


def _verify_dataset(
    store: ContentStore, node: LineageNode, record: dict[str, Any], seen: dict[Cid, str], depth: int
) -> None:
    from holdfast.storage.datasets.manifest import Manifest

    splits = Manifest.from_plain(node.cid, record).splits
    node.detail = ", ".join(f"{name} {split.rows} rows" for name, split in splits.items())
    if node.role not in _ANCESTORS:
        _hash_all(store, node, [link for split in splits.values() for link in split.lists], set())
    if depth == MAX_DEPTH:
        node.detail += "; what it was made from is not listed"
        return
    for name, link in _links({name: record[name] for name in _ANCESTORS}):
        node.children.append(_verify(store, link, name.partition(".")[0], seen, depth + 1))


def _hash_all(store: ContentStore, node: LineageNode, roots: list[Cid], known: set[Cid]) -> None:
    """Hash everything below some roots, each block once."""
    for root in roots:
        for cid, data in store.walk(root) if root not in known else ():
            if cid not in known:
                known.add(cid)
                cid.check(data, source="the store")
                node.blocks += 1
                node.size_bytes += len(data)


def _links(record: dict[str, Any]) -> Iterator[tuple[str, Cid]]:
    for name, value in record.items():
        if isinstance(value, Cid):
            yield name, value
        elif isinstance(value, (dict, list)):
            inner = value if isinstance(value, dict) else {str(at): item for at, item in enumerate(value)}
            yield from ((f"{name}.{key}", link) for key, link in _links(inner))


def _detail(record: dict[str, Any]) -> str:
    kind = record["kind"]
    if kind == "code":
        return str(record["entry"])
    if kind == "environment":
        return f"Python {record['python']}, torch {record['packages'].get('torch', 'none')}"
    if kind == "run":
        return f"{record['workers']} workers, seed {record['seed']}"
    if kind == "conversion":
        return f"max difference {record['comparison'].get('max_difference')}"
    if kind == "index":
        return f"{record['rows']} vectors of {record['dim']}, {record['factory']}"
    return ""


def _check_agreement(store: ContentStore, record: dict[str, Any]) -> None:
    if record["kind"] == "model" and record["run"] is not None:
        made = store.get_record(record["run"]).get("outputs", {})
        if made.get("files") != record["files"]:
            raise Corrupt(f"the model's files are not those that its run made ({made.get('files')})")
    if record["kind"] == "index" and store.get_record(record["conversion"])["model"] != record["model"]:
        raise Corrupt(f"the index is of model {record['model']}, but its vectors are another one's")
    if record["kind"] == "run" and store.get_record(record["data"]).get("kind") != DATASET:
        raise Corrupt(f"the run's data {record['data']} is not a dataset")
