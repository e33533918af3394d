"""The table of formats: who takes what, what is said to those whom nobody takes, and that asking costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from holdfast.errors import InvalidInput, Unsupported

FRAMEWORKS = (
    "flax",
    "jax",
    "keras",
    "lightgbm",
    "sklearn",
    "skops",
    "tensorflow",
    "torch",
    "transformers",
    "xgboost",
)


def test_asking_what_a_model_is_imports_no_framework(tmp_path):
    program = f"""
import sys
from pathlib import Path
from holdfast.errors import Unsupported
from holdfast.registry import ModelRegistry, open_registry
store, names = open_registry(sys.argv[1])
registry = ModelRegistry(store, names)
for model in (object(), {{"a": [1]}}, Path("nothing.txt")):
    try:
        registry.register("nothing", model)
    except Unsupported:
        pass
    else:
        raise SystemExit("it was taken")
store.close()
print(*sorted(set(sys.modules) & set({FRAMEWORKS!r})))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "home")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize("model", [5, None, object(), {}, [], {"a": 1}, b"bytes", int])
def test_what_is_no_model_is_refused_with_what_would_be_taken(registry, names, model):
    with pytest.raises(Unsupported, match=r"is no model .*torch module"):
        registry.register("nothing", model)
    assert names.entries() == []


def test_an_unknown_framework_is_told_the_known_ones(registry):
    with pytest.raises(InvalidInput, match=r"there is no framework 'torch'; there is .*pytorch"):
        registry.store_model(object(), framework="torch")
