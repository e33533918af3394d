"""Who of several nodes that fetch the same thing asks its source for which part, so that they feed each other.

Without this, nodes that begin together stay together: all ask the one source for the same blocks, and it sends each block to
every node. Each group of blocks has one node that gets it from the source; the others ask that node. Which one it is follows from
a hash that all of them compute alike, so nothing has to be agreed.

A source that answers quickly is asked directly: waiting for a neighbour would only cost time.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.storage.exchange.peers import Peer

__all__ = ["GROUP_BLOCKS", "Choice", "Sharing"]

GROUP_BLOCKS = 8
"""Neighbouring blocks that one node gets together: a hand-over costs a commit, and should bring more than one block."""
_SLOW_FROM_S = 0.05
_FIRST_DELAY_S = 0.03
_LAST_DELAY_S = 0.5
_PATIENCE_MEANS = 4.0
_PATIENCE_S = 5.0
_LATE_S = 10.0


@dataclass(frozen=True, slots=True)
class Choice:
    """Whom to ask for a block."""

    peers: list[Peer] = field(default_factory=list)
    """Any of these, if there is no better rule."""
    early: Peer | None = None
    """This one, which may not have it yet."""
    wait: bool = False
    """Nobody now."""


class Sharing:
    """The division of one download among the nodes that fetch the same.

    Args:
        own_url: The block server of this node; empty for one that serves nothing, and so takes no part of its own.
        groups: For each block, what it is grouped by, the same on every node; None shares nothing.
    """

    def __init__(self, own_url: str, groups: Sequence[bytes] | None) -> None:
        self._own_url = own_url
        self._groups = groups
        self._members: dict[str, Peer] = {}
        self._owners: dict[bytes, str] = {}
        self._not_before: dict[Peer, float] = {}
        self._delay_s: dict[Peer, float] = {}
        self._late_until: dict[Peer, float] = {}
        self._head = -1
        self._head_since = 0.0

    def members(self, partial: set[Peer]) -> None:
        """Set which peers fetch the same at the moment."""
        now = time.monotonic()
        members = {p.provider.url: p for p in partial if self._late_until.get(p, 0.0) <= now}
        if members.keys() != self._members.keys():
            self._owners.clear()
        self._members = members

    def answered(self, peer: Peer, *, here: bool) -> None:
        """Note whether a member had a block that is its part, and so when it is asked again."""
        if here:
            self._not_before.pop(peer, None)
            self._delay_s.pop(peer, None)
        elif peer.provider.url in self._members:
            delay_s = self._delay_s.get(peer, _FIRST_DELAY_S)
            self._not_before[peer] = time.monotonic() + delay_s
            self._delay_s[peer] = min(_LAST_DELAY_S, delay_s * 1.5)

    def next_try_s(self) -> float:
        """How long until a member may be asked again."""
        now = time.monotonic()
        return min((max(0.001, at - now) for at in self._not_before.values()), default=1.0)

    def choose(self, index: int, peers: list[Peer], *, head: bool) -> Choice:
        """Whom to ask for a block.

        Args:
            index: Of the block in the download.
            peers: Who could be asked, at least one.
            head: Whether everything waits for this block.
        """
        if self._groups is None or not self._members:
            return Choice(peers)
        sources = [peer for peer in peers if peer.provider.url not in self._members]
        usual_s = min((peer.mean_s for peer in sources if peer.mean_s is not None), default=0.0)
        if usual_s < _SLOW_FROM_S:
            return Choice(sources or peers)
        owner = self._owner(self._groups[index])
        if owner is None:
            return Choice(sources or peers)
        now = time.monotonic()
        if head and self._head != index:
            self._head, self._head_since = index, now
        if owner not in peers:
            return Choice(sources or peers)
        if head and now - self._head_since > max(_PATIENCE_S, _PATIENCE_MEANS * usual_s):
            # It does not do its part: for a while it is a provider like the others.
            self._late_until[owner] = now + _LATE_S
            self._members.pop(owner.provider.url, None)
            self._owners.clear()
            return Choice(sources or peers)
        if self._not_before.get(owner, 0.0) > now or (owner in self._delay_s and owner.in_flight):
            return Choice(wait=True)
        return Choice(early=owner)

    def _owner(self, group: bytes) -> Peer | None:
        """The member whose part a group is; None for this node's own part."""
        if group not in self._owners:
            everybody = [*self._members, *([self._own_url] if self._own_url else [])]
            self._owners[group] = max(
                everybody, key=lambda url: hashlib.sha256(url.encode() + b"\0" + group).digest()
            )
        return self._members.get(self._owners[group])
