"""Which nodes belong to the cluster, as their heartbeats tell."""

from __future__ import annotations

import ipaddress
import random
import shlex
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from holdfast.errors import InvalidInput, NotFound
from holdfast.storage.exchange.routing import address_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ALIVE_S", "Member", "Membership", "is_loopback", "join_commands", "loopback_network"]

ALIVE_S = 10.0
"""A node that was not heard of for so long is shown as gone, and not asked for blocks."""
HEARTBEAT_S = 2.0


def is_loopback(host: str) -> bool:
    """Whether an address is in 127.0.0.0/8; names other than ``localhost`` are not looked up."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def join_commands(url: str, home: Path) -> dict[str, str]:
    """The lines that start a worker of the master at ``url``, whose home that is.

    ``here`` starts one beside the master, on a home of its own; ``elsewhere``, which is there unless the master is on loopback,
    one on another machine.
    """
    token_file = home / "token"
    here = ["holdfast", "worker", "--join", url, "--home", f"{home}-worker", "--token-file", str(token_file)]
    host = urlsplit(url).hostname or ""
    lines = {"here": shlex.join(here if is_loopback(host) else [*here, "--host", host])}
    if not is_loopback(host):
        lines["elsewhere"] = f"holdfast worker --join {url} --token-file token --host ADDRESS"
    return lines


def loopback_network() -> str:
    """The first three numbers of this cluster's own loopback addresses, such as ``127.83.12``.

    Ray needs an address for each node. Drawn at random, so that clusters on one machine do not meet.
    """
    return f"127.{random.randint(1, 254)}.{random.randint(0, 255)}"  # noqa: S311 -- not a secret


@dataclass(slots=True, kw_only=True)
class Member:
    """One node."""

    id: str
    role: str
    url: str
    node_ip: str
    num_cpus: int
    peer_id: str = ""
    """Its PeerID, for routing records."""
    joined: float = field(default_factory=time.time)
    seen: float = field(default_factory=time.time)
    blocks: int = 0
    bytes: int = 0

    @property
    def alive(self) -> bool:
        """Whether it was heard of lately."""
        return time.time() - self.seen < ALIVE_S

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **{name: getattr(self, name) for name in self.__slots__},
            "alive": self.alive,
            "seen_s_ago": round(time.time() - self.seen, 1),
        }


class Membership:
    """The members of one cluster; the master is the first."""

    def __init__(self, master: Member, network: str) -> None:
        self._members = {master.id: master}
        self._network = network

    def join(
        self,
        *,
        id: str,  # noqa: A002 -- the field's name
        url: str,
        host: str,
        num_cpus: int,
        peer_id: str = "",
    ) -> Member:
        """Add a worker, or take back one that was gone, and give it an address for Ray.

        Raises:
            InvalidInput: A worker on another machine's loopback, or fields of the wrong type.
        """
        if not all(isinstance(text, str) for text in (id, url, host, peer_id)) or not id:
            raise InvalidInput("a node joins with id, url, host, num_cpus and peer_id")
        address_of(url)  # others are going to be told of it
        if type(num_cpus) is not int or num_cpus < 1:
            raise InvalidInput(f"num_cpus must be at least 1, not {num_cpus!r}")
        known = self._members.get(id)
        node_ip = known.node_ip if known else self._address_for(host)
        member = Member(id=id, role="worker", url=url, node_ip=node_ip, num_cpus=num_cpus, peer_id=peer_id)
        self._members[id] = member
        return member

    def _address_for(self, host: str) -> str:
        if not is_loopback(host):
            return host
        if not is_loopback(next(iter(self._members.values())).node_ip):
            raise InvalidInput(
                f"the worker listens on {host}, where the cluster's other machines can't reach it: "
                "start it with --host <its own address>"
            )
        taken = {member.node_ip for member in self._members.values()}
        return next(ip for n in range(2, 255) if (ip := f"{self._network}.{n}") not in taken)

    def heartbeat(self, member_id: str, *, blocks: int, size_bytes: int) -> Member:
        """Note that a node is there, and what it holds.

        Raises:
            NotFound: It has not joined (the master was started anew): it should join again.
        """
        member = self.get(member_id)
        member.seen, member.blocks, member.bytes = time.time(), int(blocks), int(size_bytes)
        return member

    def leave(self, member_id: str) -> None:
        """Remove a node; one that is not there is fine."""
        self._members.pop(member_id, None)

    def get(self, member_id: str) -> Member:
        """One node.

        Raises:
            NotFound: It has not joined.
        """
        member = self._members.get(member_id)
        if member is None:
            raise NotFound(f"node {member_id} has not joined this cluster")
        return member

    def all(self) -> list[Member]:
        """Every node, the master first."""
        return list(self._members.values())

    def alive(self) -> list[Member]:
        """The nodes that were heard of lately, the master first."""
        return [member for member in self._members.values() if member.alive]

    def peers_of(self, member_id: str) -> list[str]:
        """URLs of the other living nodes, the master's first."""
        return [member.url for member in self.alive() if member.id != member_id]
