"""The floors of the house, and what its source may not hold: read from the source itself."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import holdfast

ROOT = Path(holdfast.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

FLOORS = {
    "holdfast.errors": 0,
    "holdfast.config": 0,
    "holdfast.telemetry": 0,
    "holdfast.web": 0,
    "holdfast.http_client": 0,
    "holdfast.loop_thread": 0,
    "holdfast.sizes": 0,
    "holdfast.printable": 0,
    "holdfast.whole_numbers": 0,
    "holdfast.storage": 1,
    "holdfast.registry": 2,
    "holdfast.training": 3,
    "holdfast.inference": 3,
    "holdfast.cluster": 4,
    "holdfast": 5,
}
"""Each room with its floor; a module belongs to the longest name that it starts with."""

HEAVY = ("torch", "ray", "pyarrow", "aiohttp", "sqlite3", "numpy", "faiss", "onnxruntime", "lmdb")

ALLOWED_RANDOM = {
    "training/job.py": "seeds the generators that a training function may draw from",
    "registry/models/made_again.py": "keeps them as they were while a constructor runs",
    "cluster/membership.py": "draws a loopback network, so that two clusters on one machine do not meet",
}


def module_name(path: Path) -> str:
    parts = ("holdfast", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return next(room for room in sorted(FLOORS, key=len, reverse=True) if f"{module}.".startswith(f"{room}."))


def imports_of(path: Path) -> set[str]:
    """Every holdfast module that a file imports, at any level; ``from holdfast import __version__`` is left out."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            for alias in node.names:
                if (node.module, alias.name) != ("holdfast", "__version__"):
                    found.add(
                        f"{node.module}.{alias.name}" if node.module == "holdfast" else str(node.module)
                    )
    return {name for name in found if name.partition(".")[0] == "holdfast"}


def source_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_file_imports_from_a_floor_above_or_from_its_neighbour():
    wrong = []
    for path in FILES:
        own = room_of(module_name(path))
        for module in imports_of(path):
            other = room_of(module)
            if (other != own and FLOORS[other] >= FLOORS[own] > 0) or FLOORS[other] > FLOORS[own]:
                wrong.append(f"{module_name(path)} imports {module}")
    assert not wrong


def test_every_module_stands_in_a_room():
    for path in FILES:
        assert room_of(module_name(path)) != "holdfast" or path == ROOT / "__init__.py", path


def loaded_after(statement: str, home: Path) -> set[str]:
    """The top-level packages in ``sys.modules`` of a new interpreter after one statement."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{statement}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=home,
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_holdfast_does_not_wait_for_heavy_libraries(tmp_path):
    assert loaded_after("import holdfast, holdfast.errors, holdfast.config", tmp_path).isdisjoint(HEAVY)


def test_the_registry_is_usable_without_loading_torch_or_ray(tmp_path):
    loaded = loaded_after("import holdfast.registry", tmp_path)
    assert loaded.isdisjoint({"torch", "ray", "safetensors"})


def test_the_command_line_is_there_before_anything_that_takes_time(tmp_path):
    loaded = loaded_after("import holdfast.cluster.cli as cli; cli.parser()", tmp_path)
    assert loaded.isdisjoint(HEAVY)


def test_the_training_package_does_not_load_torch_or_ray_before_a_run(tmp_path):
    loaded = loaded_after(
        "import holdfast.training, holdfast.training.job, holdfast.training.ray_job", tmp_path
    )
    assert loaded.isdisjoint({"torch", "ray"})


# ------------------------------------------------------------------------------------- nothing invented


def test_no_result_is_drawn_instead_of_computed():
    """A random number has no place in a result: who needs one is listed above with the reason."""
    drawing = {
        source_id(path): ast.unparse(node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Import) and any(a.name.split(".")[-1] == "random" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and str(node.module).split(".")[-1] == "random")
        or (
            isinstance(node, ast.Attribute)
            and node.attr in {"random", "rand", "randn", "randint", "default_rng"}
        )
    }
    assert drawing.keys() == ALLOWED_RANDOM.keys(), drawing


def test_nothing_in_the_source_only_looks_as_if_it_worked():
    """Names, texts and comments: no mocks, simulations, fakes, or notes about work left undone."""
    wrong = re.compile(r"(?i)mock|simulat|fake|dummy|\bTODO\b|\bFIXME\b|\bXXX\b")
    found = []
    for path in FILES:
        tokens = tokenize.tokenize(io.BytesIO(path.read_bytes()).readline)
        found += [(source_id(path), t.start[0], t.string) for t in tokens if wrong.search(t.string)]
    assert not found


PICKLED = "holdfast/registry/models/pickled_models.py"
"""Opens a pickle, but only one that the registry lets through: that of a model which a trusted key has signed."""


def test_no_bytes_are_ever_unpickled():
    for path in FILES:
        if path.as_posix().endswith(PICKLED):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {
            a.name.partition(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names
        }
        modules |= {str(n.module).partition(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert modules.isdisjoint({"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}), path
        calls = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        assert calls.isdisjoint({"torch.load", "np.load", "numpy.load"}), path


def test_no_function_is_left_for_later():
    raising = {
        source_id(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise)
        and node.exc is not None
        and "NotImplementedError" in ast.unparse(node.exc)
    }
    assert not raising
