"""The colours of pictures and reports, for light and for dark pages."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields

from holdfast.errors import InvalidInput

__all__ = ["COLOURS", "DARK", "LIGHT", "THEMES", "Theme", "theme_named"]

COLOURS = 8
"""How many things can be told apart by colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Colours as ``#rrggbb``; no two of a theme are equal, so that a finished picture can be given another theme's."""

    name: str
    page: str
    panel: str
    text: str
    soft: str
    """Of labels and notes."""
    grid: str
    edge: str
    """Of axes and marks."""
    palette: tuple[str, ...]
    """Told apart by people who see fewer colours, and on the panel: tests/registry/pictures/test_theme.py measures it."""

    def colour(self, place: int) -> str:
        """The colour at a place of the palette, which begins anew at its end."""
        return self.palette[place % len(self.palette)]

    def colours(self) -> dict[str, str]:
        """Every colour by a name that is the same in all themes."""
        single = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("name", "palette")}
        return single | {f"line-{place}": colour for place, colour in enumerate(self.palette)}


LIGHT = Theme(
    name="light",
    page="#f6f7f8",
    panel="#ffffff",
    text="#15191d",
    soft="#57616b",
    grid="#e6e9ec",
    edge="#a3abb3",
    palette=("#0067b0", "#d45500", "#158541", "#c4517a", "#6a3906", "#3099c1", "#41329f", "#5a3670"),
)
DARK = Theme(
    name="dark",
    page="#0d0f11",
    panel="#14171a",
    text="#eceff1",
    soft="#9aa4ad",
    grid="#262b30",
    edge="#5b656e",
    palette=("#5aa9f0", "#f0844a", "#5fdf92", "#cf73b0", "#ece06a", "#bfeaff", "#8573ff", "#a8a58c"),
)
THEMES = {theme.name: theme for theme in (LIGHT, DARK)}


def theme_named(name: str) -> Theme:
    """The theme of a name.

    Raises:
        InvalidInput: There is none.
    """
    if name in THEMES:
        return THEMES[name]
    near = difflib.get_close_matches(str(name), THEMES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InvalidInput(f"there is no theme {name!r}, but {' and '.join(map(repr, THEMES))}{hint}")
