"""Sizes as people read them."""

from __future__ import annotations

import pytest

from holdfast.sizes import human_size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1_048_575, "1.0 MiB"),
        (1 << 30, "1.0 GiB"),
        (1 << 60, "1,024.0 PiB"),
        (12.4, "12 B"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_a_size_is_written_as_people_read_it(size, text):
    assert human_size(size) == text
