"""A node that serves blocks, from each kind of store that it may serve from."""

import pytest
from aiohttp import web

from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.gateway.node_server import add_block_routes
from holdfast.web import errors_as_json
from tests.storage.gateway.gateway_client import FileStore


@pytest.fixture
def files(tmp_path):
    return FileStore(tmp_path / "blocks.bin")


@pytest.fixture(params=["local store", "file store", "verifying store"])
def source(request, blocks, files):
    """The stores that a node may serve from."""
    return {
        "local store": blocks,
        "file store": files,
        "verifying store": VerifyingStore(blocks, source="the disk"),
    }[request.param]


@pytest.fixture
def start_gateway(serve):
    """Starts a node, and gives its URL and its gateway."""

    def start(store):
        app = web.Application(middlewares=[errors_as_json])
        gateway = add_block_routes(app, store)
        return serve(app), gateway

    return start


@pytest.fixture
def node(source, start_node):
    return start_node(source)
