"""Text of strangers stays on its line, and says nothing in another's name."""

from __future__ import annotations

import pytest

from holdfast.cluster.cli.output import table
from holdfast.printable import printable


@pytest.mark.parametrize(
    "letter", ["\n", "\r", "\x1b", "\x00", "\x85", "\u2028", "\u202e", "\u2066", "\u200b", "\ud800"]
)
def test_what_changes_how_the_rest_reads_is_replaced(letter):
    assert printable(f"a{letter}b") == "a\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize("text", ["", "plain text", "é ü 漢字 ✓ │", "a\N{REPLACEMENT CHARACTER}b"])
def test_what_is_only_text_stays_as_it_is(text):
    assert printable(text) == text


def test_a_row_of_a_table_is_one_line():
    assert table(["NAME"], [["first\nsecond\x1b[2K"]]).splitlines()[1:] == [
        "first\N{REPLACEMENT CHARACTER}second\N{REPLACEMENT CHARACTER}[2K"
    ]
