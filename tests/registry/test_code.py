"""Code by CID: what was hashed is what runs, and nothing runs that nobody trusts."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import subprocess
import sys
import textwrap
import threading
import traceback

import pytest

from holdfast.errors import Denied, InvalidInput, NotFound
from holdfast.registry import CodeRecord, bundle_code, load_code, load_record
from holdfast.training.examples import digits


def remove(path, name):
    path.unlink()
    sys.modules.pop(name, None)
    importlib.invalidate_caches()


def test_installed_code_with_the_same_source_is_that_code_and_not_a_copy(store):
    cid = bundle_code(store, digits.train)
    assert load_code(store, cid, trust=False) is digits.train
    assert load_code(store, bundle_code(store, digits.DigitsCNN), trust=False) is digits.DigitsCNN


def test_code_is_recorded_as_the_bytes_of_its_file(store, module):
    made = module("plain", "# é\ndef answer():\n    return 42\n")
    record = load_record(store, bundle_code(store, made.answer), CodeRecord)
    assert record.entry == "plain:answer"
    assert [entry.name for entry in store.ls(record.files)] == ["plain.py"]
    assert (
        bytes(store.open(store.resolve(f"{record.files}/plain.py")))
        == "# é\ndef answer():\n    return 42\n".encode()
    )


def test_code_in_a_package_keeps_its_place(store, module_file, module):
    module_file("pack.__init__", "")
    made = module("pack.inner", "def f():\n    return __name__\n")
    cid = bundle_code(store, made.f)
    assert load_record(store, cid, CodeRecord).entry == "pack.inner:f"
    del sys.modules["pack.inner"]
    assert load_code(store, cid, trust=False)() == made.f() == "pack.inner"


def test_code_that_is_not_installed_does_not_run_unasked(store, module, module_file, tmp_path):
    made = module("stranger", f"open({str(tmp_path / 'ran')!r}, 'a').close()\ndef f():\n    return 1\n")
    cid = bundle_code(store, made.f)
    (tmp_path / "ran").unlink()
    remove(module_file("stranger", ""), "stranger")
    with pytest.raises(Denied, match=r"stranger:f .* is not installed here.*trust_code=True"):
        load_code(store, cid, trust=False)
    assert not (tmp_path / "ran").exists()
    assert load_code(store, cid, trust=True)() == 1
    assert (tmp_path / "ran").exists()


def test_changed_code_does_not_run_in_place_of_what_was_recorded(store, module, module_file):
    made = module("changing", "def f():\n    return 'recorded'\n")
    cid = bundle_code(store, made.f)
    module_file("changing", "def f():\n    return 'changed'\n")
    del sys.modules["changing"]
    with pytest.raises(Denied):
        load_code(store, cid, trust=False)
    assert load_code(store, cid, trust=True)() == "recorded"


@pytest.mark.parametrize("loaded_by", ["the user", "an earlier load"])
def test_a_module_loaded_before_its_file_was_edited_does_not_run_as_the_edited_one(
    store, module, module_file, loaded_by
):
    """A long session: import, edit, train again. The record has the new source, so the new source must run."""
    name = f"edited_{loaded_by.split()[-1]}"
    if loaded_by == "the user":
        made = module(name, "def f():\n    return 'old'\n")
    else:
        module_file(name, "def f():\n    return 'old'\n")
        files = store.add_files({f"{name}.py": b"def f():\n    return 'old'\n"})
        made = sys.modules[
            load_code(store, CodeRecord(files=files, entry=f"{name}:f").store(store), trust=False).__module__
        ]
    assert made.f() == "old"
    module_file(name, "def f():\n    return 'new'\n")
    cid = bundle_code(store, made.f)
    source = bytes(store.open(store.resolve(f"{load_record(store, cid, CodeRecord).files}/{name}.py")))
    namespace: dict[str, object] = {}
    exec(source, namespace)
    assert load_code(store, cid, trust=False)() == namespace["f"]() == "new"  # type: ignore[operator]


def test_two_versions_of_one_module_live_side_by_side(store, module_file):
    cids = []
    for number in (1, 2):
        module_file("versions", f"N = {number}\ndef f():\n    return N\nclass C:\n    n = N\n")
        files = store.add_files(
            {"versions.py": f"N = {number}\ndef f():\n    return N\nclass C:\n    n = N\n".encode()}
        )
        cids.append(CodeRecord(files=files, entry="versions:f").store(store))
    remove(module_file("versions", ""), "versions")
    first, second = (load_code(store, cid, trust=True) for cid in cids)
    assert (first(), second(), first()) == (1, 2, 1)
    assert load_code(store, cids[0], trust=True) is first


def test_code_that_came_from_a_cid_has_the_same_cid_again(store, module, module_file):
    made = module("again", "class Model:\n    pass\n\ndef train():\n    return Model()\n")
    train, model = bundle_code(store, made.train), bundle_code(store, made.Model)
    remove(module_file("again", ""), "again")
    loaded = load_code(store, train, trust=True)
    assert bundle_code(store, loaded) == train
    assert bundle_code(store, type(loaded())) == model


def test_recorded_code_runs_without_this_package_s_future_imports(store):
    """``compile`` would pass on ``annotations``, and annotations would become text."""
    source = b"def f(x: int) -> int:\n    return x\n"
    files = store.add_files({"futureless.py": source})
    f = load_code(store, CodeRecord(files=files, entry="futureless:f").store(store), trust=True)
    assert f.__annotations__ == {"x": int, "return": int}


def test_source_in_another_encoding_runs_and_can_be_shown(store):
    source = "# -*- coding: latin-1 -*-\ndef f():\n    return 'é'\n".encode("latin-1")
    files = store.add_files({"latin.py": source})
    f = load_code(store, CodeRecord(files=files, entry="latin:f").store(store), trust=True)
    assert f() == "é"
    assert "return 'é'" in inspect.getsource(f)


def test_relative_imports_find_what_is_installed(store, module_file):
    module_file("kit.__init__", "")
    module_file("kit.helper", "VALUE = 7\n")
    source = b"from .helper import VALUE\n\ndef f():\n    return VALUE\n"
    files = store.add_files({"kit/not_here.py": source})
    assert load_code(store, CodeRecord(files=files, entry="kit.not_here:f").store(store), trust=True)() == 7


def test_a_traceback_shows_the_recorded_lines(store):
    files = store.add_files(
        {"failing.py": b"def f():\n    # a comment\n    raise ValueError('deep inside')\n"}
    )
    f = load_code(store, CodeRecord(files=files, entry="failing:f").store(store), trust=True)
    with pytest.raises(ValueError, match="deep inside") as caught:
        f()
    assert "raise ValueError('deep inside')" in "".join(traceback.format_exception(caught.value))


def test_code_that_fails_to_load_leaves_no_half_module(store):
    files = store.add_files({"broken.py": b"def f():\n    pass\nraise OSError('not today')\n"})
    cid = CodeRecord(files=files, entry="broken:f").store(store)
    for _ in range(2):
        with pytest.raises(
            InvalidInput, match=f"broken:f .{cid}. can't be loaded.*OSError: not today"
        ) as caught:
            load_code(store, cid, trust=True)
        assert isinstance(caught.value.__cause__, OSError)
    assert not [
        name for name in sys.modules if name.startswith("holdfast_code_") and name.endswith("_broken")
    ]


@pytest.mark.parametrize("installed", [True, False])
def test_code_that_would_end_the_process_is_an_error_and_an_interrupt_is_one_still(
    store, module_file, installed
):
    for name, error in (("ending", "SystemExit(0)"), ("interrupted", "KeyboardInterrupt")):
        source = f"def f():\n    pass\nraise {error}\n"
        if installed:
            module_file(name, source)
        cid = CodeRecord(files=store.add_files({f"{name}.py": source.encode()}), entry=f"{name}:f").store(
            store
        )
        with pytest.raises(KeyboardInterrupt if name == "interrupted" else InvalidInput):
            load_code(store, cid, trust=not installed)


@pytest.mark.parametrize(
    "entry",
    [
        "effects.inner:f",
        "effects.inner.more:f",
        "space.inner:f",
        "effects.__main__:f",
        "effects.__main__.x:f",
    ],
)
def test_nothing_is_imported_to_find_out_that_code_is_not_installed(store, module_file, tmp_path, entry):
    ran = f"open({str(tmp_path / 'ran')!r}, 'a').close()\n"
    for name in ("effects.__init__", "effects.inner.__init__", "effects.__main__", "space.inner"):
        module_file(name, ran)
    path = entry.partition(":")[0].replace(".", "/") + ".py"
    # Of a package's __main__ the source is right, too: it is a program, and no module to be loaded.
    for source in (b"def f(): ...", ran.encode()) if path.endswith("__main__.py") else (b"def f(): ...",):
        cid = CodeRecord(files=store.add_files({path: source}), entry=entry).store(store)
        with pytest.raises(Denied):
            load_code(store, cid, trust=False)
    assert not (tmp_path / "ran").exists()
    assert not [name for name in sys.modules if name.partition(".")[0] in ("effects", "space")]


def test_code_in_packages_without_a_file_and_in_loaded_ones_is_found(store, module_file, tmp_path):
    source = b"def f():\n    return __name__\n"
    module_file("spaces.below.deep", source.decode())
    elsewhere = tmp_path / "elsewhere" / "part.py"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(source)
    module_file("split.__init__", f"__path__.append({str(elsewhere.parent)!r})\n")
    importlib.import_module("split")
    for name in ("spaces.below.deep", "split.part"):
        files = store.add_files({name.replace(".", "/") + ".py": source})
        cid = CodeRecord(files=files, entry=f"{name}:f").store(store)
        assert load_code(store, cid, trust=False)() == name


def test_code_of_an_editable_install_is_found(store, tmp_path, monkeypatch):
    """Its finder knows the package by its name, and is no part of ``sys.path``."""
    source = b"def f():\n    return __name__\n"
    folder = tmp_path / "src" / "edited_in_place"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_bytes(b"")
    (folder / "work.py").write_bytes(source)

    class EditableFinder:
        @staticmethod
        def find_spec(name, _path=None, _target=None):
            if name != folder.name:
                return None
            return importlib.util.spec_from_file_location(name, folder / "__init__.py")

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, EditableFinder])
    files = store.add_files({"edited_in_place/work.py": source})
    cid = CodeRecord(files=files, entry="edited_in_place.work:f").store(store)
    assert load_code(store, cid, trust=False)() == "edited_in_place.work"


def test_a_thread_never_sees_a_module_that_another_still_runs(store):
    files = store.add_files({"slow.py": b"import time\ntime.sleep(0.2)\ndef f():\n    return 1\n"})
    cid = CodeRecord(files=files, entry="slow:f").store(store)
    results: list[object] = []

    def load() -> None:
        try:
            results.append(load_code(store, cid, trust=True)())
        except NotFound as error:
            results.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == [1, 1, 1, 1]


@pytest.mark.parametrize("entry", ["there:g", "there:", "there", ":f", "elsewhere:f", "../there:f"])
def test_an_entry_that_leads_nowhere_is_an_error(store, entry):
    files = store.add_files({"there.py": b"def f():\n    pass\n"})
    with pytest.raises((NotFound, InvalidInput)):
        load_code(store, CodeRecord(files=files, entry=entry).store(store), trust=True)


def outer():
    def inner():
        pass

    class Inner:
        def method(self):
            pass

    return inner, Inner, Inner().method


@pytest.mark.parametrize("target", [*outer(), lambda: None, len, "text", 5, None])
def test_what_has_no_place_at_the_top_of_a_file_is_refused(store, target):
    with pytest.raises(InvalidInput):
        bundle_code(store, target)


def test_code_that_was_typed_and_not_saved_is_refused(store):
    namespace: dict[str, object] = {"__name__": "typed"}
    exec("def f():\n    pass", namespace)
    with pytest.raises(InvalidInput, match="not in a file"):
        bundle_code(store, namespace["f"])  # type: ignore[arg-type]


def test_a_script_s_own_function_can_be_bundled_and_does_not_run_the_script_again(tmp_path):
    script = tmp_path / "my_script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from holdfast.registry import bundle_code, load_code
            from holdfast.storage import open_store

            def work():
                return "worked in " + __name__

            if __name__ == "__main__":
                with open_store(sys.argv[1]) as store:
                    cid = bundle_code(store, work)
                    print(cid, load_code(store, cid, trust=False)(), sep="\\n")
            """
        )
    )
    command = [sys.executable, str(script), str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    cid, answer = done.stdout.splitlines()
    assert answer == "worked in __main__"
    other = (
        "import sys\n"
        "from holdfast.registry import load_code\n"
        "from holdfast.storage import Cid, open_store\n"
        "with open_store(sys.argv[1]) as store:\n"
        "    print(load_code(store, Cid.parse(sys.argv[2]), trust=True)())"
    )
    command = [sys.executable, "-c", other, str(tmp_path / "home"), cid]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=os.sep)
    assert done.stdout.startswith("worked in holdfast_code_")
