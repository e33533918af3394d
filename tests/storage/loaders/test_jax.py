"""The checks of JAX, in an interpreter of their own: once JAX is loaded, its threads forbid every other test to fork."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.errors import Unsupported
from holdfast.storage import IPFSDataLoader
from holdfast.storage.datasets.dataset import store_dataset


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="the extra 'jax' is not installed")
def test_jax_gets_the_same_batches():
    checks = Path(__file__).with_name("jax_checks.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_without_jax_the_message_names_the_extra(store, monkeypatch):
    loader = IPFSDataLoader(store).load_dataset(store_dataset(store, [{"n": 1}]))
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(Unsupported, match=r"holdfast\[jax\]"):
        loader.to_jax()
