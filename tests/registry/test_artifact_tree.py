from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from holdfast.errors import Conflict, Corrupt, HoldfastError, InvalidInput, NotFound
from holdfast.registry import open_registry
from holdfast.registry.ecosystem.artifact_tree import ArtifactTree, name_of, path_of, split_path
from holdfast.storage.local.collector import Collector
from holdfast.storage.local.pins import Pins

RUN = "team/run-1/artifacts"


@pytest.fixture
def tree(store, names):
    return ArtifactTree(store, names)


@pytest.fixture
def local(tmp_path):
    def write(name, data=b"some bytes"):
        path = tmp_path / "local" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return write


def listed(tree, path):
    return {found.name: found.is_folder for found in tree.entries(path)}


def read(tree, path, tmp_path):
    tree.get(path, tmp_path / "got")
    return (tmp_path / "got").read_bytes()


_PART = st.text(min_size=1, max_size=6).filter(lambda t: t not in (".", "..") and not set(t) & {"/", "\0"})


@given(
    parts=st.lists(_PART, min_size=1, max_size=3).filter(lambda p: p[0][0].isascii() and p[0][0].isalnum())
)
def test_two_roots_never_have_one_name(parts):
    path = tuple(parts)
    try:
        name = name_of(split_path("/".join(path)))
    except InvalidInput:
        return  # too long, or not Unicode that can be encoded
    assert path_of(name) == path


def test_names_look_like_the_paths_they_stand_for():
    assert name_of(("my_team", "run-1", "artifacts")) == "my__team.run-1.artifacts"
    assert name_of(("a.b", "ü")) == "a_2eb._c3_bc"


@given(name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True))
def test_a_name_that_somebody_else_gave_is_never_taken_for_a_root(name):
    try:
        path = path_of(name)
    except InvalidInput:
        return
    assert name_of(path) == name


@pytest.mark.parametrize("path", ["", "/", "../x", "team/../x", "-x/y", "ä/y", "team/\0"])
def test_a_path_cannot_leave_the_tree(tree, path):
    with pytest.raises(InvalidInput):
        tree.find(path)


def test_a_path_that_makes_too_long_a_name_is_refused_before_anything_is_stored(tree, local, names):
    with pytest.raises(InvalidInput, match="shorter artifact location"):
        tree.put(f"team/{'x' * 128}/artifacts/a.txt", local("a.txt"))
    assert names.entries("artifacts") == []


def test_every_state_of_a_run_stays_to_be_seen(tree, local, names, store):
    tree.put(f"{RUN}/a.txt", local("a.txt", b"one"))
    tree.put(f"{RUN}/deep/er/b.txt", local("b.txt", b"two"))
    tree.put(f"{RUN}/a.txt", local("a.txt", b"three"))
    states = [entry for entry in names.entries("artifacts") if entry.name == name_of(split_path(RUN))]
    assert [entry.version for entry in states] == ["1.0.0", "1.1.0", "1.2.0"]
    assert bytes(store.open(store.resolve(f"{states[1].cid}/a.txt"))) == b"one"
    assert bytes(store.open(store.resolve(f"{states[2].cid}/a.txt"))) == b"three"
    assert store.resolve(f"{states[1].cid}/deep") == store.resolve(f"{states[2].cid}/deep")


def test_the_same_file_again_is_no_new_state(tree, local, names):
    tree.put(f"{RUN}/a.txt", local("a.txt"))
    tree.put(f"{RUN}/a.txt", local("a.txt"))
    assert len(names.entries("artifacts")) == 1


def test_going_back_to_an_earlier_state_is_a_change_like_any_other(tree, local, names, tmp_path):
    for data in (b"one", b"two", b"one"):
        tree.put(f"{RUN}/a.txt", local("a.txt", data))
    assert read(tree, f"{RUN}/a.txt", tmp_path) == b"one"
    assert len(names.entries("artifacts")) == 3


def test_a_run_has_the_cid_of_the_folder_it_was(tree, local, store, tmp_path):
    for name in ("a.txt", "model/MLmodel", "model/data/weights"):
        local(name, name.encode())
    tree.put(f"{RUN}/a.txt", tmp_path / "local" / "a.txt")
    tree.put(f"{RUN}/model", tmp_path / "local" / "model")
    assert tree.find(RUN) == store.add(tmp_path / "local")


def test_a_folder_is_merged_into_what_is_there(tree, local, tmp_path):
    local("first/keep.txt", b"keep")
    local("first/both.txt", b"old")
    local("second/both.txt", b"new")
    local("second/more/x.txt", b"x")
    tree.put(RUN, tmp_path / "local" / "first")
    tree.put(RUN, tmp_path / "local" / "second")
    assert listed(tree, RUN) == {"keep.txt": False, "both.txt": False, "more": True}
    assert read(tree, f"{RUN}/both.txt", tmp_path) == b"new"


def test_folders_above_show_the_roots_below_them(tree, local):
    tree.put("team/run-1/artifacts/a.txt", local("a.txt"))
    tree.put("team/run-2/artifacts/b.txt", local("b.txt"))
    tree.put("team/notes.txt", local("notes.txt"))
    tree.put("team-2/run-1/artifacts/c.txt", local("c.txt"))
    assert listed(tree, "team") == {"run-1": True, "run-2": True, "notes.txt": False}
    assert listed(tree, "team/run-1") == {"artifacts": True}
    assert listed(tree, "team/run-1/artifacts") == {"a.txt": False}
    assert listed(tree, "team/run-1/artifacts/a.txt") == {}
    assert listed(tree, "team/run-3") == {}


def test_a_folder_put_above_a_root_is_found_below_it(tree, local, tmp_path):
    local("whole/run-1/artifacts/a.txt", b"a")
    local("whole/run-1/meta.txt", b"m")
    tree.put("team/copy", tmp_path / "local" / "whole")
    assert read(tree, "team/copy/run-1/artifacts/a.txt", tmp_path) == b"a"
    assert listed(tree, "team/copy/run-1") == {"artifacts": True, "meta.txt": False}
    tree.put("team/copy/run-1/artifacts/b.txt", local("b.txt"))
    assert listed(tree, "team/copy/run-1/artifacts") == {"a.txt": False, "b.txt": False}


def test_a_file_and_a_folder_never_replace_each_other(tree, local, names):
    tree.put(f"{RUN}/a", local("a"))
    tree.put(f"{RUN}/folder/b", local("b"))
    before = names.entries()
    with pytest.raises(Conflict, match="'team/run-1/artifacts/a' is a file"):
        tree.put(f"{RUN}/a/b", local("b"))
    with pytest.raises(Conflict, match="'team/run-1/artifacts/folder' is a folder"):
        tree.put(f"{RUN}/folder", local("a"))
    assert names.entries() == before


def test_a_folder_that_was_emptied_is_not_in_the_way_of_a_file(tree, local, tmp_path):
    tree.put(f"{RUN}/a/b", local("b"))
    tree.delete(f"{RUN}/a/b")
    tree.put(f"{RUN}/a", local("a", b"now a file"))
    assert read(tree, f"{RUN}/a", tmp_path) == b"now a file"
    tree.put("team/artifacts", local("artifacts", b"a root that is a file"))
    tree.delete("team/artifacts")
    tree.put("team/artifacts", local("artifacts", b"again"))
    assert read(tree, "team/artifacts", tmp_path) == b"again"


def test_a_folder_does_not_bring_a_file_in_the_way_of_another_root(tree, local, tmp_path, names):
    tree.put("team/run-1/artifacts/a.txt", local("a.txt"))
    local("folder/run-1", b"a file")
    before = names.entries()
    with pytest.raises(Conflict, match="in place of a folder"):
        tree.put("team", tmp_path / "local" / "folder")
    assert names.entries() == before


def test_links_bring_what_they_lead_to(tree, local, tmp_path):
    target = local("elsewhere/weights", b"weights")
    folder = local("folder/plain", b"plain").parent
    (folder / "linked").symlink_to(target)
    (folder / "linked-folder").symlink_to(target.parent)
    tree.put(f"{RUN}/model", folder)
    assert read(tree, f"{RUN}/model/linked", tmp_path) == b"weights"
    assert read(tree, f"{RUN}/model/linked-folder/weights", tmp_path) == b"weights"
    (folder / "circle").symlink_to(folder)
    with pytest.raises(InvalidInput, match="leads back"):
        tree.put(f"{RUN}/model", folder)


def test_what_is_deleted_frees_its_bytes(tree, local, store, names, tmp_path):
    big, kept = bytes(range(256)) * 4096, b"kept" * 1000
    tree.put(f"{RUN}/kept", local("kept", kept))
    tree.put(f"{RUN}/big", local("big", big))
    cid = tree.find(f"{RUN}/big")
    tree.delete(f"{RUN}/big")
    tree.delete(f"{RUN}/never/there")
    assert listed(tree, RUN) == {"kept": False}
    assert len(names.entries("artifacts")) == 1
    local_store = store.blocks.inner if hasattr(store.blocks, "inner") else store.blocks._inner
    Collector(local_store, Pins(local_store), grace_s=0).collect()
    with pytest.raises(NotFound):
        bytes(store.open(cid))
    assert read(tree, f"{RUN}/kept", tmp_path) == kept


def test_a_deleted_run_can_be_written_again(tree, local, tmp_path):
    for data in (b"1", b"2", b"3"):
        tree.put(f"{RUN}/a", local("a", data))
    tree.delete("team/run-1")
    assert listed(tree, "team") == {}
    assert tree.find(f"{RUN}/a") is None
    tree.put(f"{RUN}/a", local("a", b"2"))
    assert read(tree, f"{RUN}/a", tmp_path) == b"2"


def test_a_version_that_was_removed_by_hand_does_not_stop_the_next(tree, local, names, tmp_path):
    name = name_of(split_path(RUN))
    for data in (b"1", b"2", b"3"):
        tree.put(f"{RUN}/a", local("a", data))
    names.unregister("artifacts", name, "1.2.0")
    names.unregister("artifacts", name, "1.1.0")
    tree.put(f"{RUN}/a", local("a", b"4"))
    assert read(tree, f"{RUN}/a", tmp_path) == b"4"
    assert names.resolve("artifacts", name).version == "1.3.0"


def test_a_file_that_is_damaged_is_never_handed_out(tree, local, store, tmp_path):
    tree.put(f"{RUN}/a", local("a", bytes(range(256)) * 100))
    segments = sorted((tmp_path / "home" / "blocks" / "segments").iterdir())
    store.close()
    for segment in segments:
        data = bytearray(segment.read_bytes())
        at = data.find(bytes(range(256)))
        if at >= 0:
            data[at + 7] ^= 1
            segment.write_bytes(bytes(data))
    store, names = open_registry(tmp_path / "home")
    with store, pytest.raises((Corrupt, NotFound)):
        ArtifactTree(store, names).get(f"{RUN}/a", tmp_path / "out")
    names.close()
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_for_a_file_that_is_not_there(tree, local, tmp_path):
    tree.put(f"{RUN}/folder/a", local("a"))
    for missing in (f"{RUN}/b", f"{RUN}/folder", f"{RUN}/folder/a/b", "team/none"):
        with pytest.raises(NotFound, match="no artifact file"):
            tree.get(missing, tmp_path / "out")
    assert not (tmp_path / "out").exists()


_WRITER = """
import sys
from pathlib import Path
from holdfast.registry import open_registry
from holdfast.registry.ecosystem.artifact_tree import ArtifactTree

home, number, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
store, names = open_registry(home)
tree = ArtifactTree(store, names)
sys.stdin.readline()
for step in range(8):
    path = folder / f"{number}-{step}.txt"
    path.write_text(f"{number} {step}")
    tree.put(f"team/run/artifacts/step-{step % 2}/{path.name}", path)
names.close()
store.close()
"""


def test_processes_that_write_to_one_run_lose_nothing(tmp_path):
    home, folder = tmp_path / "shared-home", tmp_path / "files"
    folder.mkdir()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(home), str(number), str(folder)],
            stdin=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=100)
    assert [writer.returncode for writer in writers] == [0, 0, 0, 0]
    store, names = open_registry(home)
    with store:
        tree = ArtifactTree(store, names)
        for step in range(8):
            for number in range(4):
                cid = tree.find(f"team/run/artifacts/step-{step % 2}/{number}-{step}.txt")
                assert cid is not None
                assert bytes(store.open(cid)) == f"{number} {step}".encode()
        assert len(names.entries("artifacts")) == 32
        names.close()


_ACTION = st.tuples(
    st.sampled_from(["put", "delete"]),
    st.lists(st.sampled_from(["artifacts", "a", "b"]), min_size=1, max_size=4).map("/".join),
    st.integers(0, 2),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(_ACTION, max_size=8))
@example(actions=[("put", "a/artifacts", 0), ("put", "a", 0)])
@example(
    actions=[("put", "a", 0), ("put", "a/artifacts/b", 0), ("delete", "a", 0), ("put", "a/artifacts/b", 1)]
)
@example(actions=[("put", "artifacts", 0), ("delete", "artifacts", 0), ("put", "artifacts", 0)])
@example(actions=[("put", "a/a/a", 0), ("delete", "a/a/a", 0), ("put", "a", 0)])
@example(actions=[("put", "a/artifacts/a/a", 0), ("delete", "a/artifacts/a/a", 0), ("put", "a", 0)])
def test_any_order_of_changes_leaves_what_a_plain_file_system_would(actions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    store, names = open_registry(folder / "home")
    tree, expected = ArtifactTree(store, names), dict[str, bytes]()
    with store:
        for action, path, number in actions:
            if action == "put":
                (folder / "file").write_bytes(data := str(number).encode())
                clash = [
                    there
                    for there in expected
                    if there != path and (there.startswith(f"{path}/") or path.startswith(f"{there}/"))
                ]
                try:
                    tree.put(f"t/{path}", folder / "file")
                except HoldfastError:
                    assert clash
                    continue
                assert not clash
                expected[path] = data
            else:
                tree.delete(f"t/{path}")
                expected = {p: d for p, d in expected.items() if not f"{p}/".startswith(f"{path}/")}
            for there, data in expected.items():
                cid = tree.find(f"t/{there}")
                assert cid is not None
                assert bytes(store.open(cid)) == data
        names.close()
