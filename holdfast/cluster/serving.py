"""A model of the registry behind HTTP, from a client's own process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from anyio.from_thread import start_blocking_portal

from holdfast.inference import InferenceServer, ServedModel
from holdfast.inference.conversion import open_engine
from holdfast.registry.records import ModelRecord, load_record

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from anyio.from_thread import BlockingPortal

    from holdfast.cluster.client import Client
    from holdfast.storage.cid import Cid

__all__ = ["RunningServer", "serve_model", "served_model"]


def served_model(client: Client, ref: str | Cid, *, threads: int) -> tuple[str, ServedModel]:
    """The name under which a model is served, and the model: converted if need be, its bytes verified."""
    cid = client.models.resolve(str(ref))
    entry = next((e for e in client.models.entries() if e.cid == cid), None)
    conversion, record = client.convert(cid)
    manifest = load_record(client.store, cid, ModelRecord)
    served = ServedModel(
        open_engine(client.store, record, threads=threads),
        version=entry.version if entry else "1",
        cid=str(cid),
        metadata={"conversion": str(conversion), "metrics": dict(manifest.metrics)},
    )
    return entry.name if entry else "model", served


class RunningServer:
    """A server in a thread of this process; close it, or use it as a context manager."""

    def __init__(self, server: InferenceServer, name: str, host: str, port: int) -> None:
        self.name = name
        self._server = server
        self._context: AbstractContextManager[BlockingPortal] = start_blocking_portal(name="holdfast-serve")
        self._portal = self._context.__enter__()
        try:
            self.url: str = self._portal.call(server.start, host, port)
        except BaseException:
            self._context.__exit__(None, None, None)
            raise

    @property
    def infer_url(self) -> str:
        """Where to POST requests to."""
        return f"{self.url}/v2/models/{self.name}/infer"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish the requests in flight, and end the thread."""
        self._portal.call(self._server.aclose)
        self._context.__exit__(None, None, None)


def serve_model(
    client: Client, ref: str | Cid, *, host: str, port: int, token: str | None, threads: int
) -> RunningServer:
    """Serve one model; see :meth:`Client.serve`."""
    name, served = served_model(client, ref, threads=threads)
    return RunningServer(InferenceServer({name: served}, token=token), name, host, port)
