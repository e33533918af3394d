"""Versions and ranges of them: what is newer, and what a range means."""

from __future__ import annotations

import itertools
from functools import cmp_to_key

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import InvalidInput
from holdfast.registry.names.references import Reference
from holdfast.registry.versions import VersionRange, is_version, next_minor, version_key

numbers = st.integers(0, 3) | st.sampled_from([10, 999_999_999])
parts = st.sampled_from(["0", "1", "2", "10", "a", "a-", "b", "-", "1a", "rc", "A"]) | st.from_regex(
    r"\A[0-9A-Za-z-]{1,6}\Z"
).filter(lambda part: not (part.isdigit() and part[0] == "0" and part != "0"))
pres = st.lists(parts, max_size=4).map(".".join)
versions = st.builds(
    lambda triple, pre: ".".join(map(str, triple)) + (f"-{pre}" if pre else ""),
    st.tuples(numbers, numbers, numbers),
    pres,
)


def compared(a: str, b: str) -> int:
    """semver.org, item 11, word for word; less than 0 if ``a`` is older."""
    core_a, _, pre_a = a.partition("-")
    core_b, _, pre_b = b.partition("-")
    numbers_a, numbers_b = ([int(n) for n in core.split(".")] for core in (core_a, core_b))
    if numbers_a != numbers_b:
        return -1 if numbers_a < numbers_b else 1
    if not pre_a or not pre_b:
        return bool(pre_b) - bool(pre_a)
    for one, other in itertools.zip_longest(pre_a.split("."), pre_b.split(".")):
        if one == other:
            continue
        if one is None or other is None:
            return -1 if one is None else 1
        if one.isdigit() and other.isdigit():
            return int(one) - int(other)
        if one.isdigit() != other.isdigit():
            return -1 if one.isdigit() else 1
        return -1 if one < other else 1
    return 0


@given(st.lists(versions, min_size=2, max_size=6))
def test_no_version_is_ever_newer_than_a_newer_one(some):
    assert all(is_version(version) for version in some)
    by_rule = sorted(some, key=cmp_to_key(compared))
    assert sorted(some, key=version_key) == by_rule
    for a, b in itertools.combinations(set(some), 2):
        assert version_key(a) != version_key(b)
        assert not version_key(a).startswith(version_key(b)), "an index would take one for the other"


def test_what_is_no_version_comes_before_all_that_are():
    assert version_key("latest") == b"" < version_key("0.0.0-0")
    assert "latest" not in VersionRange.parse("*")


def test_the_next_version_is_newer_and_none_follows_the_last():
    assert next_minor(None) == "1.0.0"
    assert next_minor(version_key("3.4.5-rc.1")) == "3.5.0"
    with pytest.raises(InvalidInput, match="give the version yourself"):
        next_minor(version_key("1.999999999.0"))


MEANINGS = {
    "1": ("1.0.0", "1.9.9", "| 0.9.9", "2.0.0", "1.0.0-rc.1", "2.0.0-0", "1.5.0-rc.1"),
    "1.x": ("1.0.0", "1.9.9", "| 2.0.0"),
    "1.2": ("1.2.0", "1.2.9", "| 1.1.9", "1.3.0", "1.3.0-0"),
    "1.2.*": ("1.2.0", "| 1.3.0"),
    "*": ("0.0.0", "999999999.999999999.999999999", "| 1.0.0-rc.1"),
    "=1.2.3": ("1.2.3", "| 1.2.4", "1.2.3-rc.1"),
    "^1.2.3": ("1.2.3", "1.9.0", "| 1.2.2", "2.0.0", "2.0.0-0", "1.3.0-rc.1"),
    "^1.2": ("1.2.0", "1.9.0", "| 1.1.9", "2.0.0"),
    "^0.2.3": ("0.2.3", "0.2.9", "| 0.3.0", "0.2.2"),
    "^0.0.3": ("0.0.3", "| 0.0.4", "0.0.2"),
    "^0.0": ("0.0.0", "0.0.9", "| 0.1.0"),
    "^0": ("0.0.0", "0.9.0", "| 1.0.0"),
    "~1.2.3": ("1.2.3", "1.2.9", "| 1.3.0", "1.2.2"),
    "~1.2": ("1.2.0", "1.2.9", "| 1.3.0"),
    "~1": ("1.0.0", "1.9.0", "| 2.0.0"),
    ">=1.0,<2": ("1.0.0", "1.9.0", "| 2.0.0", "2.0.0-rc.1", "0.9.0"),
    ">=1.0, <2": ("1.0.0", "| 2.0.0"),
    ">1.2": ("1.3.0", "2.0.0", "| 1.2.9", "1.3.0-rc.1"),
    ">1.2.3": ("1.2.4", "| 1.2.3"),
    "<=1.2": ("1.2.9", "0.0.0", "| 1.3.0"),
    "<1.2": ("1.1.9", "| 1.2.0", "1.2.0-rc.1"),
    "<2,>=2": ("|", "1.9.9", "2.0.0"),
    ">=1.0.0-rc.1": ("1.0.0-rc.1", "1.0.0-rc.2", "1.0.0", "2.0.0", "| 1.0.0-beta", "1.1.0-rc.1"),
    "^1.2.3-beta.2": ("1.2.3-beta.2", "1.2.3-beta.11", "1.2.3", "1.3.0", "| 1.2.3-beta.1", "1.2.4-beta.2", "2.0.0-0"),
    "1,>=1.0.0-rc.1": ("1.0.0", "| 1.0.0-rc.1"),
}  # fmt: skip


@pytest.mark.parametrize("text", MEANINGS)
def test_a_range_means_what_the_document_says(text):
    inside, _, outside = " ".join(MEANINGS[text]).partition("|")
    among = VersionRange.parse(text)
    assert [v for v in inside.split() if v not in among] == []
    assert [v for v in outside.split() if v in among] == []


@given(versions, st.sampled_from(["", "=", ">=", "<=", "^", "~"]))
def test_a_range_from_a_version_has_that_version_in_it(version, operator):
    assert version in VersionRange.parse(operator + version)


@given(versions, versions)
def test_a_comparison_is_the_order(version, other):
    if "-" not in version:
        assert (version in VersionRange.parse(f">{other}")) == (compared(version, other) > 0)
        assert (version in VersionRange.parse(f"<{other}")) == (compared(version, other) < 0)
    for text in (f">{other},<{other}", f"<{other},>={other}"):
        assert version not in VersionRange.parse(text)


@pytest.mark.parametrize(
    "text",
    ["", " ", "^", ">", ",", "1,", ",1", "1,,2", "1 2", "1||2", "1 - 2", "v1", "01", "1.02", "1.2.3.4", "1.2-rc", "1.2.3-",
     "=>1", ">*", "<x", "1.2.3+b", "1.0.0-rc.01", "9999999999", "\u0661", "1\n", "^1.2.3-é", "1.0.0,  2"],
)  # fmt: skip
def test_a_text_that_is_no_range_is_refused(text):
    with pytest.raises(InvalidInput, match=r"is neither a version|nothing to compare"):
        VersionRange.parse(text)


def test_a_reference_tells_a_version_from_a_range():
    assert Reference.parse("m:1.0.0").range is None
    assert Reference.parse("m").range is None
    for text in ("m:^1.2", "rows of May:>=1.0,<2", "m:1"):
        assert Reference.parse(text).range == VersionRange.parse(text.partition(":")[2])
        assert str(Reference.parse(text)) == text
