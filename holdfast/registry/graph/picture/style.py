"""How the picture looks: colours in light and dark, and a sign for each kind, so that no colour is needed to tell them apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["DARK", "HEAD", "LIGHT", "MARGIN", "SIGN_SIZE", "TITLE_HEIGHT", "Theme", "colour_class", "sign_of"]

MARGIN = 32.0
TITLE_HEIGHT = 62.0
SIGN_SIZE = 13.0
HEAD = 9.0
"""Length of an arrow's head, which ends at the edge of a box."""

Polygon = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Colours as ``#rrggbb``; each text on its ground has a contrast of 4.5 or more."""

    page: str
    box: str
    border: str
    text: str
    quiet: str
    """Facts, CIDs and roles."""
    arrow: str
    kinds: dict[str, str]


LIGHT = Theme(
    page="#f7f8fa",
    box="#ffffff",
    border="#d3d8e0",
    text="#161b22",
    quiet="#57606d",
    arrow="#8d97a5",
    kinds={
        "dataset": "#0b6e4f",
        "run": "#a34a00",
        "model": "#5b3cc4",
        "index": "#a3195b",
        "conversion": "#0a5fb4",
        "code": "#4d5867",
        "environment": "#6b5200",
        "file": "#4d5867",
        "other": "#4d5867",
    },
)
DARK = Theme(
    page="#0f1318",
    box="#1a2028",
    border="#37414e",
    text="#eef2f7",
    quiet="#a3adba",
    arrow="#77828f",
    kinds={
        "dataset": "#45c795",
        "run": "#f0964b",
        "model": "#a996ff",
        "index": "#f47fb2",
        "conversion": "#6cb2ff",
        "code": "#b4bfcc",
        "environment": "#d9b84a",
        "file": "#b4bfcc",
        "other": "#b4bfcc",
    },
)


def colour_class(kind: str) -> str:
    """Which of a theme's colours a kind has."""
    if kind in ("directory", "symlink"):
        return "file"
    return kind if kind in LIGHT.kinds else "other"


def _ring(corners: int, turn: float = 0.0, radius: float = 0.5) -> Polygon:
    return tuple(
        (
            0.5 + radius * math.sin(2 * math.pi * (k + turn) / corners),
            0.5 - radius * math.cos(2 * math.pi * (k + turn) / corners),
        )
        for k in range(corners)
    )


_SIGNS: dict[str, tuple[Polygon, ...]] = {
    "dataset": tuple(((0, y), (1, y), (1, y + 0.24), (0, y + 0.24)) for y in (0.0, 0.38, 0.76)),
    "run": (((0.1, 0), (1, 0.5), (0.1, 1)),),
    "model": (_ring(6),),
    "index": (_ring(4),),
    "conversion": (((0, 0.08), (0.5, 0.5), (0, 0.92)), ((0.5, 0.08), (1, 0.5), (0.5, 0.92))),
    "code": (
        ((0.32, 0.1), (0.45, 0.2), (0.2, 0.5), (0.45, 0.8), (0.32, 0.9), (0, 0.5)),
        ((0.68, 0.1), (0.55, 0.2), (0.8, 0.5), (0.55, 0.8), (0.68, 0.9), (1, 0.5)),
    ),
    "environment": tuple(
        ((x, y), (x + 0.42, y), (x + 0.42, y + 0.42), (x, y + 0.42)) for x in (0.0, 0.58) for y in (0.0, 0.58)
    ),
    "file": (((0.1, 0), (0.6, 0), (0.9, 0.3), (0.9, 1), (0.1, 1)),),
    "directory": (((0, 0.1), (0.4, 0.1), (0.5, 0.25), (1, 0.25), (1, 0.9), (0, 0.9)),),
    "attestation": (((0.5, 0), (0.95, 0.15), (0.95, 0.55), (0.5, 1), (0.05, 0.55), (0.05, 0.15)),),
}


def sign_of(kind: str) -> tuple[Polygon, ...]:
    """The filled polygons of a kind's sign, in a square from 0 to 1; a disc for kinds that nobody thought of."""
    return _SIGNS.get(kind, (_ring(20, radius=0.42),))
