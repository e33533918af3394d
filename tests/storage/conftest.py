"""Real nodes on loopback, and the public fixtures."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from anyio.from_thread import start_blocking_portal

from holdfast.storage.block_store import BlockStore, VerifyingStore
from holdfast.storage.content import ContentStore
from holdfast.storage.gateway.node_server import add_block_routes
from holdfast.storage.local.local_store import LocalStore
from holdfast.web import bearer_token, errors_as_json, listen


@pytest.fixture(scope="session")
def public_fixtures() -> Path:
    """The folder of test data of the IPLD, IPFS and multiformats projects."""
    default = Path(__file__).parents[2] / "../shared/fixtures"
    folder = Path(os.environ.get("HOLDFAST_FIXTURES") or default).resolve()
    if not folder.is_dir():
        pytest.skip("the public fixtures are not here; HOLDFAST_FIXTURES names their folder")
    return folder


@pytest.fixture
def blocks(tmp_path: Path) -> Iterator[LocalStore]:
    with closing(LocalStore(tmp_path / "blocks")) as store:
        yield store


@pytest.fixture
def store(blocks: LocalStore) -> ContentStore:
    """A content store over verified local blocks."""
    return ContentStore(VerifyingStore(blocks, source="the disk"))


@pytest.fixture
def serve() -> Iterator[Callable[[web.Application], str]]:
    """Starts applications on loopback, each on a port of its own, and gives their URLs."""
    with start_blocking_portal() as portal:
        runners: list[web.AppRunner] = []

        def start(app: web.Application) -> str:
            runner, url = portal.call(listen, app, "127.0.0.1", 0)
            runners.append(runner)
            return url

        yield start
        for runner in runners:
            portal.call(runner.cleanup)


class Node:
    """A real node: its URL, and the CIDs that it was asked for."""

    def __init__(self, url: str, asked: list[str], authorizations: list[str | None]) -> None:
        self.url = url
        self.asked = asked
        self.authorizations = authorizations


@pytest.fixture
def start_node(serve: Callable[[web.Application], str]) -> Callable[..., Node]:
    """Starts block servers that note what they are asked for."""

    def start(blocks: BlockStore, *, token: str | None = None) -> Node:
        asked: list[str] = []
        authorizations: list[str | None] = []

        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            asked.append(request.path.removeprefix("/ipfs/"))
            authorizations.append(request.headers.get("Authorization"))
            return await handler(request)

        middlewares: list[Middleware] = [note, errors_as_json]
        if token is not None:
            middlewares.append(bearer_token(token))
        app = web.Application(middlewares=middlewares)
        add_block_routes(app, blocks)
        return Node(serve(app), asked, authorizations)

    return start
