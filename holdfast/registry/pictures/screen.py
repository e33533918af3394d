"""Where a figure can be shown: in a notebook, on a screen, or nowhere."""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["has_screen", "ipython", "notebook"]


def ipython() -> Any:
    """The running IPython shell; None outside of one."""
    module = sys.modules.get("IPython")
    return module.get_ipython() if module is not None and hasattr(module, "get_ipython") else None


def notebook() -> bool:
    """Whether this is a notebook's kernel, which can show pictures."""
    return getattr(ipython(), "kernel", None) is not None


def has_screen() -> bool:
    """Whether a window or a browser could be opened."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
