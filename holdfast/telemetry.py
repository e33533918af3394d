"""Logs and Prometheus metrics, one place for all rooms.

``get_logger`` gives children of the logger ``holdfast``; the library never configures handlers, only the
command line does (:func:`log_to_stderr`). Counters live in Prometheus' default registry and are created on
first use, so that ``import holdfast`` stays quick.
"""

from __future__ import annotations

import functools
import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

__all__ = ["counter", "exposition", "get_logger", "histogram", "log_to_stderr"]

logging.getLogger("holdfast").addHandler(logging.NullHandler())


def get_logger(name: str) -> logging.Logger:
    """The logger of one module: pass ``__name__``."""
    return logging.getLogger(name)


def log_to_stderr(level: str = "INFO") -> None:
    """Print holdfast's log records of ``level`` and above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logger = logging.getLogger("holdfast")
    logger.addHandler(handler)
    logger.setLevel(level)


@functools.cache
def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
    """The counter ``name`` of this process; the same object each time."""
    from prometheus_client import Counter

    return Counter(name, text, labels)


@functools.cache
def histogram(name: str, text: str, labels: tuple[str, ...] = ()) -> Histogram:
    """The histogram ``name`` of this process; the same object each time."""
    from prometheus_client import Histogram

    return Histogram(name, text, labels)


def exposition() -> tuple[bytes, str]:
    """All metrics of this process as Prometheus text, with its content type."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    return generate_latest(), CONTENT_TYPE_LATEST.split(";", maxsplit=1)[0]
