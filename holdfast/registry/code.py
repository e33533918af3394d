"""Code by CID: the source file of a function or class, hashed before it runs and run as it was hashed."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import linecache
import os
import sys
import threading
import time
import types
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import Denied, InvalidInput, NotFound
from holdfast.printable import printable
from holdfast.registry.records import CodeRecord, load_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["bundle_code", "load_code"]

_ORIGIN = "__holdfast_origin__"
"""On a module made by :func:`load_code`: its recorded name and source."""
_CLOCK_S = 0.05
"""Files' times and the clock may differ by so much."""
_TICK_S = 0.01
_NOTHING = object()
_imported_at: dict[str, float] = {}
_loading = threading.RLock()


def bundle_code(store: ContentStore, target: Callable[..., Any]) -> Cid:
    """The CID of a code record for a function or class: its module's source file and its name in it.

    The file must stand on its own: what it imports must be installed where it runs. It is run again there, so
    a script protects its own doings with ``if __name__ == "__main__":``.

    Raises:
        InvalidInput: There is no source file (an interactive session), or the object is not at the top
            level of its module.
    """
    name = getattr(target, "__qualname__", "")
    if not name.isidentifier():
        raise InvalidInput(f"{target!r} must be a function or class at the top level of a module")
    if origin := getattr(sys.modules.get(target.__module__), _ORIGIN, None):
        module, source = origin  # it came from a code record itself
    else:
        try:
            path = Path(inspect.getsourcefile(target) or "")
            source = path.read_bytes()
        except (TypeError, OSError) as error:
            raise InvalidInput(
                f"the source of {name} is not in a file; put it into a module and import it"
            ) from error
        module = path.stem if target.__module__ == "__main__" else target.__module__
    files = store.add_files({module.replace(".", "/") + ".py": source}, pin=False)
    return CodeRecord(files=files, entry=f"{module}:{name}").store(store)


def load_code(store: ContentStore, cid: Cid, *, trust: bool) -> Any:
    """The function or class of a code record.

    Where the same module is installed here with the very same source, that is imported, as part of the package that it is in.
    Its file is found and compared before anything is imported. Otherwise the recorded source is run, if the caller trusts it.
    So it is, too, where the module was loaded before its file got this source: what runs is always what was hashed.

    Args:
        store: Gives the source, verified.
        cid: The code record.
        trust: Run code that is not installed here. Without it, the result still is whatever the record names in an
            installed module, ``subprocess.Popen`` for one: look at it before you call it.

    Raises:
        Denied: The code is not installed here and not trusted.
        NotFound: The source has no such function or class.
        InvalidInput: The module raised an error when it was run, or would have ended the process.
    """
    record = load_record(store, cid, CodeRecord)
    module_name, _, name = record.entry.partition(":")
    path = module_name.replace(".", "/") + ".py"
    source = bytes(store.open(store.resolve(f"{record.files}/{path}")))
    installed = _installed(module_name, source)
    if installed is None and not trust:
        raise Denied(
            f"{printable(record.entry)} ({cid}) is not installed here, and code from a CID runs only when you trust "
            "it: look at it with 'holdfast get', then say trust_code=True"
        )
    # One thread must not see a module that another is still running.
    with _loading, _outlived(f"{printable(record.entry)} ({cid})"):
        module = _import(module_name, installed) if installed else None
        module = module or _run(module_name, source, path)
        found = getattr(module, name, _NOTHING)
    if found is _NOTHING:
        raise NotFound(f"the code {cid} has no {name!r} in {printable(path)}")
    return found


@contextmanager
def _outlived(what: str) -> Iterator[None]:
    """Turn whatever a module does when it is run into one clear error: it may also try to end this process."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise InvalidInput(
            f"{what} can't be loaded: running its module raised {type(error).__name__}: {error!s:.500}"
        ) from error


def _installed(module_name: str, source: bytes) -> Path | None:
    """The file of the installed module, if its source is this one. Nothing is imported to find it."""
    try:
        spec = _spec_of(module_name)
        if spec is None or not spec.has_location or spec.origin is None:
            return None
        file = Path(spec.origin)
        return file if file.read_bytes() == source else None
    except (ImportError, OSError, ValueError):
        return None


def _spec_of(module_name: str) -> ModuleSpec | None:
    """What importing a module would find. ``importlib.util.find_spec`` would import the packages that it is in."""
    parts = module_name.split(".")
    if not all(part.isidentifier() for part in parts) or "__main__" in parts:
        return None  # a package's __main__ is a program: to import it is to run it
    spec: ModuleSpec | None = None
    folders: Sequence[str] | None = None
    for at in range(len(parts)):
        if at and folders is None:
            return None  # what it should be in is no package
        name = ".".join(parts[: at + 1])
        loaded = sys.modules.get(name)
        spec = _found(name, folders) if loaded is None else getattr(loaded, "__spec__", None)
        if spec is None:
            return None
        places = spec.submodule_search_locations if loaded is None else getattr(loaded, "__path__", None)
        folders = None if places is None else list(places)
    return spec


def _found(name: str, folders: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        # By its whole name it would look up the package, which need not be loaded. Others, such as those of editable installs,
        # know modules by their whole names only.
        asked = name.rpartition(".")[2] if finder is PathFinder else name
        with suppress(KeyError):  # one that does look up the package
            if (spec := finder.find_spec(asked, folders)) is not None:
                return spec
    return None


def _import(module_name: str, file: Path) -> types.ModuleType | None:
    """The installed module, or None where it was loaded and its file may have been changed since."""
    loaded = (
        "__main__" if _is_main(file) else module_name
    )  # a script is not run a second time to get its own classes
    if loaded not in sys.modules:
        _imported_at[module_name] = time.time()
        module = importlib.import_module(module_name)
        # The package that it is in may have put something else in its place.
        return module if getattr(module, "__file__", None) == str(file) else None
    changed = file.stat().st_ctime
    if loaded in _imported_at:
        return sys.modules[loaded] if changed < _imported_at[loaded] - _CLOCK_S else None
    # When others loaded it is not known, but it was in this process' life, and an interpreter takes longer to start.
    return sys.modules[loaded] if changed < _process_started() + _TICK_S else None


def _process_started() -> float:
    """When this process was started, in seconds since 1970, to a tick. The time of boot that ``/proc/stat`` gives is in whole seconds."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    since_boot = ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)


def _is_main(file: Path) -> bool:
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return main is not None and Path(main).resolve() == file.resolve()


def _run(module_name: str, source: bytes, path: str) -> types.ModuleType:
    # The digest in the name keeps two versions of one module apart in one process.
    unique = f"holdfast_code_{hashlib.sha256(source).hexdigest()[:16]}_{module_name.replace('.', '_')}"
    if unique in sys.modules:
        return sys.modules[unique]
    module = types.ModuleType(unique)
    module.__file__ = f"<{unique}>/{path}"
    module.__package__ = module_name.rpartition(".")[0]  # relative imports mean what is installed here
    setattr(module, _ORIGIN, (module_name, source))
    text = importlib.util.decode_source(source)
    # Tracebacks and inspect.getsource find the lines here.
    linecache.cache[module.__file__] = (len(text), None, text.splitlines(keepends=True), module.__file__)
    sys.modules[unique] = module
    try:
        code = compile(source, module.__file__, "exec", dont_inherit=True)  # not with this file's __future__
        exec(code, module.__dict__)  # noqa: S102 -- verified, and trusted by the caller
    except BaseException:
        del sys.modules[unique]
        raise
    return module
