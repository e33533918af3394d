"""Code by CID: the source file of a function or class, hashed before it runs and run as it was hashed."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import linecache
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import Denied, InvalidInput, NotFound
from holdfast.registry.records import CodeRecord, load_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["bundle_code", "load_code"]

_ORIGIN = "__holdfast_origin__"
"""On a module made by :func:`load_code`: its recorded name and source."""


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
            raise InvalidInput(f"the source of {name} is not in a file; put it into a module and import it") from error
        module = path.stem if target.__module__ == "__main__" else target.__module__
    files = store.add_files({module.replace(".", "/") + ".py": source})
    return CodeRecord(files=files, entry=f"{module}:{name}").store(store)


def load_code(store: ContentStore, cid: Cid, *, trust: bool) -> Any:
    """The function or class of a code record.

    Where the same module is installed here with the very same source, that is imported. Otherwise the recorded source is run,
    if the caller trusts it.

    Args:
        store: Gives the source, verified.
        cid: The code record.
        trust: Run code that is not installed here.

    Raises:
        Denied: The code is not installed here and not trusted.
        NotFound: The source has no such function or class.
    """
    record = load_record(store, cid, CodeRecord)
    module_name, _, name = record.entry.partition(":")
    path = module_name.replace(".", "/") + ".py"
    source = bytes(store.read(store.resolve(f"{record.files}/{path}")))
    module = _installed(module_name, source)
    if module is None:
        if not trust:
            raise Denied(
                f"{record.entry} ({cid}) is not installed here, and code from a CID runs only when you trust "
                "it: look at it with 'holdfast get', then say trust_code=True"
            )
        module = _run(module_name, source, path)
    if not hasattr(module, name):
        raise NotFound(f"the code {cid} has no {name!r} in {path}")
    return getattr(module, name)


def _installed(module_name: str, source: bytes) -> types.ModuleType | None:
    try:
        spec = importlib.util.find_spec(module_name)
        if spec is None or spec.origin is None or Path(spec.origin).read_bytes() != source:
            return None
        return importlib.import_module(module_name)
    except (ImportError, OSError, ValueError):
        return None


def _run(module_name: str, source: bytes, path: str) -> types.ModuleType:
    # The digest in the name keeps two versions of one module apart in one process.
    unique = f"holdfast_code_{hashlib.sha256(source).hexdigest()[:16]}_{module_name.replace('.', '_')}"
    if unique in sys.modules:
        return sys.modules[unique]
    module = types.ModuleType(unique)
    module.__file__ = f"<{unique}>/{path}"
    setattr(module, _ORIGIN, (module_name, source))
    text = source.decode()
    # Tracebacks and inspect.getsource find the lines here.
    linecache.cache[module.__file__] = (len(text), None, text.splitlines(keepends=True), module.__file__)
    sys.modules[unique] = module
    try:
        exec(compile(source, module.__file__, "exec"), module.__dict__)  # noqa: S102 -- verified, and trusted by the caller
    except BaseException:
        del sys.modules[unique]
        raise
    return module
