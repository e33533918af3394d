"""A model server that runs beside the caller's own code."""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Self

from holdfast.errors import Conflict
from holdfast.loop_thread import LoopThread

if TYPE_CHECKING:
    from holdfast.inference import InferenceServer

__all__ = ["RunningServer"]


class RunningServer:
    """A server in a thread of this process; close it, or use it as a context manager.

    Args:
        server: Started here; closed by :meth:`close`, or when the program ends.
        name: Of the model that ``infer_url`` is for.
        host: Address to listen on.
        port: 0 takes a free one.

    Raises:
        Unavailable: The port is in use.
    """

    def __init__(self, server: InferenceServer, name: str, host: str, port: int) -> None:
        self.name = name
        self._server = server
        self._thread = LoopThread("holdfast-serve", at_end=server.aclose)
        weakref.finalize(self, self._thread.close)
        try:
            self.url: str = self._thread.run(server.start(host, port))
        except BaseException:
            self._thread.close()
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
        """Finish the requests in flight, and end the thread. Closing twice is fine."""
        with contextlib.suppress(Conflict):  # it is closed
            self._thread.run(self._server.aclose())
        self._thread.close()
