"""Many providers at once, good and bad ones: what arrives, in which order, and how much is asked for ahead."""

import os
import socketserver
import threading
from contextlib import closing, contextmanager, suppress
from itertools import islice, pairwise

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.errors import Conflict, Corrupt, HoldfastError, InvalidInput, NotFound, Unavailable, Unsupported
from holdfast.storage.block_store import MAX_BLOCK_BYTES
from holdfast.storage.cid import Cid
from holdfast.storage.exchange.block_client import BlockConnection, BufferPool
from holdfast.storage.exchange.fetcher import Fetcher, Progress, Provider
from holdfast.storage.exchange.peers import Peer
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.testing import block

TIMEOUT_S = 30.0


def plain(data: bytes, status: str = "200 OK", *fields: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(data)}", *fields])
    return head.encode() + b"\r\n\r\n" + data


def chunked(data: bytes) -> bytes:
    at = len(data) // 3
    pieces = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(p), p) for p in (data[:at], data[at:]) if p)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + pieces + b"0\r\nTrailer: x\r\n\r\n"


KEEPS = {
    "good": plain,
    "in chunks": chunked,
    "told to go on": lambda data: b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + plain(data),
}
CLOSES = {
    "closing": lambda data: b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + data,
    "old": lambda data: b"HTTP/1.0 200 OK\r\n\r\n" + data,
}
FAULTY_KEEPS = {
    "lying": lambda data: plain(bytes(len(data)) + b"x"),
    "lacking": lambda _: plain(b"{}", "404 Not Found"),
    "failing": lambda _: plain(b"oops", "500 Internal Server Error"),
    "busy": lambda _: plain(b"", "429 Too Many Requests", "Retry-After: 1"),
    "elsewhere": lambda _: plain(b"", "302 Found", "Location: http://127.0.0.1:1/"),
}
FAULTY_CLOSES = {
    "cut off": lambda data: plain(data + b"!")[:-1],
    "cut off in a chunk": lambda data: chunked(data + b"more")[:-12],
    "silent": lambda _: b"",
    "another protocol": lambda _: b"220 mail.example ESMTP\r\n\r\n",
    "endless head": lambda _: b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000,
    "huge": lambda data: b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n" + data,
    "no length": lambda data: b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + data,
    "two lengths": lambda data: b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n" + data,
    "wrong chunk": lambda data: (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n" + data + b"\r\n0\r\n\r\n"
    ),
    "too long a chunk": lambda _: (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n" + bytes(1000)
    ),
}
ANSWERS = KEEPS | CLOSES | FAULTY_KEEPS | FAULTY_CLOSES
HANGING = "hanging"


class Gateways:
    """Every kind of provider on one port, below a path of its own: ``<url>/<kind>``."""

    def __init__(self) -> None:
        self.blocks: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self._ending = threading.Event()
        gateways = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while (line := self.rfile.readline()).startswith(b"GET "):
                    while self.rfile.readline().strip():
                        pass
                    _, number, _, cid = line.split()[1].split(b"?")[0].decode().split("/")
                    kind = [*ANSWERS, HANGING][int(number)]
                    gateways.asked.append((kind, cid))
                    if kind == HANGING:
                        gateways._ending.wait(TIMEOUT_S)
                        return
                    self.wfile.write(ANSWERS[kind](gateways.blocks[cid]))
                    if kind in CLOSES or kind in FAULTY_CLOSES:
                        return

            def finish(self) -> None:
                with suppress(OSError):  # the client went away
                    super().finish()

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: object) -> None:
                pass  # the client went away

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def provider(self, kind: str) -> Provider:
        number = [*ANSWERS, HANGING].index(kind)
        return Provider(f"http://127.0.0.1:{self._server.server_address[1]}/{number}")

    def close(self) -> None:
        self._ending.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def gateways():
    with closing(Gateways()) as running:
        yield running


@contextmanager
def fetching(*providers, **options):
    with closing(Fetcher(lambda: providers, **{"timeout_s": TIMEOUT_S, **options})) as fetcher:
        yield fetcher


sizes = st.one_of(
    st.integers(0, 2000), st.sampled_from([1 << 16, (1 << 16) + 1, 200_000, 1 << 20, MAX_BLOCK_BYTES])
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    faulty=st.lists(
        st.sampled_from([*FAULTY_KEEPS, *FAULTY_CLOSES, HANGING]), unique=True, min_size=0, max_size=5
    ),
    good=st.sampled_from([*KEEPS, *CLOSES]),
    place=st.integers(0, 5),
    lengths=st.lists(sizes, min_size=1, max_size=12),
    concurrency=st.integers(1, 16),
    window_mib=st.integers(1, 8),
)
def test_no_mix_of_faulty_providers_loses_a_block_that_one_good_one_has(  # noqa: PLR0917 -- what may vary
    gateways, faulty, good, place, lengths, concurrency, window_mib
):
    blocks = [block(os.urandom(length)) for length in lengths]
    gateways.blocks |= {str(cid): data for cid, data in blocks}
    kinds = [*faulty[:place], good, *faulty[place:]]
    providers = [gateways.provider(kind) for kind in kinds]
    with fetching(
        *providers, timeout_s=2.0, concurrency=concurrency, window_bytes=window_mib << 20
    ) as fetcher:
        got = [(cid, bytes(data)) for cid, data in fetcher.stream([cid for cid, _ in blocks])]
        statistics = fetcher.statistics()
    assert got == blocks
    assert statistics["bytes"] == sum(lengths)
    assert statistics["bytes_by_provider"] in ({gateways.provider(good).url: sum(lengths)}, {})


@pytest.mark.parametrize("kind", [*FAULTY_KEEPS, *FAULTY_CLOSES])
def test_each_fault_alone_is_an_error_of_its_class_that_names_the_provider(gateways, kind):
    cid, data = block(b"wanted" * 100)
    gateways.blocks[str(cid)] = data
    provider = gateways.provider(kind)
    expected = {
        "lying": Corrupt,
        "huge": Corrupt,
        "too long a chunk": Corrupt,
        "lacking": NotFound,
    }.get(kind, Unavailable)
    with fetching(provider, timeout_s=5.0) as fetcher, pytest.raises(expected, match=provider.url) as caught:
        fetcher.fetch([cid])
    assert str(cid) in str(caught.value)


def test_a_slow_provider_does_not_hold_up_what_another_one_has(gateways):
    blocks = [block(b"%d" % i * 100) for i in range(20)]
    gateways.blocks |= {str(cid): data for cid, data in blocks}
    before = len(gateways.asked)
    slow, good = gateways.provider(HANGING), gateways.provider("good")
    with fetching(slow, good, timeout_s=600.0) as fetcher:  # not the deadline, but impatience helps
        assert fetcher.fetch([cid for cid, _ in blocks]) == [data for _, data in blocks]
        assert fetcher.statistics()["bytes_by_provider"] == {good.url: sum(len(d) for _, d in blocks)}
        asked_once = [kind for kind, _ in gateways.asked[before:]].count(HANGING)
        fetcher.fetch([cid for cid, _ in blocks])
    assert [kind for kind, _ in gateways.asked[before:]].count(HANGING) == asked_once <= 2


def test_no_more_is_asked_for_than_the_window_holds(serve):
    size = 256 << 10
    blocks = dict(block(os.urandom(size)) for _ in range(64))
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.match_info["cid"])
        return web.Response(body=blocks[Cid.parse(request.match_info["cid"])])

    app = web.Application()
    app.router.add_get("/ipfs/{cid}", answer)
    window, concurrency = 8, 4
    ahead = []
    with fetching(Provider(serve(app)), concurrency=concurrency, window_bytes=window * size) as fetcher:
        for taken, (cid, data) in enumerate(fetcher.stream(list(blocks)), 1):
            assert bytes(data) == blocks[cid]
            ahead.append(len(asked) - taken)
    # Until the first blocks came it is not known how large they are.
    assert max(ahead) <= window + concurrency
    assert len(asked) == len(blocks)


def test_a_block_wanted_twice_comes_twice(gateways):
    cid, data = block(b"again")
    gateways.blocks[str(cid)] = data
    with fetching(gateways.provider("good")) as fetcher:
        assert fetcher.fetch([cid, cid, cid]) == [data] * 3


def test_what_lies_in_the_name_is_not_asked_for(gateways):
    before = len(gateways.asked)
    inline = Cid(b"\x01\x55\x00\x05hello")
    with fetching(gateways.provider("good")) as fetcher:
        assert fetcher.fetch([inline]) == [b"hello"]
    with fetching() as fetcher:
        assert fetcher.fetch([inline]) == [b"hello"]
    assert len(gateways.asked) == before


def test_a_hash_that_can_not_be_checked_is_not_asked_for(gateways):
    before = len(gateways.asked)
    unknown = Cid(b"\x01\x55\x16\x20" + bytes(32))  # sha3-256
    with fetching(gateways.provider("good")) as fetcher, pytest.raises(Unsupported, match=str(unknown)):
        fetcher.fetch([unknown])
    assert len(gateways.asked) == before


def test_progress_is_told_exactly(tmp_path, start_node):
    blocks = [block(b"%d" % i * (i + 1)) for i in range(50)]
    steps: list[Progress] = []
    with closing(LocalStore(tmp_path / "half")) as half, closing(LocalStore(tmp_path / "all")) as whole:
        half.put_many(blocks[::2])
        whole.put_many(blocks)
        nodes = [start_node(half), start_node(whole)]
        with fetching(*(Provider(node.url) for node in nodes)) as fetcher:
            taken = 0
            for _, data in fetcher.stream([cid for cid, _ in blocks], progress=steps.append):
                taken += len(data)
                assert steps[-1].size_bytes == taken
            assert fetcher.statistics()["bytes_by_provider"] == steps[-1].bytes_by_provider
    assert [step.blocks for step in steps] == list(range(1, 51))
    assert {step.total_blocks for step in steps} == {50}
    last = steps[-1]
    assert last.size_bytes == sum(len(data) for _, data in blocks) == sum(last.bytes_by_provider.values())
    for before, after in pairwise(steps):
        assert all(after.bytes_by_provider[url] >= size for url, size in before.bytes_by_provider.items())


def test_what_came_is_given_before_the_error_about_what_did_not(tmp_path, start_node):
    blocks = [block(b"%d" % i) for i in range(30)]
    here = [each for i, each in enumerate(blocks) if i not in (3, 17, 29)]
    with closing(LocalStore(tmp_path / "other")) as other:
        other.put_many(here)
        node = start_node(other)
        with fetching(Provider(node.url)) as fetcher:
            stream = fetcher.stream([cid for cid, _ in blocks])
            got = [(cid, bytes(data)) for cid, data in islice(stream, len(here))]
            with pytest.raises(NotFound) as caught:
                next(stream)
    assert got == here
    assert all(part in str(caught.value) for part in (str(blocks[3][0]), node.url, "2 more"))


def test_a_provider_that_is_gone_is_not_asked_for_each_of_a_thousand_blocks(gateways):
    blocks = [block(b"%d" % i) for i in range(1000)]
    gateways.blocks |= {str(cid): data for cid, data in blocks}
    before = len(gateways.asked)
    with fetching(gateways.provider("silent")) as fetcher, pytest.raises(Unavailable, match="999 more"):
        fetcher.fetch([cid for cid, _ in blocks])
    assert len(gateways.asked) - before < 100


def test_downloads_side_by_side_all_get_their_blocks(gateways):
    blocks = [block(os.urandom(5000)) for _ in range(200)]
    gateways.blocks |= {str(cid): data for cid, data in blocks}
    wrong: list[object] = []
    with fetching(gateways.provider("good"), gateways.provider("in chunks"), concurrency=4) as fetcher:

        def work(at: int) -> None:
            try:
                mine = blocks[at * 20 : at * 20 + 40]
                if fetcher.fetch([cid for cid, _ in mine]) != [data for _, data in mine]:
                    wrong.append(at)
            except HoldfastError as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(at,)) for at in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
    assert wrong == []


def test_a_download_that_nobody_reads_does_not_stop_another_one(gateways):
    blocks = [block(os.urandom(100_000)) for _ in range(40)]
    gateways.blocks |= {str(cid): data for cid, data in blocks}
    cids = [cid for cid, _ in blocks]
    with fetching(gateways.provider("good"), concurrency=2, window_bytes=1 << 20) as fetcher:
        stalled = fetcher.stream(cids)
        next(stalled)
        assert fetcher.fetch(cids) == [data for _, data in blocks]
        assert [bytes(data) for _, data in stalled] == [data for _, data in blocks[1:]]


def test_closing_ends_a_stream_that_is_being_read(gateways):
    blocks = [block(os.urandom(1000)) for _ in range(10)]
    gateways.blocks |= {str(cid): data for cid, data in blocks}
    with fetching(gateways.provider("good")) as fetcher:
        stream = fetcher.stream([cid for cid, _ in blocks])
        next(stream)
        fetcher.close()
        with pytest.raises(Conflict, match="closed"):
            list(stream)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1",
        "http://",
        "http://host:port",
        "http://host/\r\nX: y",
        "http://h?x=1",
        "http://hé",
        "http://[",
    ],
)
def test_an_address_that_is_none_is_refused_by_name(url):
    with pytest.raises(InvalidInput, match=r"address"):
        BlockConnection(Provider(url))
    with fetching(Provider(url)) as fetcher, pytest.raises(Unavailable):
        fetcher.fetch([Cid.of(b"x")])


def test_a_token_can_not_smuggle_headers():
    with pytest.raises(InvalidInput) as caught:
        BlockConnection(Provider("http://127.0.0.1:1", "secret\r\nX: y"))
    assert "secret" not in str(caught.value)


def test_buffers_are_used_again_up_to_a_bound():
    pool = BufferPool(2 << 20)
    first = memoryview(pool.take(1 << 20))[:1000]
    kept = first.obj
    pool.give(first)
    assert pool.take(1 << 20) is kept
    pool.give(memoryview(bytearray(2 << 20)))
    pool.give(memoryview(bytearray(256 << 10)))  # no room for this one
    assert len(pool.take(256 << 10)) == 256 << 10
    pool.give(b"not a buffer of the pool")


def test_a_provider_gets_more_requests_at_once_while_that_brings_more_and_fewer_when_it_fails(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("holdfast.storage.exchange.peers.time.monotonic", lambda: now[0])
    peer = Peer(Provider("http://x"), 16)

    def rounds(count: int, limit: int) -> None:
        """Each request takes a second; the provider's line carries ``limit`` blocks in that time."""
        for _ in range(count):
            running = int(peer.allowed)
            for _ in range(running - peer.in_flight):
                peer.begin()
            now[0] += max(1.0, running / limit)
            for _ in range(running):
                peer.in_flight -= 1
                peer.gave(1000, 1.0)
                peer.begin()

    rounds(40, limit=100)
    assert int(peer.allowed) == 16
    peer.blame(lied=False)
    assert int(peer.allowed) == 8
    narrow = Peer(Provider("http://y"), 16)
    peer = narrow
    rounds(40, limit=3)
    assert int(narrow.allowed) <= 6


def test_the_penalty_of_an_absent_provider_grows_and_ends_when_it_answers():
    peer = Peer(Provider("http://x"), 16)
    assert [peer.blame(lied=False) for _ in range(3)] == [2.0, 4.0, 8.0]
    assert peer.hopeless
    assert max(peer.blame(lied=False) for _ in range(20)) == 300.0
    peer.gave(1, 0.1)
    assert not peer.hopeless
    assert peer.blame(lied=False) == 2.0
    assert peer.blame(lied=True) == 300.0
    assert peer.hopeless
