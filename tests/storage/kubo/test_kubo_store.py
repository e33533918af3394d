"""What a KuboStore makes of a daemon that is absent, another program, or failing. Real daemons are in tests/interop."""

import asyncio
import base64
import io
import json
import socket
import stat
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from holdfast.config import load_settings, note_ipfs
from holdfast.errors import Corrupt, Denied, HoldfastError, InvalidInput, NotFound, Unavailable, Unsupported
from holdfast.storage.block_store import MAX_BLOCK_BYTES
from holdfast.storage.cid import Cid
from holdfast.storage.formats.car import read_car
from holdfast.storage.gateway.node_server import add_block_routes
from holdfast.storage.kubo.kubo_pins import KuboPins
from holdfast.storage.kubo.kubo_rpc import KuboAddress
from holdfast.storage.kubo.kubo_store import KuboStore
from holdfast.storage.kubo.kubo_transfer import ReadAhead, Spool
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.opening import open_backing, open_collector, open_local, open_store
from holdfast.storage.testing import block
from holdfast.web import bearer_token, errors_as_json

Serve = Callable[[web.Application], str]
MISSING = "block was not found locally (offline): ipld: could not find bafkqaaa"


def program(answers: dict[str, Any]) -> web.Application:
    """A program that answers calls by name: a status with a body, or a handler; ``*`` is any other call."""

    async def answer(request: web.Request) -> web.StreamResponse:
        wanted = answers.get(
            request.path.removeprefix("/api/v0/"), answers.get("*", (404, "404 page not found"))
        )
        if callable(wanted):
            response: web.StreamResponse = await wanted(request)
            return response
        await request.read()
        status, body = wanted
        text = body if isinstance(body, (str, bytes)) else json.dumps(body)
        raw = text.encode() if isinstance(text, str) else text
        return web.Response(status=status, body=raw, content_type="application/json")

    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{path:.*}", answer)
    return app


def daemon(**answers: Any) -> web.Application:
    """A daemon that says who it is, and goes wrong in every call but those that are given."""
    calls = {name.replace("__", "/").replace("_", "-"): answer for name, answer in answers.items()}
    who = {
        "version": (200, {"Version": "0.29.0", "Repo": "15", "System": "amd64/linux"}),
        "id": (200, {"ID": "12D3KooW", "AgentVersion": "kubo/0.29.0/"}),
    }
    return program({"*": (500, {"Message": "something broke", "Code": 0, "Type": "error"})} | who | calls)


# ---------------------------------------------------------------------------------------------- address


@pytest.mark.parametrize(
    ("text", "url", "multiaddr"),
    [
        ("http://127.0.0.1:5001", "http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001/http"),
        ("http://127.0.0.1:5001/", "http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001/http"),
        ("http://127.0.0.1:5001/api/v0", "http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001/http"),
        ("http://localhost:5001", "http://localhost:5001", "/dns/localhost/tcp/5001/http"),
        ("https://ipfs.example", "https://ipfs.example:443", "/dns/ipfs.example/tcp/443/https"),
        ("http://[::1]:5001", "http://[::1]:5001", "/ip6/::1/tcp/5001/http"),
        ("/ip4/127.0.0.1/tcp/5001", "http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001/http"),
        ("/ip6/::1/tcp/5001", "http://[::1]:5001", "/ip6/::1/tcp/5001/http"),
        ("/dns4/ipfs.example/tcp/443/https", "https://ipfs.example:443", "/dns/ipfs.example/tcp/443/https"),
    ],
)
def test_every_usual_form_of_an_address_is_understood(text: str, url: str, multiaddr: str) -> None:
    address = KuboAddress.parse(text)
    assert (address.url, address.multiaddr) == (url, multiaddr)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:5001",
        "localhost",
        "ftp://127.0.0.1:5001",
        "http://",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:x",
        "http://127.0.0.1:5001/ipfs/bafy",
        "http://127.0.0.1:5001?x=1",
        "/ip4/127.0.0.1/udp/5001",
        "/ip4/127.0.0.1/tcp/99999",
        "/ip4/127.0.0.1/tcp/5001/p2p/12D3KooW",
        "/unix/tmp/socket",
    ],
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"http://127\.0\.0\.1:5001"):
        KuboStore(text)


def test_a_password_is_sent_and_never_shown(serve: Serve) -> None:
    seen: list[str | None] = []

    async def note(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({"Message": MISSING, "Code": 0}, status=500)

    url = serve(daemon(block__get=note, pin__rm=note))
    with KuboStore(url.replace("//", "//us%40er:se%2Fcret@")) as store:
        cid = Cid.of(b"x")
        for call in (lambda: store.get(cid), lambda: KuboPins(store).unpin(cid)):
            with pytest.raises(NotFound) as caught:
                call()
            assert "cret" not in str(caught.value)
        assert store.url == url
    assert seen == [f"Basic {base64.b64encode(b'us@er:se/cret').decode()}"] * 2
    assert "cret" not in repr(KuboAddress.parse(url.replace("//", "//user:secret@")))
    with pytest.raises(InvalidInput) as refused:
        KuboAddress.parse("http://user:secret@host:1/elsewhere")
    assert "secret" not in str(refused.value)


# ------------------------------------------------------------------------------------- absent and wrong


def test_an_absent_daemon_is_called_absent() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens, and nobody else can
        with pytest.raises(Unavailable, match=r"nothing listens.*is the IPFS daemon running"):
            KuboStore(f"http://127.0.0.1:{taken.getsockname()[1]}")


def test_a_daemon_that_went_away_is_called_absent(serve: Serve) -> None:
    with KuboStore(serve(daemon())) as store, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        gone = KuboAddress("http", "127.0.0.1", taken.getsockname()[1])
        store.rpc._address, store.rpc.url = gone, gone.url
        with pytest.raises(Unavailable, match="nothing listens"):
            store.get(Cid.of(b"x"))
        with pytest.raises(Unavailable, match="nothing listens"):
            store.has(Cid.of(b"x"))
        with pytest.raises(Unavailable, match="nothing listens"):
            store.put_many([block(b"x")])
        with pytest.raises(Unavailable, match="nothing listens"):
            KuboPins(store).pins()


@pytest.mark.parametrize(
    "answer",
    [
        (200, "hello"),
        (200, b"\xff\xfe\x00"),
        (200, ""),
        (200, "{}"),
        (200, "[1, 2]"),
        (200, '{"Version": 1}\n{"Version": 2}'),
        (200, "<html>"),
        (302, ""),
        (404, "404 page not found"),
        (404, {"Message": "Not Found", "Code": 3}),
        (405, ""),
    ],
    ids=str,
)
def test_another_program_is_not_taken_for_a_daemon(answer: tuple[int, Any], serve: Serve) -> None:
    with pytest.raises(InvalidInput, match="IPFS daemon") as caught:
        KuboStore(serve(program({"*": answer})))
    assert "127.0.0.1" in str(caught.value)


def test_a_holdfast_node_is_not_taken_for_a_daemon(serve: Serve, blocks: LocalStore) -> None:
    app = web.Application(middlewares=[errors_as_json])
    add_block_routes(app, blocks)
    with pytest.raises(InvalidInput, match="5001"):
        KuboStore(serve(app))
    closed = web.Application(middlewares=[errors_as_json, bearer_token("a token of some length")])
    add_block_routes(closed, blocks)
    with pytest.raises(Denied, match=r"API\.Authorizations"):
        KuboStore(serve(closed))


@pytest.mark.parametrize("status", [401, 403])
def test_a_daemon_that_refuses_is_not_called_broken(status: int, serve: Serve) -> None:
    with pytest.raises(Denied, match=r"API\.Authorizations"):
        KuboStore(serve(program({"*": (status, "403 - Forbidden")})))
    with KuboStore(serve(daemon(block__get=(status, "")))) as store, pytest.raises(Denied):
        store.get(Cid.of(b"x"))


@pytest.mark.parametrize(
    "answer", [(500, ""), (502, "<html>"), (503, ""), (500, {"Message": "boom", "Code": 0})], ids=str
)
def test_a_failing_daemon_is_worth_another_try(answer: tuple[int, Any], serve: Serve) -> None:
    with pytest.raises(Unavailable):
        KuboStore(serve(program({"*": answer})))


def test_a_daemon_that_hangs_does_not_hang_us(serve: Serve) -> None:
    async def hang(request: web.Request) -> web.Response:
        while request.transport is not None:  # noqa: ASYNC110 -- nothing else tells that the client is gone
            await asyncio.sleep(0.01)
        return web.Response()

    with pytest.raises(Unavailable, match="did not answer"):
        KuboStore(serve(program({"*": hang})), timeout_s=0.2)
    with KuboStore(
        serve(daemon(block__get=hang, block__stat=hang, dag__import=hang)), timeout_s=1.0
    ) as store:
        for call in (lambda: store.get(Cid.of(b"x")), lambda: store.has(Cid.of(b"x"))):
            with pytest.raises(Unavailable, match="did not answer"):
                call()


def test_a_daemon_that_keys_blocks_by_cid_is_too_old(serve: Serve) -> None:
    old = {
        "version": (200, {"Version": "0.11.0", "Repo": "11"}),
        "id": (200, {"AgentVersion": "go-ipfs/0.11.0/"}),
    }
    with pytest.raises(Unsupported, match=r"go-ipfs/0\.11\.0.*update it"):
        KuboStore(serve(program(old)))


# ---------------------------------------------------------------------------------------------- calls


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (MISSING, NotFound),
        ("block was not found locally (offline): ipld: could not find QmX", NotFound),
        ("merkledag: not found", NotFound),
        ("blockservice: key not found", NotFound),
        ("context deadline exceeded", Unavailable),
        ("Failed to get block: request timed out", Unavailable),
        ("leveldb: closed", Unavailable),
    ],
)
def test_a_missing_block_is_told_from_a_failure(
    message: str, error: type[HoldfastError], serve: Serve
) -> None:
    answer = (500, {"Message": message, "Code": 0, "Type": "error"})
    cid = Cid.of(b"wanted")
    with KuboStore(serve(daemon(block__get=answer, block__stat=answer))) as store:
        with pytest.raises(error) as caught:
            store.get(cid)
        assert store.url in str(caught.value)
        if error is NotFound:
            assert str(cid) in str(caught.value)
            assert not store.has(cid)
        else:
            with pytest.raises(Unavailable):
                store.has(cid)


@pytest.mark.parametrize("sent", [b"", b"wrong", b"right" + bytes(1), bytes(MAX_BLOCK_BYTES + 1)], ids=len)
def test_wrong_bytes_are_never_an_answer(sent: bytes, serve: Serve) -> None:
    with (
        KuboStore(serve(daemon(block__get=(200, sent)))) as store,
        pytest.raises(Corrupt, match=r"127\.0\.0\.1"),
    ):
        store.get(Cid.of(b"right"))


def test_an_answer_that_is_cut_off_is_not_taken_for_whole(serve: Serve) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.abort()
        return response

    with KuboStore(serve(daemon(block__get=cut, refs__local=cut))) as store:
        with pytest.raises(Unavailable, match="broke off"):
            store.get(Cid.of(b"half"))
        with pytest.raises(Unavailable, match="broke off"):
            list(store.multihashes())


@pytest.mark.parametrize("body", ["hello\n", "[1]\n", '{"Ref": 5}\n', '{"Ref": "", "Err": "disk"}\n'])
def test_a_list_of_blocks_that_makes_no_sense_is_no_list(body: str, serve: Serve) -> None:
    with (
        KuboStore(serve(daemon(refs__local=(200, body)))) as store,
        pytest.raises((InvalidInput, Unavailable), match=r"127\.0\.0\.1"),
    ):
        list(store.multihashes())


async def _take(request: web.Request, *, count: int | None, error: str = "") -> web.Response:
    await request.read()
    if error:
        return web.json_response({"Message": error, "Code": 0}, status=500)
    lines = "" if count is None else json.dumps({"Stats": {"BlockCount": count, "BlockBytesCount": 1}}) + "\n"
    return web.Response(text=lines, content_type="application/json")


@pytest.mark.parametrize("count", [None, 0, 1])
def test_an_import_that_lost_blocks_is_no_success(count: int | None, serve: Serve) -> None:
    async def take(request: web.Request) -> web.Response:
        return await _take(request, count=count)

    lacking = (500, {"Message": MISSING, "Code": 0})
    with (
        KuboStore(serve(daemon(dag__import=take, block__stat=lacking))) as store,
        pytest.raises(Unavailable, match="0 of 2 blocks"),
    ):
        store.put_many([block(b"one"), block(b"two")])


@pytest.mark.parametrize(
    "message", ["write /blocks/x: no space left on device", "import failed: merkledag: not found"]
)
def test_an_import_that_fails_is_said_to_have_failed(message: str, serve: Serve) -> None:
    async def take(request: web.Request) -> web.Response:
        return await _take(request, count=None, error=message)

    lacking = (500, {"Message": MISSING, "Code": 0})
    with (
        KuboStore(serve(daemon(dag__import=take, block__stat=lacking))) as store,
        pytest.raises(Unavailable, match="full" if "space" in message else "import failed"),
    ):
        store.put_many([block(b"one")])


def test_what_is_refused_before_it_is_sent_never_reaches_the_daemon(serve: Serve) -> None:
    asked: list[str] = []

    async def note(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=500)

    with KuboStore(serve(daemon(dag__import=note, block__stat=note))) as store:
        with pytest.raises(InvalidInput, match="at most"):
            store.put_many([block(b"small"), block(bytes(MAX_BLOCK_BYTES + 1))])
        assert store.put_many([]) == 0
    assert asked == []


def test_a_node_goes_on_with_what_it_knew_while_its_daemon_is_gone(serve: Serve) -> None:
    answers = [web.json_response({"NumObjects": 7, "RepoSize": 70}), web.Response(status=503)]

    async def count(_: web.Request) -> web.Response:
        return answers.pop(0)

    with KuboStore(serve(daemon(repo__stat=count))) as store:
        assert store.statistics() == {"blocks": 7, "bytes": 70}
        store._count_at = 0.0
        assert store.statistics() == {"blocks": 7, "bytes": 70}
    assert answers == []
    with KuboStore(serve(daemon(repo__stat=(503, "")))) as store, pytest.raises(Unavailable):
        store.statistics()


# ---------------------------------------------------------------------------------------------- settings


def test_a_home_whose_blocks_are_in_a_daemon_does_not_open_the_disk(serve: Serve, tmp_path) -> None:
    settings = load_settings(tmp_path, storage__ipfs=serve(daemon()))
    with open_backing(settings) as backing:
        assert isinstance(backing, KuboStore)
    with pytest.raises(Unsupported, match="ipfs repo gc"):
        open_local(settings)
    with pytest.raises(Unsupported, match="ipfs repo gc"), open_collector(settings):
        pass
    with closing(open_store(settings)) as store, pytest.raises(Unavailable, match="something broke"):
        store.pin(Cid.of(b"x"))
    with pytest.raises(InvalidInput, match=r"Datastore\.StorageMax"):
        open_backing(
            load_settings(tmp_path, storage__ipfs="http://127.0.0.1:5001", storage__max_bytes=1 << 30)
        )
    assert not (tmp_path / "blocks").exists()


def test_every_process_of_a_home_looks_where_its_blocks_are(tmp_path) -> None:
    note_ipfs(tmp_path, "http://user:secret@127.0.0.1:5001")
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    settings = load_settings(tmp_path)
    assert settings.storage.ipfs == "http://user:secret@127.0.0.1:5001"
    assert settings.origins["storage.ipfs"] == str(path)
    (tmp_path / "config.toml").write_text("[storage]\nipfs = 'http://127.0.0.1:1'\n")
    assert load_settings(tmp_path).storage.ipfs == "http://127.0.0.1:1"
    (tmp_path / "config.toml").unlink()
    note_ipfs(tmp_path, "")
    note_ipfs(tmp_path, "")
    assert load_settings(tmp_path).storage.ipfs == ""
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- transfer


@given(
    st.lists(st.binary(max_size=300), unique=True, max_size=30),
    st.integers(1, 2000),
    st.integers(1, 40),
    st.none() | st.just(block(b"a guard")),
)
def test_a_spool_sends_each_block_once_whatever_the_parts(
    contents: list[bytes], max_bytes: int, max_blocks: int, guard: tuple[Cid, bytes] | None
) -> None:
    spool = Spool(io.BytesIO())
    for content in contents:
        spool.write(*block(content))

    async def blocks_of(part: Any) -> list[tuple[Cid, bytes]]:
        car = io.BytesIO(b"".join([piece async for piece in part.car()]))

        async def read(size: int) -> bytes:
            return car.read(size)

        return [pair async for pair in read_car(read)]

    sent: list[tuple[Cid, bytes]] = []
    for part in spool.parts(max_bytes, max_blocks):
        blocks = asyncio.run(blocks_of(replace(part, guard=guard)))
        if guard is not None:
            assert blocks.pop(0) == guard
        assert [cid for cid, _ in blocks] == list(part.cids)
        assert part.end - part.start <= max_bytes or len(blocks) == 1
        assert len(blocks) <= max_blocks
        sent += blocks
    assert sent == [block(content) for content in contents]
    assert spool.payload_bytes == sum(map(len, contents))


def test_reading_ahead_never_holds_more_than_its_window() -> None:
    cids = [Cid.of(b"%d" % i) for i in range(50)]
    begun: list[Cid] = []

    async def fetch(cid: Cid) -> bytes:
        begun.append(cid)
        await asyncio.sleep(0)
        return cid.raw

    async def scenario() -> None:
        ahead = ReadAhead(fetch, 4)
        ahead.begin(cids)
        for _ in range(5):
            await asyncio.sleep(0)
        assert begun == cids[:4]
        assert ahead.take(cids[10]) is None  # not begun yet
        for at, cid in enumerate(cids[:20]):
            taken = ahead.take(cid)
            assert taken is not None
            assert await taken == cid.raw
            assert len(begun) <= at + 5
        ahead.begin(cids[40:42])  # something else: what was begun is dropped
        assert ahead.take(cids[21]) is None
        taken = ahead.take(cids[41])
        assert taken is not None
        assert await taken == cids[41].raw

    asyncio.run(scenario())
