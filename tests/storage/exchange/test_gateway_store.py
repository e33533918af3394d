"""One gateway as a store: the conformance suite, with the blocks put in behind it."""

from contextlib import closing

import pytest
from aiohttp import web

from holdfast.errors import Conflict, Corrupt, InvalidInput, NotFound, Unavailable, Unsupported
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.exchange.gateway_store import GatewayStore
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.testing import BlockReadTests, block


class TestGatewayStore(BlockReadTests):
    """Over a real node."""

    @pytest.fixture
    def make_store(self, tmp_path, start_node):
        with closing(LocalStore(tmp_path / "served")) as self.served:
            url = start_node(self.served).url
            yield lambda: GatewayStore(url, timeout_s=10)

    def fill(self, _, blocks):
        return self.served.put_many(blocks)


@pytest.fixture
def gateway(blocks, start_node):
    with closing(GatewayStore(start_node(blocks).url, timeout_s=10)) as store:
        yield store


def test_nothing_is_stored_in_a_gateway_or_listed_by_it(gateway):
    with pytest.raises(Unsupported, match="can only be read"):
        gateway.put_many([block(b"x")])
    with pytest.raises(Unsupported, match="does not tell"):
        gateway.multihashes()


def test_a_file_is_read_through_a_gateway(blocks, gateway):
    content = bytes(range(256)) * 20_000
    root = ContentStore(blocks).add_bytes(content)
    assert ContentStore(gateway).open(root) == content


def test_what_is_not_there_is_not_taken_for_what_does_not_answer(gateway):
    assert not gateway.has(Cid.of(b"x"))
    with pytest.raises(NotFound):
        gateway.get(Cid.of(b"x"))
    with closing(GatewayStore("http://127.0.0.1:1")) as gone:
        with pytest.raises(Unavailable):
            gone.get(Cid.of(b"x"))
        with pytest.raises(Unavailable):
            gone.has(Cid.of(b"x"))


def test_asking_whether_it_is_there_sends_no_gateway_to_search(serve):
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.method, request.headers["Cache-Control"]))
        return web.Response(status=412)

    app = web.Application()
    app.router.add_route("*", "/ipfs/{cid}", answer)
    with closing(GatewayStore(serve(app))) as store:
        assert not store.has(Cid.of(b"x"))
    assert asked == [("HEAD", "only-if-cached")]


def test_a_gateway_that_lies_gives_no_wrong_bytes(serve):
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=b"something else")

    app = web.Application()
    app.router.add_get("/ipfs/{cid}", answer)
    with closing(GatewayStore(serve(app))) as store, pytest.raises(Corrupt):
        store.get(Cid.of(b"x"))


def test_the_token_of_a_gateway_is_sent(blocks, start_node):
    cid, data = block(b"secret")
    blocks.put_many([(cid, data)])
    node = start_node(blocks, token="a-token-of-enough-characters")
    with closing(GatewayStore(node.url, token="a-token-of-enough-characters")) as store:
        assert store.has(cid)
        assert store.get(cid) == data
    with closing(GatewayStore(node.url)) as stranger, pytest.raises(Unavailable, match="401"):
        stranger.get(cid)


def test_an_address_that_is_none_is_refused_at_once():
    with pytest.raises(InvalidInput):
        GatewayStore("gopher://example")


def test_a_closed_gateway_says_so(gateway):
    gateway.close()
    gateway.close()
    with pytest.raises(Conflict, match="closed"):
        gateway.put_many([])
