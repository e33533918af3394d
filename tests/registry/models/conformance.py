"""What every format of models keeps to. A format's tests subclass :class:`FormatConformance` and say how to make a model.

Models are made by a file of their own, so that other processes can make and ask the same one.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from holdfast.errors import Corrupt, Denied, HoldfastError, InvalidInput, Unsupported
from holdfast.registry import ModelRecord, ModelRegistry, load_record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

_ANSWER = """
import json, sys, warnings
from holdfast.errors import HoldfastError
from holdfast.config import load_settings
from holdfast.registry import ModelRegistry, open_registry
from holdfast.registry.opening import open_signatures

home, task, *arguments = sys.argv[1:]
store, names = open_registry(home)
registry = ModelRegistry(store, names, signatures=open_signatures(load_settings(home), store))
if task == "ask":
    import numpy as np, models_of_this_test as program
    trust = json.loads(arguments[2])
    np.savez(arguments[1], *program.outputs(registry.get(arguments[0], **trust)))
    print(registry.store_model(program.make(), **json.loads(arguments[3])))
else:
    trust = json.loads(arguments[0])
    for cid in arguments[1:]:
        try:
            model = registry.get(cid, **trust)
        except HoldfastError as error:
            print(json.dumps([type(error).__name__, str(error)]), flush=True)
        else:
            print(json.dumps(["loaded", type(model).__name__]), flush=True)
store.close()
"""

_BLOCKER = """
import importlib.abc, sys


class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None


sys.meta_path.insert(0, Missing())
"""


class FormatConformance:
    """The tests; the attributes are what a format's test says about it."""

    framework: ClassVar[str]
    format: ClassVar[str]
    program: ClassVar[str]
    """A module with ``make()``, which gives a model, and ``outputs(model)``, which gives arrays; both the same every time."""
    file: ClassVar[str]
    """Which of the stored files a model can't do without."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Without one of these nothing works; the tests are left out."""
    extra: ClassVar[str | None] = None
    """Which extra has the first of ``packages``; None if holdfast itself needs them all."""
    repeatable: ClassVar[bool] = True
    """Whether two processes that make the same model give it the same CID; where not, the format's documentation says why."""
    about: ClassVar[Mapping[str, Any]] = {}
    """How ``store_model`` is called."""
    trust: ClassVar[Mapping[str, Any]] = {}
    """How ``get`` is called."""
    damages_are_seen: ClassVar[bool] = True
    """Whether a file that was cut off is refused."""

    @pytest.fixture(autouse=True)
    def _packages(self) -> None:
        for package in self.packages:
            pytest.importorskip(package, reason=f"the package {package} is not installed")

    @pytest.fixture
    def program_file(self, module_file: Any) -> Any:
        module_file("models_of_this_test", self.program)
        import models_of_this_test  # type: ignore[import-not-found]

        return models_of_this_test

    @pytest.fixture
    def home(self, tmp_path: Path) -> Path:
        return tmp_path / "home"

    def in_another_process(
        self, home: Path, *arguments: str, before: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        paths = [str(home.parent / "site"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", before + _ANSWER, str(home), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                **environment,
            },
        )

    def stored(self, registry: ModelRegistry, program: Any) -> Cid:
        return registry.store_model(program.make(), **self.about)

    def reports(self, done: subprocess.CompletedProcess[str]) -> list[list[str]]:
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
        assert done.returncode == 0, (
            f"the process ended with {done.returncode} after {found}: {done.stderr[-2000:]}"
        )
        return found

    # ---------------------------------------------------------------------------------------- what is kept

    def test_a_model_gives_equal_outputs_and_has_one_cid_here_and_in_another_process(
        self, registry, signatures, program_file, home, tmp_path
    ):
        model = program_file.make()
        expected = program_file.outputs(model)
        entry = registry.register("kept", model, **self.about)
        if self.trust.get("allow_pickle"):
            signatures.sign(entry.cid)  # else nothing opens a pickle
        record = registry.record("kept")
        assert (record.framework, record.format) == (self.framework, self.format)
        assert_equal(program_file.outputs(registry.get("kept", **self.trust)), expected)
        target = tmp_path / "outputs.npz"
        done = self.in_another_process(
            home,
            "ask",
            "kept",
            str(target),
            json.dumps(dict(self.trust)),
            json.dumps(dict(self.about)),
            PYTHONHASHSEED="1"
            if os.environ.get("PYTHONHASHSEED") == "2"
            else "2",  # sets have another order there
        )
        assert done.returncode == 0, done.stderr[-2000:]
        with np.load(target) as found:
            assert_equal([found[name] for name in found.files], expected)
        assert (done.stdout.split()[-1] == str(entry.cid)) == self.repeatable

    def test_storing_a_model_leaves_it_as_it_was(self, registry, program_file):
        model = program_file.make()
        before = program_file.outputs(model)
        first = registry.store_model(model, **self.about)
        assert_equal(program_file.outputs(model), before)
        if self.repeatable:
            assert registry.store_model(model, **self.about) == first

    # --------------------------------------------------------------------------------------- what is refused

    def test_damaged_and_foreign_files_are_refused_and_run_nothing(
        self, registry, store, program_file, home, tmp_path
    ):
        cid = self.stored(registry, program_file)
        record = load_record(store, cid, ModelRecord)
        good = bytes(store.open(store.resolve(f"{record.files}/{self.file}")))
        touched = tmp_path / "touched"

        class Evil:
            def __reduce__(self):
                return open, (str(touched), "w")

        foreign = [
            b"",
            b"{}",
            b"[]",
            b"\x00" * 100,
            b"\x89PNG\r\n\x1a\n",
            pickle.dumps(Evil()),
            b"PK\x05\x06" + b"\x00" * 18,
        ]
        cut = [good[: len(good) * part // 4] for part in (1, 2, 3)] if self.damages_are_seen else []
        flipped = []
        for part in range(12):
            data = bytearray(good)
            data[len(good) * part // 12] ^= 0x55
            flipped.append(bytes(data))
        cids = [str(self.with_file(store, record, data)) for data in (*foreign, *cut, *flipped)]
        trust = {} if self.trust.get("allow_pickle") else dict(self.trust)
        found = self.reports(self.in_another_process(home, "try", json.dumps(trust), *cids))
        assert len(found) == len(cids)
        refused = {error.__name__ for error in (Corrupt, Denied, InvalidInput)}
        for number, (kind, message) in enumerate(found):
            if number < len(foreign) + len(cut):
                assert kind in refused, (number, kind, message)
            else:  # one weight may be another: that is another model, and its CID says so
                assert kind in {"loaded", *refused}, (number, kind, message)
        assert not touched.exists()

    def with_file(self, store: ContentStore, record: ModelRecord, data: bytes) -> Cid:
        files: dict[str, Any] = {entry.name: entry.cid for entry in store.ls(record.files)}
        files[self.file] = data
        return replace(record, files=store.add_files(files)).store(store)

    def test_a_manifest_without_the_file_is_an_error_of_ours(self, registry, store, program_file):
        record = load_record(store, self.stored(registry, program_file), ModelRecord)
        empty = replace(record, files=store.add_files({"other": b"x"})).store(store)
        with pytest.raises(HoldfastError):
            registry.load(empty, **self.trust)

    def test_a_missing_package_is_named_with_the_extra_that_brings_it(self, registry, program_file, home):
        if self.extra is None:
            pytest.skip("holdfast itself needs what this format needs")
        cid = self.stored(registry, program_file)
        blocker = _BLOCKER.format(packages={self.packages[0]})
        done = self.in_another_process(
            home, "try", json.dumps(dict(self.trust)), str(cid), before=textwrap.dedent(blocker)
        )
        ((kind, message),) = self.reports(done)
        assert kind == Unsupported.__name__
        assert f"holdfast[{self.extra}]" in message


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    """Same number, types, shapes and values, bit by bit but for NaN's."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        one, other = np.asarray(one), np.asarray(other)  # noqa: PLW2901 -- as arrays
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
