"""What a fetcher knows of each provider: how much it takes at once, how it behaved, and the connections to it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from holdfast.storage.exchange.block_client import BlockConnection

if TYPE_CHECKING:
    from holdfast.storage.exchange.block_client import Provider

__all__ = ["SLOW_MEANS", "Peer"]

LIAR_PENALTY_S = 300.0
ABSENT_PENALTY_S = 2.0
SLOW_MEANS = 3.0
"""A request is slow when it takes so many times as long as usual."""
_HOPELESS_AFTER = 3
_START_REQUESTS = 2.0


class Peer:
    """One provider, over all the downloads of a fetcher. Not locked: its fetcher's lock guards it.

    The number of requests at once begins at two and grows as long as more requests bring more bytes a second; a failure
    halves it.
    """

    def __init__(self, provider: Provider, most: int) -> None:
        self.provider = provider
        self.allowed = min(_START_REQUESTS, most)
        self.in_flight = 0
        self.asked = 0
        self.mean_s: float | None = None
        """How long one block takes, lately."""
        self.blocked_until = 0.0
        self.hopeless = False
        """Whether it lied, or failed several times in a row."""
        self._most = most
        self._idle: list[BlockConnection] = []
        self._failures = 0
        self._last_gave = 0.0
        self._best_rate = 0.0
        self._epoch_began = 0.0
        self._epoch_blocks = self._epoch_bytes = 0
        self._epoch_full = False

    def begin(self) -> None:
        """Count a request that is to be sent now."""
        if self.in_flight == 0:
            self._new_epoch()
        self.in_flight += 1
        self.asked += 1
        if self.in_flight >= int(self.allowed):
            self._epoch_full = True

    @property
    def free(self) -> bool:
        """Whether it may be sent one more request."""
        return self.in_flight < int(self.allowed)

    def stalled(self, since: float) -> bool:
        """Whether a request that was sent then takes longer than a busy line explains: nothing came since."""
        usual_s = self.mean_s or 0.0
        return self._last_gave < since and time.monotonic() - since > SLOW_MEANS * usual_s

    def answered(self) -> None:
        """Note that it is there, and said honestly what it has."""
        self._failures = 0
        self.hopeless = False

    def gave(self, size: int, duration_s: float) -> None:
        """Note a block that came and was right."""
        self.answered()
        self._last_gave = time.monotonic()
        self.mean_s = duration_s if self.mean_s is None else 0.8 * self.mean_s + 0.2 * duration_s
        self._epoch_blocks += 1
        self._epoch_bytes += size
        if self._epoch_blocks < 2 * self.allowed:
            return
        rate = self._epoch_bytes / max(1e-6, time.monotonic() - self._epoch_began)
        if self._epoch_full:
            if rate > 1.1 * self._best_rate:
                self._best_rate = rate
                self.allowed = min(self._most, self.allowed * 1.5)
            else:
                if rate < 0.9 * self._best_rate:
                    self.allowed = max(_START_REQUESTS, self.allowed - 1)
                self._best_rate *= 0.98  # what was best once need not be so for ever
        self._new_epoch()

    def blame(self, *, lied: bool) -> float:
        """Note a failure or a lie; for how many seconds it is asked last."""
        self._failures += 1
        self.allowed = max(1.0, self.allowed / 2)
        self._best_rate = 0.0
        self.hopeless = lied or self._failures >= _HOPELESS_AFTER
        penalty_s = (
            LIAR_PENALTY_S
            if lied
            else min(LIAR_PENALTY_S, ABSENT_PENALTY_S * 2 ** min(self._failures - 1, 10))
        )
        self.blocked_until = max(self.blocked_until, time.monotonic() + penalty_s)
        return penalty_s

    def connection(self) -> BlockConnection:
        """A connection that nobody uses: an old one if there is one."""
        return self._idle.pop() if self._idle else BlockConnection(self.provider)

    def keep(self, connection: BlockConnection) -> None:
        """Take back a connection for the next request."""
        self._idle.append(connection)

    def close_idle(self) -> None:
        """Close the connections that nobody uses."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _new_epoch(self) -> None:
        self._epoch_began = time.monotonic()
        self._epoch_blocks = self._epoch_bytes = 0
        self._epoch_full = False
