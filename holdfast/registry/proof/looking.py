"""Every file below some roots, looked at: its first block is hashed, and the others are there. What is in them is not read."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from holdfast.errors import Corrupt, HoldfastError
from holdfast.registry.proof.hashing import MOST_FAULTS, Hashed
from holdfast.registry.proof.lineage_node import Fault
from holdfast.storage.adding import MAX_TREE_DEPTH
from holdfast.storage.block_store import SupportsLacking, SupportsPrefetch, bring_near
from holdfast.storage.cid import DAG_PB, Cid
from holdfast.storage.formats.dag_pb import UnixFsType
from holdfast.storage.formats.unixfs import unixfs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TypeAlias

    from holdfast.storage.block_store import BlockStore
    from holdfast.storage.formats.dag_pb import PbLink

    _Path: TypeAlias = tuple[str, ...]
    _Step: TypeAlias = tuple[_Path, Cid]

__all__ = ["Look"]


class Look:
    """A look at the files below some roots.

    Directories, and the nodes of large files, are read and hashed: they tell which blocks there must be.

    Args:
        blocks: Where all of them should be.
        read: Gives a block that was hashed just now.
        root: What all of it is part of: who has the blocks is looked up by it.
    """

    def __init__(self, blocks: BlockStore, read: Callable[[Cid], memoryview], *, root: Cid) -> None:
        self._blocks = blocks
        self._read = read
        self._root = root
        self._met: set[Cid] = set()
        """What was read, or need not be looked at a second time."""
        self._leaves: dict[Cid, _Path] = {}
        """Blocks that were only named, each with the way to it."""
        self.found = Hashed()
        self.elsewhere = 0
        """How many blocks are not here and were not fetched either, though one of them was, to see whether it can be."""

    @property
    def is_all(self) -> bool:
        """Whether there is nothing else than was hashed."""
        return not self._leaves

    def below(self, roots: Iterable[tuple[_Path, Cid]], *, first_leaves: bool = True) -> None:
        """Look at some roots and all below them; nothing stops it early.

        Args:
            roots: Each with the words that shall lead to it in a :class:`Fault`.
            first_leaves: Hash the first bytes of each file, too; else only the block that its CID stands for.
        """
        listed = list(roots)
        self._bring_near([cid for _, cid in listed])
        for path, cid in listed:
            self._visit(path, cid, first_leaves=first_leaves, depth=0)
        self._look_for_leaves()

    def _visit(self, path: _Path, cid: Cid, *, first_leaves: bool, depth: int) -> None:
        if cid in self._met:
            return
        if cid.codec != DAG_PB:
            self._take(path, cid)
            return
        links, kind = self._node(path, cid, depth)
        if kind not in (UnixFsType.DIRECTORY, UnixFsType.HAMT_SHARD):
            leaves = self._leaves_below(path, links, depth)
            if first_leaves and (first := next(leaves, None)) is not None:
                self._bring_near([first[1]])
                self._take(*first)
            self._leaves |= {leaf: step for step, leaf in leaves if leaf not in self._met}
            return
        self._bring_near([link.cid for link in links])
        before = 2 if kind == UnixFsType.HAMT_SHARD else 0  # the number of a bucket
        for link in links:
            name = (link.name or "")[before:]
            self._visit((*path, name) if name else path, link.cid, first_leaves=first_leaves, depth=depth + 1)

    def _leaves_below(self, path: _Path, links: Sequence[PbLink], depth: int) -> Iterator[_Step]:
        """The leaves of a file in order, each with its position; only the nodes above them are read."""
        deeper = False
        for at, link in enumerate(links):
            step = (*path, str(at))
            # Leaves may be nodes, too: those behind a leaf are, unless there is more below them.
            may_have_links = at == 0 or deeper or (link.tsize or 0) > (links[0].tsize or 0)
            if may_have_links and link.cid.codec == DAG_PB:
                below, kind = self._node(step, link.cid, depth + 1)
                if kind is None:
                    continue  # it is noted already
                if below:
                    deeper = True
                    yield from self._leaves_below(step, below, depth + 1)
                    continue
            yield step, link.cid

    def _node(self, path: _Path, cid: Cid, depth: int) -> tuple[Sequence[PbLink], UnixFsType | None]:
        """The links of a node and what it is; none, and nothing, where that can't be told, which is noted."""
        data = self._take(path, cid)
        if data is None:
            return (), None
        try:
            if depth > MAX_TREE_DEPTH:
                raise Corrupt(
                    f"{cid} is nested deeper than {MAX_TREE_DEPTH}, so what is below it is not looked at"
                )
            node, message = unixfs_of(cid, lambda _: data)
        except HoldfastError as error:
            self._fault(path, cid, str(error))
            return (), None
        return node.links, message.type

    def _take(self, path: _Path, cid: Cid) -> memoryview | None:
        """Read and hash a block; None where that fails, which is noted."""
        try:
            data = self._read(cid)
        except HoldfastError as error:
            self._fault(path, cid, str(error))
            return None
        if cid not in self._met:
            self._met.add(cid)
            self.found.blocks += 1
            self.found.size_bytes += data.nbytes
        return data

    def _look_for_leaves(self) -> None:
        """Note which of the blocks that were only named are not there. Of what others may have, one block is fetched to see."""
        lacking = self._lacking([cid for cid in self._leaves if cid not in self._met])
        if not isinstance(self._blocks, SupportsPrefetch):
            for cid in lacking:
                self._take(self._leaves[cid], cid)  # the store says where it should be
        elif lacking:
            first, *others = lacking
            self._bring_near([first])
            if self._take(self._leaves[first], first) is not None:
                self.elsewhere += len(others)
                return
            for cid in others:
                self._fault(
                    self._leaves[cid],
                    cid,
                    f"it is not here, and nobody was asked for it: {first} is not to be had either",
                )

    def _lacking(self, cids: list[Cid]) -> list[Cid]:
        if isinstance(self._blocks, SupportsLacking):
            return self._blocks.lacking(cids)
        return [cid for cid in cids if not self._blocks.has(cid)]

    def _bring_near(self, cids: Sequence[Cid]) -> None:
        with suppress(HoldfastError):  # whoever is missing says so when it is read
            bring_near(self._blocks, [cid for cid in cids if not self._blocks.has(cid)], self._root)

    def _fault(self, path: _Path, cid: Cid, problem: str) -> None:
        self._met.add(cid)
        if len(self.found.faults) < MOST_FAULTS:
            self.found.faults.append(Fault(path, cid, problem))
