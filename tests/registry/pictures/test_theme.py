"""Colours are told apart, also by people who see fewer of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from holdfast.errors import InvalidInput
from holdfast.registry import AIMLMetricsCollector, create_visualization
from holdfast.registry.pictures.theme import COLOURS, DARK, LIGHT, THEMES

SEEN_AS = {
    "all colours": np.eye(3),
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
}
"""Linear RGB as it is seen with one kind of cone missing (Machado, Oliveira and Fernandes, 2009)."""
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1.0, 1.089])


def linear(colour: str) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = TO_XYZ @ np.clip(rgb, 0, 1) / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(colour: str, other: str) -> float:
    dark, light = sorted(float(TO_XYZ[1] @ linear(c)) for c in (colour, other))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
@pytest.mark.parametrize("eye", SEEN_AS)
def test_no_two_lines_look_alike(theme, eye):
    seen = {c: lab(np.array(SEEN_AS[eye]) @ linear(c)) for c in theme.palette}
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 13, f"{one} and {other} with {eye}"


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_lines_and_texts_stand_out_from_their_ground(theme):
    assert all(contrast(colour, theme.panel) >= 3 for colour in theme.palette)
    for ground in (theme.panel, theme.page):
        assert contrast(theme.text, ground) >= 7
        assert contrast(theme.soft, ground) >= 4.5


def test_a_finished_picture_can_take_the_colours_of_another_theme():
    for theme in THEMES.values():
        assert len(set(theme.colours().values())) == len(theme.colours())
        assert len(theme.palette) == COLOURS
    assert LIGHT.colours().keys() == DARK.colours().keys()


def test_an_unknown_theme_is_an_error_with_a_suggestion():
    with pytest.raises(InvalidInput, match="did you mean 'dark'"):
        create_visualization(AIMLMetricsCollector(), theme="drak")
