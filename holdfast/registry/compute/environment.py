"""The numeric environment: what a computation runs on, as far as it can change numbers."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.registry.records import CodeRecord, load_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["imported_by", "numeric_environment"]

_VECTOR_SETS = (
    "fma",
    "avx",
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_tile",
    "asimd",
    "sve",
    "sve2",
)
"""Instructions by which numeric libraries choose their kernels; other kernels add in another order."""
_NOT_HERE = "not installed"
_MAX_MODULES = 200


def numeric_environment(packages: Iterable[str] = (), *, modules: Iterable[str] = ()) -> dict[str, Any]:
    """This interpreter, processor and its accelerators, and the versions of what computes.

    Args:
        packages: Names of distributions, such as ``torch``; holdfast itself is always among them.
        modules: Names that code imports. Each gives its distribution's version; what comes from no distribution, or from one
            that is installed in editable form, gives the hash of its source, and so does all that it imports from there.
    """
    versions = {name: _version(name) for name in ("holdfast", *packages)}
    sources: dict[str, str] = {}
    _resolve(modules, versions, sources)
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "accelerators": _accelerators(),
        "packages": versions,
        "sources": sources,
    }


def imported_by(store: ContentStore, code: Cid) -> list[str]:
    """The top-level modules that the files of a code record import, sorted; of those that are in it, none.

    A file that can't be parsed imports nothing: it will not run either.
    """
    record = load_record(store, code, CodeRecord)
    found: set[str] = set()
    own: set[str] = set()
    pending = [(record.files, "")]
    while pending:
        folder, path = pending.pop()
        for entry in store.ls(folder):
            name = f"{path}{entry.name}"
            if entry.name.endswith(".py"):
                found |= set(_imports(bytes(store.open(entry.cid))))
                own.add(name.removesuffix(".py"))
            elif store.stat(entry.cid).kind == "directory":
                pending.append((entry.cid, f"{name}/"))
    # A module inside a package may import its neighbours, which are not in the record.
    found.add(record.entry.partition(":")[0].partition(".")[0])
    return sorted(found - own)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return _NOT_HERE


def _resolve(modules: Iterable[str], versions: dict[str, str], sources: dict[str, str]) -> None:
    """Put each module into ``versions`` or ``sources``."""
    distributions = metadata.packages_distributions()
    pending = sorted(modules, reverse=True)
    seen: set[str] = set()
    while pending and len(seen) < _MAX_MODULES:
        module = pending.pop()
        if module in seen or module in sys.stdlib_module_names:
            continue
        seen.add(module)
        owners = sorted(set(distributions.get(module, ())))
        if owners and not any(_is_editable(owner) for owner in owners):
            versions.update({owner: _version(owner) for owner in owners})
            continue
        files = sorted(_source_files(module))
        sources[module] = _digest(files) if files else _NOT_HERE
        if not owners:  # an editable package declares what it needs; a loose module does not
            for _, file in files:
                pending += sorted(_imports(file.read_bytes()), reverse=True)


def _is_editable(distribution: str) -> bool:
    try:
        text = metadata.distribution(distribution).read_text("direct_url.json")
        return bool(text and json.loads(text).get("dir_info", {}).get("editable"))
    except (metadata.PackageNotFoundError, ValueError):
        return False


def _source_files(module: str) -> Iterator[tuple[str, Path]]:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return
    if spec is None:
        return
    if spec.submodule_search_locations:
        for folder in spec.submodule_search_locations:
            for path in Path(folder).rglob("*.py"):
                yield path.relative_to(folder).as_posix(), path
    elif spec.origin and Path(spec.origin).suffix == ".py":
        yield Path(spec.origin).name, Path(spec.origin)


def _digest(files: list[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, path in files:
        data = path.read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def _imports(source: bytes) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]


def _processor() -> list[str]:
    """The vector instructions that there are, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "").split()
    return [name for name in _VECTOR_SETS if name in flags]


def _accelerators() -> list[str]:
    """The models of the GPUs, as their driver tells them, without loading a library."""
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return sorted(found)
