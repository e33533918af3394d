"""The store against a dictionary: adding, referring, replacing, removing, staging, reopening, and crashing."""

import json
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from holdfast.errors import Corrupt, NotFound
from holdfast.storage.cid import Cid
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.local.references import FileRange
from holdfast.storage.testing import block

CRASHER = """
import json, os, signal, sys
from pathlib import Path
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.cid import Cid
import holdfast.storage.local.writing as writing

folder, size, contents, at, stage, resume = json.loads(sys.argv[1])
writing.STAGE_S = 0 if stage else 1e9
store = LocalStore(Path(folder), segment_size_bytes=size)
def blocks():
    for i, content in enumerate(contents):
        if i == at:
            os.kill(os.getpid(), signal.SIGKILL)
        yield Cid.of(bytes.fromhex(content)), bytes.fromhex(content)
store.put_many(blocks(), resume=bytes.fromhex(resume))
os.kill(os.getpid(), signal.SIGKILL)
"""

contents = st.lists(st.binary(max_size=90), max_size=12)


class StoreModel(RuleBasedStateMachine):
    """Multihashes with their bytes, and the two ways in which bytes are held."""

    @initialize(segment_size=st.sampled_from([1, 10, 50, 300, 10_000]))
    def open(self, segment_size):
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.segment_size = segment_size
        self.own: dict[bytes, bytes] = {}
        self.referred: dict[bytes, bytes] = {}
        self.views: list[tuple[memoryview, bytes]] = []
        self.files = 0
        self.staged = False
        self.store = self.opened()

    def opened(self):
        return LocalStore(self.path / "store", segment_size_bytes=self.segment_size)

    @property
    def model(self):
        return self.referred | self.own

    @rule(contents=contents, fails=st.booleans(), resume=st.sampled_from([None, b"work", b"other"]))
    def put(self, contents, fails, resume):
        def source():
            for content in contents:
                yield block(content)
            if fails:
                raise RuntimeError("source")

        fresh = {block(content)[0].multihash: content for content in contents}
        new = sum(len(content) for key, content in fresh.items() if key not in self.own)
        if fails:
            with pytest.raises(RuntimeError, match="source"):
                self.store.put_many(source(), resume=resume)
        else:
            assert self.store.put_many(source(), resume=resume) == new
            self.own |= fresh
            for key in fresh:
                self.referred.pop(key, None)

    @rule(contents=st.lists(st.binary(min_size=1, max_size=90), min_size=1, max_size=5))
    def refer(self, contents):
        path = self.path / f"file-{self.files}"
        self.files += 1
        path.write_bytes(b"".join(contents))
        ranges, at = [], 0
        for content in contents:
            ranges.append((Cid.of(content), FileRange(path, at, len(content))))
            at += len(content)
        self.store.put_many(ranges)
        self.referred |= {
            key: content for content in contents if (key := Cid.of(content).multihash) not in self.own
        }

    @rule(content=st.binary(max_size=90))
    def get(self, content):
        cid = Cid.of(content)
        assert self.store.has(cid) == (cid.multihash in self.model)
        if cid.multihash in self.model:
            assert bytes(self.store.get(cid)) == content
        else:
            with pytest.raises(NotFound):
                self.store.get(cid)

    @rule(data=st.data())
    def view(self, data):
        keys = data.draw(st.lists(st.sampled_from(sorted(self.model)), max_size=5)) if self.model else []
        expected = b"".join(self.model[key] for key in keys)
        joined = self.store.view([Cid(b"\x01\x55" + key) for key in keys])
        assert joined is None or joined == expected
        if joined is not None:
            self.views.append((joined, expected))

    @rule(data=st.data(), min_garbage=st.sampled_from([0.0, 0.25, 0.9]), by_callable=st.booleans())
    def remove(self, data, min_garbage, by_callable):
        keys = set(data.draw(st.lists(st.sampled_from(sorted(self.model)))) if self.model else [])
        with self.store.epoch(int(time.time()) + 1) as cutoff_s:
            doomed = keys.__contains__ if by_callable else keys
            removed = self.store.remove(doomed, cutoff_s=cutoff_s, min_garbage=min_garbage)
        assert removed.blocks == len(keys)
        assert removed.bytes == sum(len(self.model[key]) for key in keys)
        if min_garbage == 0.0 and not self.staged:
            assert self.store.statistics()["garbage_bytes"] == 0
        for key in keys:
            self.own.pop(key, None)
            self.referred.pop(key, None)

    @rule()
    def nothing_goes_that_is_not_old(self):
        with self.store.epoch(int(time.time()) - 1000) as cutoff_s:
            assert self.store.remove(lambda _: True, cutoff_s=cutoff_s).blocks == 0

    @rule(contents=contents)
    def replace(self, contents):
        self.store.replace_many([block(content) for content in contents])
        for content in contents:
            key = block(content)[0].multihash
            self.own[key] = content
            self.referred.pop(key, None)

    @precondition(lambda self: self.referred)
    @rule(data=st.data())
    def a_file_changes_and_comes_back(self, data):
        key = data.draw(st.sampled_from(sorted(self.referred)))
        cid, content = Cid(b"\x01\x55" + key), self.referred[key]
        holders = [path for path in self.path.glob("file-*") if content in path.read_bytes()]
        before = {path: path.read_bytes() for path in holders}
        for path in holders:
            path.write_bytes(bytes(len(before[path])) if any(content) else b"\1" * len(before[path]))
        with pytest.raises(Corrupt, match="file-"):
            self.store.get(cid)
        for path in holders:
            path.write_bytes(before[path])
        assert bytes(self.store.get(cid)) == content

    @rule()
    def reopen(self):
        self.store.close()
        self.store = self.opened()

    @rule()
    def second_store_sees_the_same(self):
        with closing(self.opened()) as other:
            assert list(other.multihashes()) == sorted(self.model)

    @rule(data=st.data(), contents=contents, stage=st.booleans())
    def crash(self, data, contents, stage):
        """A process is killed before one of the blocks, or when all are acknowledged."""
        at = data.draw(st.integers(0, len(contents)))
        whole = at == len(contents)
        job = [
            str(self.path / "store"),
            self.segment_size,
            [content.hex() for content in contents],
            -1 if whole else at,
            stage,
            b"work".hex(),
        ]
        done = subprocess.run(
            [sys.executable, "-c", CRASHER, json.dumps(job)], capture_output=True, timeout=60, check=False
        )
        assert done.returncode == -9, done.stderr.decode()
        self.staged = True
        if whole:
            for content in contents:
                key = block(content)[0].multihash
                self.own[key] = content
                self.referred.pop(key, None)

    @rule()
    def drop_what_was_staged(self):
        self.store.drop_stale(0)
        self.staged = False
        assert self.store.statistics()["staged_bytes"] == 0

    @invariant()
    def nothing_is_lost_or_made_up(self):
        assert list(self.store.multihashes()) == sorted(self.model)
        held = self.store.statistics()
        assert held["blocks"] == len(self.model)
        assert held["bytes"] == sum(map(len, self.own.values()))
        assert held["referenced_blocks"] == len(self.referred)
        assert held["referenced_bytes"] == sum(map(len, self.referred.values()))
        for key, content in self.model.items():
            assert bytes(self.store.get(Cid(b"\x01\x55" + key))) == content
        for view, content in self.views:
            assert view == content

    @invariant()
    def the_totals_are_those_of_the_disk(self):
        """Nobody else writes now, so once the tails of the dead are cut off the files are what the index says."""
        self.store._context.segments.tidy()
        rows = self.store._index.segments()
        on_disk = {
            int(path.stem): path.stat().st_size for path in (self.path / "store" / "segments").iterdir()
        }
        assert on_disk == {number: row.end for number, row in rows.items()}
        held = self.store.statistics()
        assert held["bytes"] + held["garbage_bytes"] + held["staged_bytes"] == sum(on_disk.values())
        assert all(row.garbage_bytes >= 0 for row in rows.values())

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()


StoreModel.TestCase.settings = settings(
    max_examples=12, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestStoreModel = StoreModel.TestCase


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_more_histories():
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        StoreModel,
        settings=settings(
            max_examples=100,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
