import asyncio
import os

import aiohttp
import pytest

from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.cid import DAG_CBOR, DAG_PB, Cid
from holdfast.storage.local_store import LocalStore
from holdfast.storage.testing import block

TOKEN = "a-token-of-some-length"


def ask(url, *, method="GET", **headers):
    """Status, headers and body of one request; underscores in header names become dashes."""

    async def go():
        timeout = aiohttp.ClientTimeout(total=10)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, url, headers=named, allow_redirects=False) as response,
        ):
            return response.status, response.headers, await response.read()

    return asyncio.run(go())


@pytest.fixture
def node(blocks, start_node):
    return start_node(VerifyingStore(blocks, source="the disk"))


@pytest.mark.parametrize("size", [0, 1, 1 << 20, 2 << 20])
def test_a_block_does_not_change_on_its_way(node, blocks, size):
    cid, data = block(os.urandom(size))
    blocks.put_many([(cid, data)])
    for status, headers, body in (
        ask(f"{node.url}/ipfs/{cid}?format=raw"),
        ask(f"{node.url}/ipfs/{cid}", Accept="application/vnd.ipld.raw"),
        ask(f"{node.url}/ipfs/{cid}?format=raw", Accept="application/vnd.ipld.car"),  # format wins
    ):
        assert (status, body) == (200, data)
        assert headers["Content-Type"] == "application/vnd.ipld.raw"
        assert headers["Content-Disposition"] == f'attachment; filename="{cid}.bin"'
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Ipfs-Path"] == f"/ipfs/{cid}"
        assert "immutable" in headers["Cache-Control"]
        assert headers["Content-Length"] == str(size)


def test_the_same_block_under_another_cid_is_found(node, blocks):
    blocks.put_many([block(b"x")])
    for cid in (Cid.of(b"x", DAG_PB), Cid.of(b"x", DAG_CBOR), Cid.of(b"x", version=0)):
        assert ask(f"{node.url}/ipfs/{cid}?format=raw")[2] == b"x"


def test_a_client_that_only_asks_gets_no_body(node, blocks):
    cid, data = block(b"head" * 1000)
    blocks.put_many([(cid, data)])
    status, headers, body = ask(f"{node.url}/ipfs/{cid}?format=raw", method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, "4000", b"")
    assert ask(f"{node.url}/ipfs/{Cid.of(b'missing')}?format=raw", method="HEAD")[0] == 404


def test_a_client_that_has_the_block_does_not_get_it_again(node, blocks):
    cid, data = block(b"cached")
    blocks.put_many([(cid, data)])
    etag = ask(f"{node.url}/ipfs/{cid}?format=raw")[1]["Etag"]
    for known in (etag, f'"other", {etag}', f"W/{etag}"):
        status, headers, body = ask(f"{node.url}/ipfs/{cid}?format=raw", If_None_Match=known)
        assert (status, headers["Etag"], body) == (304, etag, b"")
    assert ask(f"{node.url}/ipfs/{cid}?format=raw", If_None_Match='"other"')[2] == data


def test_a_missing_block_is_404_and_412_for_who_wants_no_search(node):
    url = f"{node.url}/ipfs/{Cid.of(b'missing')}?format=raw"
    status, headers, body = ask(url)
    assert status == 404
    assert headers["Content-Type"].startswith("application/json")
    assert b'"code": "not_found"' in body
    assert "Cache-Control" not in headers
    assert ask(url, Cache_Control="only-if-cached")[0] == 412


@pytest.mark.parametrize(
    "cid", ["latest", "Qm", "bafkrei", "b" * 3000, "%00", "zQmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"]
)
def test_what_is_no_cid_is_the_clients_error(node, cid):
    status, _, body = ask(f"{node.url}/ipfs/{cid}?format=raw")
    assert status == 400
    assert b"is not a CID" in body
    assert len(body) < 500


@pytest.mark.parametrize("query", ["", "?format=car", "?format=dag-json", "?format=", "?format=tar"])
def test_a_format_that_is_not_served_is_refused_not_guessed(node, blocks, query):
    blocks.put_many([block(b"x")])
    assert ask(f"{node.url}/ipfs/{Cid.of(b'x')}{query}")[0] in (400, 406, 501)
    assert ask(f"{node.url}/ipfs/{Cid.of(b'x')}{query}", Accept="application/vnd.ipld.car")[0] in (
        400,
        406,
        501,
    )


def test_a_path_is_refused_not_cut(node, blocks):
    blocks.put_many([block(b"x")])
    assert ask(f"{node.url}/ipfs/{Cid.of(b'x')}/a/b?format=raw")[0] in (400, 501)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nobody_writes_through_the_block_server(node, blocks, method):
    cid, data = block(b"x")
    blocks.put_many([(cid, data)])
    assert ask(f"{node.url}/ipfs/{cid}?format=raw", method=method)[0] == 405
    assert blocks.has(cid)


def test_a_stranger_gets_nothing(blocks, start_node):
    cid, data = block(b"private")
    blocks.put_many([(cid, data)])
    url = f"{start_node(blocks, token=TOKEN).url}/ipfs/{cid}?format=raw"
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer"},
    ):
        status, _, body = ask(url, **headers)
        assert status == 401
        assert data not in body
    assert ask(url, If_None_Match=f'"{cid}.raw"')[0] == 401
    assert ask(url, Authorization=f"Bearer {TOKEN}")[2] == data


@pytest.mark.parametrize("verified", [True, False])
def test_a_failing_disk_is_not_spread(tmp_path, blocks, start_node, verified):
    """Also not where the owner switched off verification of what is read locally."""
    cid, data = block(b"good bytes")
    blocks.put_many([(cid, data)])
    segment = next((tmp_path / "blocks" / "segments").iterdir())
    segment.write_bytes(b"evil bytes")
    node = start_node(VerifyingStore(blocks, source="the disk") if verified else blocks)
    for method in ("GET", "HEAD"):
        status, _, body = ask(f"{node.url}/ipfs/{cid}?format=raw", method=method)
        assert status >= 500
        assert b"evil bytes" not in body


def test_many_clients_at_once_do_not_get_each_others_blocks(node, blocks):
    many = [block(b"%d" % i * 5000) for i in range(100)]
    blocks.put_many(many)

    async def go():
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:

            async def one(cid):
                async with session.get(f"{node.url}/ipfs/{cid}?format=raw") as response:
                    return await response.read()

            return await asyncio.gather(*(one(cid) for cid, _ in many))

    assert asyncio.run(go()) == [data for _, data in many]


def test_a_closed_store_is_an_error_of_the_server_not_of_the_client(tmp_path, start_node):
    store = LocalStore(tmp_path / "closed")
    node = start_node(store)
    store.close()
    assert ask(f"{node.url}/ipfs/{Cid.of(b'x')}?format=raw")[0] in (409, 500, 503)
