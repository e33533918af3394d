"""Who has what: records as the specification wants them, answers of other implementations, and announcing in the background."""

import json
import socket
import time
from contextlib import closing

import libipld
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import Corrupt, InvalidInput, Unavailable
from holdfast.storage.cid import DAG_PB, Cid
from holdfast.storage.exchange.announcing import AnnouncingPins, Cluster, Routing
from holdfast.storage.exchange.fetcher import Fetcher, FetchingStore, Provider
from holdfast.storage.exchange.peer_id import ed25519_public_key, peer_id_of, peer_id_of_key
from holdfast.storage.exchange.routing import (
    GATEWAY_PROTOCOL,
    ProviderTable,
    RoutingClient,
    address_of,
    peer_record,
    url_of,
)
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.local.pins import Pins
from holdfast.storage.opening import read_cluster, read_peers, write_peers
from holdfast.storage.testing import block

CID = Cid.of(b"wanted")
TIMEOUT_S = 20.0


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def router(serve):
    """Starts a router that answers with what it is told, and notes what it was asked."""

    def start(body: str | bytes, *, kind: str = "application/json", status: int = 200):
        asked: list[web.Request] = []

        async def answer(request: web.Request) -> web.Response:
            asked.append(request)
            data = body if isinstance(body, bytes) else body.encode()
            return web.Response(body=data, content_type=kind, status=status)

        app = web.Application()
        app.router.add_get("/routing/v1/providers/{cid}", answer)
        return serve(app), asked

    return start


def record(*addresses: str, protocols: object = (GATEWAY_PROTOCOL,), **more: object) -> dict[str, object]:
    return {"Schema": "peer", "ID": "12D3KooWx", "Addrs": [*addresses], "Protocols": protocols, **more}


# -------------------------------------------------------------------------------------------------- PeerIDs


@pytest.mark.parametrize(
    ("secret", "public"),
    [  # RFC 8032, section 7.1
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        ),
    ],
)
def test_a_peer_id_is_not_that_of_another_key(secret, public):
    assert ed25519_public_key(bytes.fromhex(secret)).hex() == public


def test_a_peer_id_is_what_libp2p_reads():
    key = bytes(range(32))
    text = peer_id_of_key(key)
    assert text.startswith("12D3KooW")
    # An identity multihash of the protobuf message that the libp2p specification gives for Ed25519 keys.
    assert libipld.decode_multibase("z" + text)[1] == bytes.fromhex("002408011220") + key


def test_a_home_keeps_its_peer_id_and_shares_it_with_no_other(tmp_path):
    first = peer_id_of(tmp_path / "a")
    assert peer_id_of(tmp_path / "a") == first
    assert peer_id_of(tmp_path / "b") != first
    key = tmp_path / "a" / "node-key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["node-key"]
    key.write_text("nonsense")
    with pytest.raises(Corrupt, match="node-key"):
        peer_id_of(tmp_path / "a")


# ------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("/ip4/127.0.0.1/tcp/7401/http", "http://127.0.0.1:7401"),
        ("/ip6/::1/tcp/80/http", "http://[::1]:80"),
        ("/dns4/gateway.example/tcp/443/https", "https://gateway.example:443"),
        ("/dns/gateway.example/tcp/443/tls/http", "https://gateway.example:443"),
        ("/dns/g.example/tcp/443/tls/sni/g.example/http", "https://g.example:443"),
        ("/dns/g.example/tcp/443/tls/http/p2p/12D3KooWx", "https://g.example:443"),
        ("https://gateway.example", "https://gateway.example"),
        ("http://10.0.0.1:8080/", "http://10.0.0.1:8080"),
        ("/ip4/1.2.3.4/udp/4001/quic-v1", None),
        ("/ip4/1.2.3.4/tcp/4001", None),
        ("/ip4/1.2.3.4/tcp/4001/ws", None),
        ("/ip4/::1/tcp/80/http", None),
        ("/ip4/1.2.3.4/tcp/99999/http", None),
        ("/ip4/1.2.3.4/tcp/-1/http", None),
        ("/dns/a b/tcp/80/http", None),
        ("/dns/a@b/tcp/80/http", None),
        ("/dns/g.example/tcp/443/tls/sni/other.example/http", None),
        ("/dnsaddr/g.example/tcp/443/https", None),
        ("https://user:secret@gateway.example", None),
        ("http://h:port", None),
        ("", None),
        ("/", None),
    ],
)
def test_an_address_leads_where_it_says_or_nowhere(address, url):
    assert url_of(address) == url


@given(
    scheme=st.sampled_from(["http", "https"]),
    host=st.one_of(
        st.ip_addresses(v=4).map(str),
        st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
        st.from_regex(r"[a-z][a-z0-9-]{0,10}(\.[a-z]{2,5})?", fullmatch=True),
    ),
    port=st.integers(1, 65535),
)
def test_an_address_comes_back_as_the_url_that_it_was_made_of(scheme, host, port):
    url = f"{scheme}://{host}:{port}"
    assert url_of(address_of(url)) == url


@pytest.mark.parametrize("url", ["ftp://x", "http://", "x:1", "http://h:port"])
def test_what_is_no_url_gets_no_address(url):
    with pytest.raises(InvalidInput):
        address_of(url)


@given(st.text())
def test_no_text_makes_the_parser_of_addresses_fail(text):
    url_of(text)
    url_of("/ip4/127.0.0.1/tcp/" + text)
    url_of("http://" + text)


# --------------------------------------------------------------------------------------------------- asking


@pytest.mark.parametrize("kind", ["application/json", "application/x-ndjson"])
def test_usable_gateways_are_found_among_other_peers(router, kind):
    records = [
        record("/ip4/127.0.0.1/tcp/1/http", "/ip4/127.0.0.1/udp/1/quic-v1"),
        record("/ip4/127.0.0.1/tcp/2/http", protocols=["transport-bitswap"]),
        record("/ip4/127.0.0.1/tcp/3/http", protocols=[]),  # the router does not know its protocols
        record("/ip4/127.0.0.1/tcp/4/http", protocols=None, Unknown={"x": 1}),
        record(),
        {
            "Schema": "bitswap",
            "Protocol": "transport-bitswap",
            "ID": "x",
            "Addrs": ["/ip4/127.0.0.1/tcp/5/http"],
        },
        peer_record("12D3KooWx", "http://127.0.0.1:6", partial=True),
        record("/ip4/127.0.0.1/tcp/1/http"),
    ]
    if kind == "application/json":
        body = json.dumps({"Providers": records})
    else:
        body = "\n".join(map(json.dumps, records)) + "\n"
    url, asked = router(body, kind=kind)
    found = RoutingClient(url).providers(CID)
    assert [(each.url[-1], each.partial) for each in found] == [
        ("1", False),
        ("3", False),
        ("4", False),
        ("6", True),
    ]
    assert all(each.announced and each.token is None for each in found)
    assert asked[0].match_info["cid"] == str(CID)
    assert "application/x-ndjson" in asked[0].headers["Accept"]


def test_an_old_cid_is_asked_for_in_version_1(router):
    url, asked = router('{"Providers": []}')
    old = Cid.of(b"old", version=0)
    assert RoutingClient(f"{url}/routing/v1/").providers(old) == []
    assert asked[0].match_info["cid"] == str(Cid.of(b"old", DAG_PB))


@pytest.mark.parametrize(
    ("body", "status"), [('{"Providers": []}', 200), ('{"Providers": null}', 200), ("{}", 200), ("", 404)]
)
def test_nothing_found_is_no_error(router, body, status):
    assert RoutingClient(router(body, status=status)[0]).providers(CID) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("not json", 200),
        ("[]", 200),
        ('{"Providers": [1]}', 200),
        ('{"Providers": {"a": 1}}', 200),
        ("[" * 100_000, 200),
        (b"\xff\xfe", 200),
        ("{}", 500),
        ("{}", 429),
        (" " * (2 << 20), 200),
    ],
)
def test_a_router_that_answers_nonsense_is_named(router, body, status):
    url, _ = router(body, status=status)
    with pytest.raises(Unavailable, match=url):
        RoutingClient(url).providers(CID)


def test_a_router_that_is_gone_is_named():
    gone = closed_port()
    with pytest.raises(Unavailable, match=gone):
        RoutingClient(gone).providers(CID)


def test_a_router_on_the_internet_can_not_lead_us_into_our_own_network():
    client = RoutingClient("https://router.example")
    records = [
        record("/ip4/127.0.0.1/tcp/80/http"),
        record("/ip4/169.254.169.254/tcp/80/http"),
        record("/ip6/::1/tcp/80/http"),
        record("http://localhost:80", "http://10.0.0.1"),
        record("/ip4/8.8.8.8/tcp/80/http"),
    ]
    assert [each.url for each in client._usable(records)] == ["http://8.8.8.8:80"]


# ---------------------------------------------------------------------------------------------------- table


def test_what_a_node_announced_is_found_under_each_name_of_the_block():
    table = ProviderTable()
    table.announce("a", [CID])
    table.announce("b", [CID], partial=True)
    assert table.find(CID) == {"a": False, "b": True}
    assert table.find(Cid.of(b"wanted", DAG_PB)) == {"a": False, "b": True}
    table.announce("b", [CID])
    assert table.find(CID) == {"a": False, "b": False}
    assert table.roots_of("b") == [CID]
    table.forget("a")
    assert table.find(CID) == {"b": False}
    assert len(table) == 1


def test_what_is_not_renewed_is_forgotten(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("holdfast.storage.exchange.routing.time.monotonic", lambda: now[0])
    table = ProviderTable(ttl_s=100)
    table.announce("a", [CID, Cid.of(b"other")])
    now[0] = 60
    table.announce("a", [CID])
    now[0] = 110
    assert table.find(Cid.of(b"other")) == {}
    assert table.find(CID) == {"a": False}
    assert table.roots_of("a") == [CID]
    now[0] = 161
    assert table.find(CID) == {}
    assert len(table) == 0


def test_announcements_do_not_fill_the_memory():
    table = ProviderTable(max_entries=10)
    cids = [Cid.of(b"%d" % i) for i in range(25)]
    table.announce("a", cids)
    assert len(table) == 10
    assert table.roots_of("a") == cids[15:]
    assert table.find(cids[0]) == {}


# --------------------------------------------------------------------------------------------------- routing


@pytest.fixture
def master(serve):
    """The routing part of a master, and what it was told."""
    table, told = ProviderTable(), []
    urls: dict[str, str] = {}

    async def announce(request: web.Request) -> web.Response:
        body = await request.json()
        told.append(body)
        table.announce(body["node"], map(Cid.parse, body["cids"]), partial=body["partial"])
        return web.json_response({})

    async def providers(request: web.Request) -> web.Response:
        found = table.find(Cid.parse(request.match_info["cid"]))
        return web.json_response(
            {
                "Providers": [
                    peer_record("12D3KooWx", urls[node], partial=part) for node, part in found.items()
                ]
            }
        )

    app = web.Application()
    app.router.add_post("/api/v0/providers", announce)
    app.router.add_get("/routing/v1/providers/{cid}", providers)
    return serve(app), table, urls, told


def test_announced_nodes_are_asked_before_all_others(master, tmp_path, start_node):
    url, table, urls, _ = master
    blocks = [block(b"%d" % i * 100) for i in range(20)]
    with closing(LocalStore(tmp_path / "other")) as other:
        other.put_many(blocks)
        announced, also = start_node(other), start_node(other)
        urls["a"] = announced.url
        table.announce("a", [CID])
        routing = Routing(lambda: Cluster(master=url))
        with closing(Fetcher(lambda: [Provider(also.url)], routing=routing)) as fetcher:
            fetcher.fetch([cid for cid, _ in blocks], root=CID)
    assert (len(announced.asked), also.asked) == (20, [])


def test_others_are_asked_where_the_announced_ones_lack_something(master, tmp_path, start_node):
    url, table, urls, _ = master
    blocks = [block(b"%d" % i * 100) for i in range(20)]
    with closing(LocalStore(tmp_path / "some")) as some, closing(LocalStore(tmp_path / "all")) as whole:
        some.put_many(blocks[::2])
        whole.put_many(blocks)
        announced, also = start_node(some), start_node(whole)
        urls["a"] = announced.url
        table.announce("a", [CID])
        routing = Routing(lambda: Cluster(master=url))
        with closing(Fetcher(lambda: [Provider(also.url)], routing=routing)) as fetcher:
            assert fetcher.fetch([cid for cid, _ in blocks], root=CID) == [data for _, data in blocks]


def test_a_fetch_is_announced_when_it_begins_and_when_it_ends(master, tmp_path, start_node):
    url, table, urls, told = master
    blocks = [block(b"%d" % i * 100) for i in range(20)]
    cluster = Cluster(master=url, node_id="me", node_url="http://127.0.0.1:9")
    urls["me"] = cluster.node_url
    with closing(LocalStore(tmp_path / "other")) as other:
        other.put_many(blocks)
        routing = Routing(lambda: cluster)
        node = start_node(other)
        fetcher = Fetcher(lambda: [Provider(node.url)], routing=routing)
        with closing(FetchingStore(LocalStore(tmp_path / "here"), fetcher)) as store:
            store.prefetch([cid for cid, _ in blocks], root=CID)
            assert routing.flush(TIMEOUT_S)
    assert told[-1] == {"node": "me", "cids": [str(CID)], "partial": False}
    assert table.find(CID) == {"me": False}
    # It may be over before anybody is told that it began; then the begin need not be told.
    assert [body["partial"] for body in told] in ([False], [True, False])


def test_a_node_does_not_fetch_from_itself(master, tmp_path, start_node):
    url, table, urls, _ = master
    with closing(LocalStore(tmp_path / "here")) as here:
        node = start_node(here)
        urls["me"] = node.url
        table.announce("me", [CID])
        routing = Routing(lambda: Cluster(master=url, node_id="me", node_url=node.url))
        store = FetchingStore(here, Fetcher(list, routing=routing))
        with closing(store), pytest.raises(LookupError, match="no other node"):
            store.prefetch([CID], root=CID)
    assert node.asked == []


def test_what_is_pinned_is_announced(master, tmp_path):
    url, table, _, _ = master
    cid, data = block(b"kept")
    cluster = Cluster(master=url, node_id="me", node_url="http://127.0.0.1:9")
    with closing(LocalStore(tmp_path / "here")) as here, closing(Routing(lambda: cluster)) as routing:
        here.put_many([(cid, data)])
        pins = AnnouncingPins(Pins(here), routing)
        pins.pin(cid, name="mine")
        assert [pin.name for pin in pins.pins()] == ["mine"]
        assert routing.flush(TIMEOUT_S)
        assert table.find(cid) == {"me": False}
        pins.unpin(cid)
        assert pins.pins() == []


def test_a_master_that_is_gone_fails_no_fetch(tmp_path, start_node):
    blocks = [block(b"%d" % i * 100) for i in range(20)]
    cluster = Cluster(master=closed_port(), node_id="me", node_url="http://127.0.0.1:9")
    with closing(LocalStore(tmp_path / "other")) as other:
        other.put_many(blocks)
        node = start_node(other)
        fetcher = Fetcher(lambda: [Provider(node.url)], routing=Routing(lambda: cluster))
        with closing(FetchingStore(LocalStore(tmp_path / "here"), fetcher)) as store:
            store.prefetch([cid for cid, _ in blocks], root=CID)
            assert all(store.has(cid) for cid, _ in blocks)


def test_a_note_that_can_not_be_read_fails_no_announcement(tmp_path):
    (tmp_path / "peers.json").write_text("broken")
    with closing(Routing(lambda: read_cluster(tmp_path))) as routing:
        routing.began(CID)
        assert routing.find(CID) == ()
        assert routing.own_url == ""


def test_a_home_on_its_own_asks_and_tells_nobody():
    with closing(Routing(Cluster)) as routing:
        assert routing.find(CID) == ()
        routing.announce(CID)
        assert routing._work._thread is None


def test_a_part_is_looked_for_where_the_whole_was_found(master):
    url, table, urls, _ = master
    urls["a"] = "http://127.0.0.1:9"
    table.announce("a", [CID])
    with closing(Routing(lambda: Cluster(master=url))) as routing:
        assert [(each.url, each.announced) for each in routing.find(CID)] == [(urls["a"], True)]
        part = Cid.of(b"a part of it")
        assert [(each.url, each.announced) for each in routing.find(part)] == [(urls["a"], False)]


def test_a_new_announcement_is_heard_of_soon(master):
    url, table, urls, _ = master
    urls["a"] = "http://127.0.0.1:9"
    with closing(Routing(lambda: Cluster(master=url))) as routing:
        assert routing.find(CID) == ()
        table.announce("a", [CID])
        deadline = time.monotonic() + TIMEOUT_S
        while not routing.find(CID):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_other_routers_are_asked_besides_the_master(router, master):
    url, table, urls, _ = master
    urls["a"] = "http://127.0.0.1:9"
    table.announce("a", [CID])
    more, _ = router(json.dumps({"Providers": [record("/ip4/127.0.0.1/tcp/7/http")]}))
    cluster = Cluster(master=url, token="t" * 16)
    with closing(Routing(lambda: cluster, routers=[closed_port(), more])) as routing:
        found = {each.url: each.token for each in routing.find(CID)}
    assert found == {urls["a"]: "t" * 16, "http://127.0.0.1:7": None}  # and strangers get no token


# ------------------------------------------------------------------------------------------------ peers.json


def test_what_a_node_notes_of_its_cluster_is_read_by_every_process(tmp_path):
    write_peers(tmp_path, ["http://a", "http://b"], master="http://m", node_id="n", node_url="http://n")
    assert read_cluster(tmp_path) == Cluster(
        peers=("http://a", "http://b"), master="http://m", node_id="n", node_url="http://n"
    )
    assert [provider.url for provider in read_peers(tmp_path)] == ["http://a", "http://b"]
    assert read_cluster(tmp_path / "nowhere") == Cluster()


def test_a_home_of_an_earlier_version_is_still_read(tmp_path):
    (tmp_path / "peers.json").write_text('{"urls": ["http://a"]}')
    assert read_cluster(tmp_path) == Cluster(peers=("http://a",))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"urls": 1}', '{"urls": [], "node": 1}'])
def test_a_broken_note_is_an_error_that_names_the_file(tmp_path, text):
    (tmp_path / "peers.json").write_text(text)
    with pytest.raises(Corrupt, match=r"peers\.json"):
        read_cluster(tmp_path)
