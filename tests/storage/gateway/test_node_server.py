import asyncio
import dataclasses
import os
import threading
from contextlib import closing, suppress
from urllib.parse import quote

import aiohttp
import psutil
import pytest

from holdfast.errors import Corrupt
from holdfast.storage.block_store import SupportsExtent
from holdfast.storage.cid import DAG_CBOR, DAG_PB, RAW, Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.formats import dag_cbor
from holdfast.storage.formats.dag_pb import PbLink, PbNode, UnixFs, UnixFsType, encode_node
from holdfast.storage.gateway import node_server
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.testing import block
from tests.storage.gateway.gateway_client import (
    CAR,
    TOKEN,
    ask,
    cids_in,
    leaves_file,
    slow_client,
    talk,
    unpacked,
    until,
)

# ------------------------------------------------------------------------------------------------ blocks


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 1 << 20, 2 << 20])
def test_a_block_does_not_change_on_its_way(node, source, size):
    cid, data = block(os.urandom(size))
    source.put_many([(cid, data)])
    for status, headers, body in (
        ask(f"{node.url}/ipfs/{cid}?format=raw"),
        ask(f"{node.url}/ipfs/{cid}", Accept="application/vnd.ipld.raw"),
        ask(f"{node.url}/ipfs/{cid}?format=raw", Accept=CAR),  # format wins
    ):
        assert (status, body) == (200, data)
        assert headers["Content-Type"] == "application/vnd.ipld.raw"
        assert headers["Content-Disposition"] == f'attachment; filename="{cid}.bin"'
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Ipfs-Path"] == f"/ipfs/{cid}"
        assert headers["X-Ipfs-Roots"] == str(cid)
        assert headers["Cache-Control"] == "public, max-age=29030400, immutable"
        assert headers["Vary"] == "Accept"
        assert headers["Content-Length"] == str(size)


def test_a_cache_between_does_not_mix_up_formats(node, source):
    cid, data = block(b"x")
    source.put_many([(cid, data)])
    assert "Content-Location" not in ask(f"{node.url}/ipfs/{cid}?format=raw", Accept="text/html")[1]
    headers = ask(f"{node.url}/ipfs/{cid}", Accept="application/vnd.ipld.raw")[1]
    assert headers["Content-Location"] == f"/ipfs/{cid}?format=raw"


def test_large_blocks_are_sent_by_the_kernel_not_read(files, start_gateway):
    large, small = block(os.urandom(1 << 20)), block(b"small")
    files.put_many([small, large])
    url, _ = start_gateway(files)
    assert ask(f"{url}/ipfs/{large[0]}?format=raw")[2] == large[1]
    assert ask(f"{url}/ipfs/{small[0]}?format=raw")[2] == small[1]
    root, _ = leaves_file(files, [large[1], large[1][::-1], b"tail"])
    files.read.clear()
    assert len(cids_in(f"{url}/ipfs/{root}?format=car")) == 4
    assert large[0] not in files.read


def test_a_block_that_moves_while_it_is_asked_for_is_found_at_its_new_place(tmp_path, files, start_gateway):
    """As when a segment is collected between the look at the index and the opening of the file."""
    cid, data = block(os.urandom(1 << 20))
    files.put_many([(cid, data)])
    url, _ = start_gateway(files)
    real, looks = files.extent, []

    def moving(wanted):
        looks.append(wanted)
        found = real(wanted)
        return (
            dataclasses.replace(found, path=tmp_path / "gone")
            if found is not None and len(looks) % 2
            else found
        )

    files.extent = moving
    assert ask(f"{url}/ipfs/{cid}?format=raw")[2] == data
    assert cids_in(f"{url}/ipfs/{cid}?format=car") == [str(cid)]


def test_the_same_block_under_another_cid_is_found(node, source):
    source.put_many([block(b"x")])
    for cid in (Cid.of(b"x", DAG_PB), Cid.of(b"x", DAG_CBOR), Cid.of(b"x", 0x78), Cid.of(b"x", version=0)):
        assert ask(f"{node.url}/ipfs/{cid}?format=raw")[2] == b"x"


def test_a_cid_may_be_written_in_any_base(node, source):
    import libipld

    cid, data = block(b"bases")
    source.put_many([(cid, data)])
    for base in "bzkfmu":
        text = quote(libipld.encode_multibase(base, cid.raw), safe="")
        assert ask(f"{node.url}/ipfs/{text}?format=raw")[2] == data, text


def test_a_client_that_only_asks_gets_no_body(files, start_gateway):
    cid, data = block(b"head" * 100_000)
    files.put_many([(cid, data)])
    root, _ = leaves_file(files, [data, b"more"])
    url, _ = start_gateway(files)
    status, headers, body = ask(f"{url}/ipfs/{cid}?format=raw", method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, "400000", b"")
    files.read.clear()
    status, headers, body = ask(f"{url}/ipfs/{root}?format=car", method="HEAD")
    assert (status, headers["Content-Type"], body) == (200, f"{CAR}; version=1; order=dfs; dups=n", b"")
    assert set(files.read) <= {root}  # not the DAG below it
    for form in ("raw", "car"):
        assert ask(f"{url}/ipfs/{Cid.of(b'missing')}?format={form}", method="HEAD")[0] == 404


def test_a_client_that_has_it_does_not_get_it_again(node, source):
    cid, data = block(b"cached")
    source.put_many([(cid, data)])
    for form in ("raw", "car"):
        url = f"{node.url}/ipfs/{cid}?format={form}"
        etag = ask(url)[1]["Etag"]
        strong = etag.removeprefix("W/")
        for known in (etag, f'"other", {etag}', f"W/{strong}", strong, f'W/"other",{strong} , "third"', "*"):
            status, headers, body = ask(url, If_None_Match=known)
            assert (status, headers["Etag"], body) == (304, etag, b"")
        for known in ('"other"', f'"x{strong[1:]}', f"{strong[:-1]}"):
            assert ask(url, If_None_Match=known)[0] == 200
    assert ask(f"{node.url}/ipfs/{Cid.of(b'missing')}?format=raw", If_None_Match="*")[0] == 404


def test_no_cache_takes_one_answer_for_another(node, source):
    root, _ = leaves_file(source, [b"a" * 100, b"b" * 100, b"c" * 100])
    queries = [
        "format=raw",
        "format=car",
        "format=car&dag-scope=block",
        "format=car&dag-scope=entity",
        "format=car&entity-bytes=0:99",
        "format=car&entity-bytes=0:199",
        "format=car&entity-bytes=-100:*",
        "format=car&car-dups=y",
    ]
    answers = [ask(f"{node.url}/ipfs/{root}?{query}") for query in queries]
    etags = [headers["Etag"] for _, headers, _ in answers]
    assert len(set(etags)) == len(queries)
    assert not etags[0].startswith("W/")
    assert all(etag.startswith("W/") for etag in etags[1:])


def test_what_was_given_for_a_token_is_not_kept_by_shared_caches(source, start_node):
    cid, data = block(b"private")
    source.put_many([(cid, data)])
    url = f"{start_node(source, token=TOKEN).url}/ipfs/{cid}?format=raw"
    assert ask(url, Authorization=f"Bearer {TOKEN}")[1]["Cache-Control"].startswith("private")


def test_a_missing_block_is_404_and_412_for_who_wants_no_search(node):
    for form in ("raw", "car"):
        url = f"{node.url}/ipfs/{Cid.of(b'missing')}?format={form}"
        status, headers, body = ask(url)
        assert status == 404
        assert headers["Content-Type"].startswith("application/json")
        assert b'"code": "not_found"' in body
        assert "Cache-Control" not in headers
        for method in ("GET", "HEAD"):
            assert ask(url, method=method, Cache_Control="only-if-cached")[0] == 412


def test_what_is_here_is_given_to_who_wants_no_search(node, source):
    cid, data = block(b"here")
    source.put_many([(cid, data)])
    assert ask(f"{node.url}/ipfs/{cid}?format=raw", Cache_Control="only-if-cached")[::2] == (200, data)
    assert ask(f"{node.url}/ipfs/{cid}?format=car", Cache_Control="only-if-cached")[0] == 200


@pytest.mark.parametrize(
    "cid",
    ["latest", "Qm", "bafkrei", "b" * 3000, "%00", "%ff", "zQmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"],
)
@pytest.mark.parametrize("form", ["raw", "car"])
def test_what_is_no_cid_is_the_clients_error(node, cid, form):
    status, _, body = ask(f"{node.url}/ipfs/{cid}?format={form}")
    assert status == 400
    assert b"is not a CID" in body
    assert len(body) < 500


def test_a_block_with_an_unknown_hash_is_not_here_and_no_failure(node):
    cid = Cid(bytes((1, RAW, 0x13, 64)) + bytes(64))
    for form in ("raw", "car"):
        assert ask(f"{node.url}/ipfs/{cid}?format={form}")[0] == 404


def test_a_dag_of_an_unknown_codec_is_the_clients_error_but_its_block_is_given(node, source):
    cid, data = block(b"git tree", 0x78)
    source.put_many([(cid, data)])
    url = f"{node.url}/ipfs/{cid}?format=car"
    status, _, body = ask(url)
    assert (status, b"0x78" in body) == (400, True)
    assert ask(f"{node.url}/ipfs/{cid}/name?format=car")[0] == 400
    assert cids_in(f"{url}&dag-scope=block") == cids_in(f"{url}&dag-scope=entity") == [str(cid)]


def test_a_path_to_a_single_block_is_refused_not_cut(node, source):
    source.put_many([block(b"x")])
    assert ask(f"{node.url}/ipfs/{Cid.of(b'x')}/a/b?format=raw")[0] == 400
    assert ask(f"{node.url}/ipfs/{Cid.of(b'x')}/?format=raw")[2] == b"x"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nobody_writes_through_the_block_server(node, source, method):
    cid, data = block(b"x")
    source.put_many([(cid, data)])
    assert ask(f"{node.url}/ipfs/{cid}?format=raw", method=method)[0] == 405
    assert source.has(cid)


def test_a_stranger_gets_nothing(source, start_node):
    cid, data = block(b"private")
    source.put_many([(cid, data)])
    url = f"{start_node(source, token=TOKEN).url}/ipfs/{cid}?format=raw"
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


def test_a_failing_disk_is_noticed_by_who_receives_it(files, start_gateway):
    """Nothing is hashed on the way out: the clients of this protocol do that."""
    cid, data = block(b"good bytes")
    files.put_many([(cid, data)])
    url, _ = start_gateway(files)
    files.path.write_bytes(b"evil bytes")
    assert not cid.matches(ask(f"{url}/ipfs/{cid}?format=raw")[2])
    with pytest.raises(Corrupt):
        unpacked(ask(f"{url}/ipfs/{cid}?format=car")[2])


def test_many_clients_at_once_do_not_get_each_others_blocks(node, source):
    many = [block(b"%d" % i * (30_000 if i % 3 else 100)) for i in range(100)]
    source.put_many(many)

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
    for form in ("raw", "car"):
        assert ask(f"{node.url}/ipfs/{Cid.of(b'x')}?format={form}")[0] in (409, 500, 503)


def test_a_probe_of_the_empty_identity_block_needs_no_store(node, source):
    assert ask(f"{node.url}/ipfs/bafkqaaa?format=raw")[::2] == (200, b"")
    status, headers, body = ask(f"{node.url}/ipfs/bafkqaaa?format=car")
    assert (status, unpacked(body)) == (200, [])
    assert dag_cbor.decode(body[1:])["roots"] == [Cid.parse("bafkqaaa")]
    assert ask(f"{node.url}/ipfs/bafkqaaa?format=raw", Cache_Control="only-if-cached")[0] == 200
    identity = "bafkqaf3imvwgy3zaneqgc3janfxgy2lomvscay3jmqfa"
    status, headers, body = ask(f"{node.url}/ipfs/{identity}", Accept=f"{CAR}; dups=y")
    assert (status, "dups=y" in headers["Content-Type"], unpacked(body)) == (200, True, [])
    assert ask(f"{node.url}/ipfs/{identity}?format=raw")[2] == b"hello i am inlined cid\n"
    inner = dag_cbor.encode({"left": Cid.parse(identity), "right": Cid.of(b"stored")})
    source.put_many([block(inner, DAG_CBOR), block(b"stored")])
    assert cids_in(f"{node.url}/ipfs/{Cid.of(inner, DAG_CBOR)}?format=car") == [
        str(Cid.of(inner, DAG_CBOR)),
        str(Cid.of(b"stored")),
    ]


# ---------------------------------------------------------------------------------------- hostile DAGs and clients


def test_a_dag_that_unfolds_without_end_is_sent_once(files, start_gateway):
    """Each of 200 nodes links twice to the next: 2^200 ways through it."""
    data = b"the end"
    cid = Cid.of(data)
    files.put_many([(cid, data)])
    for _ in range(200):
        data = dag_cbor.encode([cid, cid])
        cid = Cid.of(data, DAG_CBOR)
        files.put_many([(cid, data)])
    url, _ = start_gateway(files)
    assert len(cids_in(f"{url}/ipfs/{cid}?format=car")) == 201


def test_a_small_dag_that_claims_to_be_an_endless_file_does_not_keep_a_thread_forever(
    files, start_gateway, monkeypatch
):
    monkeypatch.setattr("holdfast.storage.gateway.dag_walk.MAX_REPEATS", 1000)
    cid, size = Cid.of(b"xx"), 2
    files.put_many([(cid, b"xx")])
    for _ in range(25):
        message = UnixFs(type=UnixFsType.FILE, file_size=2 * size, block_sizes=(size, size))
        data = encode_node(PbNode((PbLink(cid, "", size), PbLink(cid, "", size)), message.encode()))
        cid, size = Cid.of(data, DAG_PB), 2 * size
        files.put_many([(cid, data)])
    url, gateway = start_gateway(files)
    assert len(cids_in(f"{url}/ipfs/{cid}?format=car&entity-bytes=0:*")) == 26
    with pytest.raises(aiohttp.ClientPayloadError):
        ask(f"{url}/ipfs/{cid}?format=car&entity-bytes=1:*")
    assert gateway.statistics()["streams"] == 0


def test_a_long_chain_of_records_is_followed(files, start_gateway):
    cid = None
    for number in range(5000):
        data = dag_cbor.encode({"number": number, "before": cid})
        cid = Cid.of(data, DAG_CBOR)
        files.put_many([(cid, data)])
    url, _ = start_gateway(files)
    assert len(cids_in(f"{url}/ipfs/{cid}?format=car")) == 5000


def test_what_streams_remember_and_plan_is_bounded(files, start_gateway, monkeypatch):
    root, _ = leaves_file(files, [b"%d" % i for i in range(50)])
    url, gateway = start_gateway(files)
    for name, module in (("MAX_SEEN_CIDS", "node_server"), ("MAX_PENDING_CIDS", "dag_walk")):
        with monkeypatch.context() as patch:
            patch.setattr(f"holdfast.storage.gateway.{module}.{name}", 20)
            with pytest.raises(aiohttp.ClientPayloadError):
                ask(f"{url}/ipfs/{root}?format=car")
        assert gateway.statistics() == {"streams": 0, "seen": 0}
    assert len(cids_in(f"{url}/ipfs/{root}?format=car")) == 51


def test_a_path_that_is_too_deep_is_refused_before_it_is_followed(files, start_gateway):
    cid, data = block(b"x")
    files.put_many([(cid, data)])
    url, _ = start_gateway(files)
    assert ask(f"{url}/ipfs/{cid}/{'a/' * 129}?format=car")[0] == 400
    assert ask(f"{url}/ipfs/{cid}/{'a/' * 128}?format=car")[0] == 404
    assert files.read == []


@pytest.fixture
def endless(files):
    """A CAR of 400 MiB, with duplicates, in a store of a few."""
    return leaves_file(files, [os.urandom(1 << 20), os.urandom(50_000)] * 400)[0]


@pytest.mark.parametrize("by_kernel", [True, False])
def test_a_client_that_does_not_read_costs_no_memory(files, start_gateway, endless, by_kernel, monkeypatch):
    if not by_kernel:
        monkeypatch.setattr(files, "extent", None)
        monkeypatch.setattr(node_server, "SupportsExtent", type("Nothing", (), {}))
        places, path = files.places, files.path

        def get(cid):
            with path.open("rb") as file:
                file.seek(places[cid.multihash][0])
                return file.read(places[cid.multihash][1])

        monkeypatch.setattr(files, "get", get)
    url, gateway = start_gateway(files)
    before = psutil.Process().memory_info().rss
    with closing(slow_client(url, endless)) as connection:
        assert connection.recv(1) == b"H"
        sizes = [0, 1]

        def steady():
            sizes.append(psutil.Process().memory_info().rss)
            return len(set(sizes[-25:])) == 1

        until(steady)
        assert gateway.statistics()["streams"] == 1
        assert sizes[-1] - before < 60 << 20
    until(lambda: gateway.statistics()["streams"] == 0)


def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(files, start_gateway, endless):
    url, gateway = start_gateway(files)
    ask(f"{url}/ipfs/{endless}?format=raw")
    handles, threads = psutil.Process().num_fds(), threading.active_count()
    for _ in range(20):
        with closing(slow_client(url, endless)) as connection:
            connection.recv(10_000)
    until(lambda: gateway.statistics() == {"streams": 0, "seen": 0})
    until(lambda: psutil.Process().num_fds() <= handles)
    assert threading.active_count() <= threads + node_server.THREADS
    assert ask(f"{url}/ipfs/{endless}?format=raw")[0] == 200


def test_a_client_that_never_reads_is_dropped_in_the_end(files, start_gateway, endless, monkeypatch):
    monkeypatch.setattr(node_server, "SEND_TIMEOUT_S", 0.3)
    url, gateway = start_gateway(files)
    with closing(slow_client(url, endless)):
        until(lambda: gateway.statistics()["streams"] == 1)
        until(lambda: gateway.statistics()["streams"] == 0)
    cid = Cid.of(os.urandom(8))
    assert ask(f"{url}/ipfs/{cid}?format=raw")[0] == 404


def test_who_comes_while_too_many_streams_are_under_way_is_told_when_to_come_again(
    files, start_gateway, endless, monkeypatch
):
    monkeypatch.setattr(node_server, "MAX_CAR_STREAMS", 2)
    url, gateway = start_gateway(files)
    with closing(slow_client(url, endless)), closing(slow_client(url, endless)):
        until(lambda: gateway.statistics()["streams"] == 2)
        status, headers, body = ask(f"{url}/ipfs/{endless}?format=car")
        assert (status, b'"unavailable"' in body) == (503, True)
        assert int(headers["Retry-After"]) > 0
        assert ask(f"{url}/ipfs/{endless}?format=raw")[0] == 200  # blocks are served all the time
    until(lambda: gateway.statistics()["streams"] == 0)
    assert ask(f"{url}/ipfs/{endless}?format=car&dag-scope=block")[0] == 200


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /ipfs/%s?format=raw&x=" + b"y" * 70_000 + b" HTTP/1.1",
        b"GET /ipfs/%s?format=raw HTTP/1.1\r\nX-Long: " + b"y" * 70_000,
        b"GET /ipfs/%s?format=raw HTTP/1.1\r\nBroken header",
        b"GET /ipfs/%s?format=raw HTTP/9.9",
        b"GET /ipfs/%s?format=raw HTTP/1.1\r\nContent-Length: -1",
        b"GET /ipfs/%s\x00?format=raw HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /ipfs/%s/\xff\xfe?format=raw HTTP/1.1",
        b"GET /ipfs/%s/%%ff?format=car HTTP/1.1",
        b"GET /ipfs/%s/%%zz/..%%2f..?format=car HTTP/1.1",
    ],
)
def test_a_malformed_request_gets_an_error_and_the_next_client_an_answer(files, start_gateway, request_line):
    cid, data = block(b"still here")
    files.put_many([(cid, data)])
    url, _ = start_gateway(files)
    line = request_line.replace(b"%%", b"\0\0").replace(b"%s", str(cid).encode()).replace(b"\0\0", b"%")
    with suppress(ConnectionResetError):
        answer = talk(url, line + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4", b"HTTP/1.1 505"))
        assert b"Traceback" not in answer
    assert ask(f"{url}/ipfs/{cid}?format=raw")[2] == data


def test_no_path_leads_out_of_a_directory(source, node):
    store = ContentStore(source)
    root = store.add_files({"a/b.txt": b"inside"})
    for path in ("a/../a/b.txt", "..", "../..", "./a", "a//b.txt", "%2e%2e/x", "a%2fb.txt"):
        answer = talk(
            node.url,
            f"GET /ipfs/{root}/{path}?format=car HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode(),
        )
        expected = b"HTTP/1.1 200" if path == "a//b.txt" else b"HTTP/1.1 40"
        assert answer.startswith(expected), (path, answer[:200])


def test_the_gateway_ends_its_threads_with_its_application(files, start_gateway):
    url, gateway = start_gateway(files)
    ask(f"{url}/ipfs/{Cid.of(b'x')}?format=raw")
    assert isinstance(files, SupportsExtent)
    asyncio.run(gateway.close())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("holdfast-gateway")]
