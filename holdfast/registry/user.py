"""Who runs this process, for what is noted beside a change or a result."""

from __future__ import annotations

import getpass
import os
import socket

__all__ = ["this_user"]


def this_user() -> str:
    """Who runs this process: ``user@host``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"  # containers run as numbers that have no name
    return f"{user}@{socket.gethostname()}"
