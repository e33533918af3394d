"""Models over HTTP, in the Open Inference Protocol v2 that KServe's and Triton's clients speak.

Example::

    server = InferenceServer({"digits": ServedModel(engine, version="3", cid="bafy...")}, token=token)
    url = await server.start("127.0.0.1", 8080)
    ...
    await server.aclose()

========================================= =========================================================
``GET  /v2``                              name, version and extensions of the server
``GET  /v2/health/live``, ``/v2/health/ready`` no token needed
``GET  /v2/models/NAME[/versions/V]``     inputs and outputs
``GET  /v2/models/NAME[/versions/V]/ready`` whether it is served
``POST /v2/models/NAME[/versions/V]/infer`` JSON, or the binary tensor data extension
``GET  /metrics``                         Prometheus text
========================================= =========================================================

Each answer carries the CID of the model that gave it, as ``parameters.model_cid``.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from holdfast.errors import Conflict, InvalidInput, NotFound, Unavailable
from holdfast.inference._batcher import Batcher, BatcherStatistics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from holdfast.inference._tensors import Engine

__all__ = ["InferenceServer", "ServedModel"]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model and how it is served."""

    engine: Engine
    version: str = "1"
    cid: str | None = None
    """CID of the model; each answer carries it as a receipt."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Anything that JSON can hold; shown with the model's inputs and outputs."""
    max_batch_size: int = 64
    """Rows that go through the engine together at most."""
    batching: bool = True
    """``False`` for a model whose rows influence each other."""
    inline_below_ms: float = 0.0
    """Batches that take less than this may run on the event loop, which spares tiny models the way to a thread
    and back (0.2 ms); 0 keeps all computing away from it."""


class InferenceServer:
    """An HTTP server for any number of models, one thread each.

    Args:
        models: The models by name.
        token: Bearer token that every request needs, except those for the server's health.
        max_body_bytes: A larger request is refused with 413.
        max_queue: Requests that may wait for one model; more are refused with 503.
        shutdown_timeout_s: How long :meth:`aclose` waits for requests that are being answered.

    Raises:
        InvalidInput: No models, a name, version, token or limit that can't be used.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        *,
        token: str | None = None,
        max_body_bytes: int = 64 << 20,
        max_queue: int = 1024,
        shutdown_timeout_s: float = 60.0,
    ) -> None:
        if not models:
            raise InvalidInput("there is no model to serve")
        for name, model in models.items():
            if not name or not model.version:
                raise InvalidInput(
                    f"the name and the version of a model must not be empty: {name!r}, {model.version!r}"
                )
            if model.max_batch_size < 1:
                raise InvalidInput(
                    f"max_batch_size of {name!r} must be at least 1, not {model.max_batch_size}"
                )
        if token is not None and not token:
            raise InvalidInput("the token is empty: pass None to serve without one")
        if max_body_bytes < 1 or max_queue < 1:
            raise InvalidInput("max_body_bytes and max_queue must be at least 1")
        self._models = dict(models)
        self._token = token
        self._max_body_bytes = max_body_bytes
        self._max_queue = max_queue
        self._shutdown_timeout_s = shutdown_timeout_s
        self._batchers: dict[str, Batcher] = {}
        self._runner: Any = None
        self._url: str | None = None
        self._closing: asyncio.Task[None] | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Serve from now on; the URL to reach the server at.

        Args:
            host: Address to listen on.
            port: Port to listen on; 0 takes a free one.

        Raises:
            Conflict: It was started before.
            Unavailable: The port is taken, or the host is not this machine's.
        """
        if self._runner is not None or self._closing is not None:
            raise Conflict("this server was started before: make a new one")
        from holdfast.inference._oip_routes import application
        from holdfast.web import listen

        app = application(self, token=self._token, max_body_bytes=self._max_body_bytes)
        for name, model in self._models.items():
            self._batchers[name] = Batcher(
                model.engine,
                name=name,
                max_batch_size=model.max_batch_size,
                max_queue=self._max_queue,
                batching=model.batching,
                inline_below_s=model.inline_below_ms / 1e3,
            )
            self._batchers[name].start()
        try:
            self._runner, self._url = await listen(
                app, host, port, shutdown_timeout_s=self._shutdown_timeout_s
            )
        except Unavailable:
            await self.aclose()
            raise
        return self._url

    async def aclose(self) -> None:
        """Refuse new requests, finish those that are being answered, and end all threads."""
        if self._closing is None:
            # One task for all callers: aiohttp's own clean-up hangs when it runs twice at the same time.
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        await asyncio.gather(*(batcher.aclose() for batcher in self._batchers.values()))
        self._url = None

    @property
    def url(self) -> str:
        """Where the server listens.

        Raises:
            Unavailable: It does not.
        """
        if self._url is None:
            raise Unavailable("the server is not running")
        return self._url

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self._url is not None and self._closing is None

    def statistics(self) -> dict[str, BatcherStatistics]:
        """What each model's queue has done so far."""
        return {name: batcher.statistics() for name, batcher in self._batchers.items()}

    def served(self, name: str, version: str | None = None) -> tuple[ServedModel, Batcher]:
        """A model and its queue.

        Raises:
            NotFound: No such model, or another version of it is served.
        """
        model = self._models.get(name)
        if model is None:
            raise NotFound(
                f"there is no model {name!r}; served are {', '.join(map(repr, sorted(self._models)))}"
            )
        if version is not None and version != model.version:
            raise NotFound(f"there is no version {version!r} of {name!r}; served is {model.version!r}")
        return model, self._batchers[name]
