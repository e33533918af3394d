"""Which blocks belong to an archive: all that its names lead to, or the records alone, or everything but rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from holdfast.errors import InvalidInput
from holdfast.registry.graph.record_links import ANCESTORS, DATASET
from holdfast.storage.block_store import bring_near
from holdfast.storage.cid import DAG_CBOR, Buffer, Cid
from holdfast.storage.formats.dag import RECORD_CODECS, decode_record, links_of, links_with_paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from holdfast.storage.content import ContentStore

__all__ = ["Amount", "Below", "blocks_of", "check_amount", "links_below", "record_in"]

Amount = Literal["all", "files", "records"]
"""How much goes along: everything; all but the rows of datasets; or records only, for lineage without weights."""
EVIDENCE = ("commit", "attestation")
"""Kinds that stand for themselves: what they link is in the archive for its own sake, or not at all."""

Below = tuple[Cid, bool]
"""A link, and whether it is to a dataset that another was made from: of such, only the manifest goes along."""


def check_amount(amount: str) -> Amount:
    """The amount that a text names.

    Raises:
        InvalidInput: It names none.
    """
    for known in get_args(Amount):
        if known == amount:
            return known  # type: ignore[no-any-return]  # get_args has no types
    raise InvalidInput(f"an archive holds {', '.join(get_args(Amount))} of the bytes, not {amount!r}")


def record_in(cid: Cid, data: Buffer) -> dict[str, Any] | None:
    """The record of a block, if it is one."""
    record = decode_record(cid, data) if cid.codec in RECORD_CODECS else None
    return record if isinstance(record, dict) else None


def links_below(cid: Cid, data: Buffer, *, amount: Amount) -> tuple[list[Below], list[Below]]:
    """What must come along with a block, and what must where it is only a dataset that another was made from."""
    record = record_in(cid, data)
    kind = record.get("kind") if record is not None else None
    if kind in EVIDENCE:
        return [], []
    if record is None or kind != DATASET:
        links = links_of(cid, data)
        wanted = [(link, False) for link in links if amount != "records" or link.codec == DAG_CBOR]
        return wanted, wanted
    ancestors = [(link, True) for link in _links(cid, record, ANCESTORS) if link.codec == DAG_CBOR]
    if amount != "all":
        return ancestors, ancestors
    rows = [(link, False) for link in _links(cid, record, tuple(record.keys() - set(ANCESTORS)))]
    return [*rows, *ancestors], ancestors


def _links(cid: Cid, record: dict[str, Any], fields: tuple[str, ...]) -> list[Cid]:
    found = [link for field in sorted(fields) for _, link in links_with_paths(record.get(field))]
    return [link for link in reversed(found) if link != cid]


def blocks_of(store: ContentStore, roots: Iterable[Cid], *, amount: Amount) -> Iterator[tuple[Cid, Buffer]]:
    """Yield each block below some roots that an archive of this amount holds, once; missing ones are fetched.

    Raises:
        NotFound: A block is missing and nobody has it.
    """
    given: set[Cid] = set()
    seen: set[Below] = set()
    level: list[Below] = list(dict.fromkeys((root, False) for root in roots))
    seen.update(level)
    while level:
        bring_near(store.blocks, list(dict.fromkeys(cid for cid, _ in level if cid not in given)))
        below: list[Below] = []
        for cid, is_ancestor in level:
            data = store.blocks.get(cid)
            if cid not in given:
                given.add(cid)
                yield cid, data
            whole, ancestor = links_below(cid, data, amount=amount)
            for link in ancestor if is_ancestor else whole:
                if link not in seen:
                    seen.add(link)
                    below.append(link)
        level = below
