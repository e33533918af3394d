"""Arguments that count something."""

from __future__ import annotations

import operator
from typing import Any

from holdfast.errors import InvalidInput

__all__ = ["whole_number"]


def whole_number(name: str, value: Any, *, least: int | None = None) -> int:
    """An argument as Python's own integer; NumPy's integers are ones, too.

    Args:
        name: Of the argument, for the message.
        value: What was given.
        least: The smallest that can be.

    Raises:
        InvalidInput: It is a truth value, a float, text or whatever else; or too small.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        least_text = "" if least is None else f" from {least}"
        raise InvalidInput(f"{name} must be a whole number{least_text}, not {value!r:.80}")
    return number
