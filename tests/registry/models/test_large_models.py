"""Models that are larger than they may be: of memory, and of the disk."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from holdfast.errors import Unavailable
from holdfast.registry import ModelRegistry, open_registry
from tests.storage.tiny_disk import tiny_disk

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20

PROGRAM = """
import sys
import threading
import torch
from holdfast.registry import ModelRegistry, open_registry

sys.path.insert(0, sys.argv[1])
from large_net import Large

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon:"))

store, names = open_registry(sys.argv[2])
registry = ModelRegistry(store, names)
registry.register("warm", Large(1))  # what is imported and kept anyhow
registry.get("warm")
most, done = [0], threading.Event()

def watch():
    while not done.wait(0.005):
        most[0] = max(most[0], anonymous())

model = Large(int(sys.argv[4])) if sys.argv[3] == "register" else None
before = anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
if model is not None:
    registry.register("large", model)
else:
    model = registry.get("large")
done.set()
watcher.join()
print(most[0] - before, sum(value.nbytes for value in model.state_dict().values()))
store.close()
"""

NET = """
import torch

class Large(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.config = {"layers": layers}
        self.layers = torch.nn.ParameterList(torch.full((4096, 4096), float(n)) for n in range(layers))
"""


def measured(tmp_path: Path, action: str, layers: int) -> tuple[int, int]:
    (tmp_path / "large_net.py").write_text(NET)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(tmp_path / "home"), action, str(layers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    more, size = map(int, done.stdout.split())
    return more, size


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_gibibytes_take_less_than_300_mb_beside_the_model(tmp_path):
    """Memory of the process's own; pages of the store's files, which the kernel takes back at will, are not it."""
    more, size = measured(tmp_path, "register", 32)
    assert size == 2048 * MIB
    assert more < 300e6
    more, size = measured(tmp_path, "load", 32)
    assert size == 2048 * MIB
    assert more - size < 300e6, "the model itself is loaded into memory of its own"


def test_a_disk_that_fills_up_while_a_model_is_registered_leaves_all_as_it_was(tmp_path):
    with tiny_disk(tmp_path / "disk", "24m") as disk:
        store, names = open_registry(disk / "home")
        registry = ModelRegistry(store, names)
        small = {"w": torch.randn(MIB // 4)}
        entry = registry.register("net", small)
        with pytest.raises(Unavailable, match="full"):
            registry.register("net", {"w": torch.randn(8 * MIB)})
        assert registry.entries() == [entry]
        assert torch.equal(registry.get("net")["w"], small["w"])
        again = registry.register("net", {"w": torch.zeros(MIB // 4)})
        assert again.version == "1.1.0"
        assert [each.version for each in registry.entries()] == ["1.0.0", "1.1.0"]
        names.close()
        store.close()
