"""Who has what: Delegated Routing V1 (https://specs.ipfs.tech/routing/http-routing-v1/), asked and answered.

Providers are gateways over HTTP. A record of ours has the schema ``peer``, the protocol ``transport-ipfs-gateway-http``, an
address such as ``/ip4/10.0.0.7/tcp/7401/http``, and the PeerID of the node's home (:mod:`~holdfast.storage.exchange.peer_id`). The field
``holdfast`` is an extension that others ignore: it tells which nodes are still fetching the content themselves.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from holdfast.errors import InvalidInput, Unavailable
from holdfast.storage.cid import DAG_PB, Cid, write_varint
from holdfast.storage.exchange.block_client import Provider

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["GATEWAY_PROTOCOL", "ProviderTable", "RoutingClient", "address_of", "peer_record", "url_of"]

GATEWAY_PROTOCOL = "transport-ipfs-gateway-http"
MAX_RECORDS = 100
_MAX_ANSWER_BYTES = 1 << 20
_HOSTS = ("ip4", "ip6", "dns", "dns4", "dns6")


# -------------------------------------------------------------------------------------------------- records


def peer_record(peer_id: str, url: str, *, partial: bool = False) -> dict[str, Any]:
    """The record of a gateway, as ``/routing/v1/providers`` answers it."""
    record: dict[str, Any] = {
        "Schema": "peer",
        "ID": peer_id,
        "Addrs": [address_of(url)],
        "Protocols": [GATEWAY_PROTOCOL],
    }
    return {**record, "holdfast": {"partial": True}} if partial else record


def address_of(url: str) -> str:
    """The multiaddr of an HTTP server: ``http://127.0.0.1:80`` is ``/ip4/127.0.0.1/tcp/80/http``.

    Raises:
        InvalidInput: It is not the URL of one.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidInput(f"{url!r} is not the address of an HTTP server: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(f"{url!r} is not the address of an HTTP server")
    version = _ip_version(parts.hostname)
    kind = f"ip{version}" if version else "dns"
    tls = "/tls" if parts.scheme == "https" else ""
    return f"/{kind}/{parts.hostname}/tcp/{port or (443 if tls else 80)}{tls}/http"


def url_of(address: str) -> str | None:
    """The URL of a gateway that a multiaddr or a URL names; None for one that holdfast can't talk to."""
    if address.startswith(("http://", "https://")):
        return _checked_url(address)
    _, *components = address.split("/")
    if len(components) < 5 or components[0] not in _HOSTS or components[2] != "tcp":
        return None
    kind, host, _, port, *rest = components
    if rest[-2:-1] == ["p2p"]:
        rest = rest[:-2]
    if rest[:3] == ["tls", "sni", host]:
        rest = ["tls", *rest[3:]]
    scheme = {("http",): "http", ("https",): "https", ("tls", "http"): "https"}.get(tuple(rest))
    if scheme is None or (kind.startswith("ip") and _ip_version(host) != int(kind[2])):
        return None
    return _checked_url(f"{scheme}://{f'[{host}]' if kind == 'ip6' else host}:{port}")


def _checked_url(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    host = parts.hostname or ""
    plain = host.isascii() and host.replace("-", "").replace(".", "").replace("_", "").isalnum()
    if not (plain or _ip_version(host) == 6) or port == 0 or parts.query or parts.username is not None:
        return None
    return url.rstrip("/")


def _ip_version(host: str) -> int | None:
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return None


# --------------------------------------------------------------------------------------------------- asking


class RoutingClient:
    """Asks one router who has a CID.

    Args:
        url: Of the router, without ``/routing/v1``.
        token: Sent to the router and to the providers that it names: for the own cluster's master only.
        timeout_s: Deadline of one answer.

    Raises:
        InvalidInput: The URL is not one.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = 5.0) -> None:
        address_of(url)  # raises what is wrong with it
        parts = urlsplit(url.rstrip("/"))
        self._base = parts.path.removesuffix("/routing/v1")
        self.url = url
        self._parts = parts
        self._token = token
        self._timeout_s = timeout_s

    def providers(self, cid: Cid) -> list[Provider]:
        """The gateways that have it, as far as this router knows; those that speak other protocols are left out.

        Raises:
            Unavailable: The router does not answer, or not as the specification says.
        """
        status, kind, body = self._get(f"{self._base}/routing/v1/providers/{_version_1(cid)}")
        if status == 404:
            return []
        if status != 200:
            said = f"it answered with the HTTP status {status}" if status else body.decode()
            raise Unavailable(f"the router {self.url} is of no use: {said}")
        try:
            if "ndjson" in kind:
                records = [json.loads(line) for line in body.splitlines() if line.strip()]
            else:
                records = json.loads(body or b"{}").get("Providers") or []
            return self._usable(records)
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise Unavailable(f"the answer of the router {self.url} can't be read: {error!r:.200}") from error

    def _usable(self, records: list[Any]) -> list[Provider]:
        found: dict[str, Provider] = {}
        for record in records[:MAX_RECORDS]:
            protocols = record.get("Protocols") or [GATEWAY_PROTOCOL]
            if record.get("Schema", "peer") != "peer" or GATEWAY_PROTOCOL not in protocols:
                continue
            partial = isinstance(ours := record.get("holdfast"), dict) and ours.get("partial") is True
            for address in record.get("Addrs") or []:
                url = url_of(str(address))
                if url is not None and url not in found and self._may_name(url):
                    found[url] = Provider(url, self._token, announced=True, partial=partial)
        return list(found.values())

    def _may_name(self, url: str) -> bool:
        """Whether to believe this router such an address: one on the internet must not lead us to our own network."""
        return _is_local(self._parts.hostname or "") or not _is_local(urlsplit(url).hostname or "")

    def _get(self, path: str) -> tuple[int, str, bytes]:
        deadline = time.monotonic() + self._timeout_s
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=self._timeout_s)
        headers = {"Accept": "application/x-ndjson, application/json;q=0.9", "User-Agent": "holdfast"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            body = b""
            while piece := response.read1(1 << 16):
                body += piece
                if len(body) > _MAX_ANSWER_BYTES or time.monotonic() > deadline:
                    return 0, "", b"its answer is too long, or comes too slowly"
            return response.status, response.headers.get("Content-Type", ""), body
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Unavailable(f"the router {self.url} does not answer: {error!r}") from error
        finally:
            connection.close()


def _version_1(cid: Cid) -> Cid:
    return cid if cid.version == 1 else Cid(b"\x01" + write_varint(DAG_PB) + cid.multihash)


def _is_local(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return host == "localhost" or host.endswith((".localhost", ".local", ".internal"))


# ------------------------------------------------------------------------------------------------ answering


@dataclass(frozen=True, slots=True)
class _Entry:
    until: float
    partial: bool


class ProviderTable:
    """Which nodes said that they have which roots: bounded, and each entry is forgotten unless it is renewed.

    Args:
        ttl_s: How long an announcement holds.
        max_entries: Of the oldest announcements are forgotten what goes beyond.
    """

    def __init__(self, *, ttl_s: float = 120.0, max_entries: int = 200_000) -> None:
        self.ttl_s = ttl_s
        self._max_entries = max_entries
        self._lock = threading.Lock()
        self._entries: dict[tuple[bytes, str], _Entry] = {}  # in the order of their ends
        self._nodes: dict[bytes, dict[str, None]] = {}
        self._roots: dict[str, dict[bytes, Cid]] = {}

    def announce(self, node: str, cids: Iterable[Cid], *, partial: bool = False) -> None:
        """Note that ``node`` has these roots, or is fetching them; again, it is renewed."""
        with self._lock:
            now = time.monotonic()
            for cid in cids:
                self._remove(cid.multihash, node)
                self._entries[cid.multihash, node] = _Entry(now + self.ttl_s, partial)
                self._nodes.setdefault(cid.multihash, {})[node] = None
                self._roots.setdefault(node, {})[cid.multihash] = cid
            self._forget(now)

    def find(self, cid: Cid) -> dict[str, bool]:
        """The nodes that have a root, and of each whether it is still fetching it."""
        with self._lock:
            self._forget(time.monotonic())
            nodes = self._nodes.get(cid.multihash, {})
            return {node: self._entries[cid.multihash, node].partial for node in nodes}

    def roots_of(self, node: str) -> list[Cid]:
        """What a node has announced, and would have to renew."""
        with self._lock:
            self._forget(time.monotonic())
            return list(self._roots.get(node, {}).values())

    def forget(self, node: str) -> None:
        """Remove all that a node has announced."""
        with self._lock:
            for multihash in list(self._roots.get(node, {})):
                self._remove(multihash, node)

    def __len__(self) -> int:
        return len(self._entries)

    def _forget(self, now: float) -> None:
        while self._entries:
            (multihash, node), entry = next(iter(self._entries.items()))
            if entry.until > now and len(self._entries) <= self._max_entries:
                return
            self._remove(multihash, node)

    def _remove(self, multihash: bytes, node: str) -> None:
        if self._entries.pop((multihash, node), None) is None:
            return
        self._nodes[multihash].pop(node)
        if not self._nodes[multihash]:
            del self._nodes[multihash]
        self._roots[node].pop(multihash)
        if not self._roots[node]:
            del self._roots[node]
