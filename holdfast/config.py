"""Typed settings: argument > environment > file > default.

One dataclass per component. A setting ``section.key`` is read from the environment variable
``HOLDFAST_SECTION__KEY`` and from the table ``[section]`` of ``$HOLDFAST_HOME/config.toml``. An unknown key is
an error with a suggestion, never ignored. ``holdfast up --ipfs`` leaves a note in the home, which the file overrules.
``holdfast config`` prints each value with where it came from.

``HOLDFAST_HOME`` (default ``~/.holdfast``) chooses the home folder: the block store, the registry, the token.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import secrets
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from holdfast.errors import Denied, InvalidInput, NotFound, disk_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "FetchSettings",
    "MasterSettings",
    "RegistrySettings",
    "ServeSettings",
    "Settings",
    "StorageSettings",
    "WorkerSettings",
    "default_home",
    "load_settings",
    "note_ipfs",
    "read_token",
    "token_for",
]

ENV_PREFIX = "HOLDFAST_"
MIN_TOKEN_CHARS = 16
_TOKEN = re.compile(r"[!-~]+")
_IPFS = "ipfs-daemon"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """The block store of one home."""

    profile: str = "unixfs-v1-2025"
    """Chunking and layout of what is added; see ``holdfast.storage.PROFILES``."""
    hash: Literal["sha2-256", "blake3"] = "sha2-256"
    """Of what is added. blake3 is twice as fast, also whenever something is read; older IPFS programs don't know it."""
    verify: Literal["always", "ingest"] = "always"
    """When blocks on the local disk are hashed: at every read, or only when they came in. What comes from the
    network, or lies in a file of the user's own, is always hashed."""
    max_bytes: int = 0
    """Quota of the home's blocks on the disk; above it, what is neither pinned nor named makes room. 0 means none."""
    grace_s: float = 3600.0
    """Garbage collection leaves alone what was written so lately."""
    ipfs: str = ""
    """RPC API of an IPFS daemon, such as ``http://127.0.0.1:5001``, that keeps the blocks in the home's stead."""
    segment_size_bytes: int = 1 << 30
    """A segment file is closed once it is this large."""
    index_map_size_bytes: int = 1 << 36
    """Address space (not disk space) that the LMDB index may grow into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSettings:
    """How missing blocks are fetched from other nodes."""

    timeout_s: float = 30.0
    """Deadline of one block request."""
    concurrency: int = 16
    """Requests in flight at most."""
    providers: tuple[str, ...] = ()
    """Gateways to ask besides the cluster's own nodes, as URLs."""
    routers: tuple[str, ...] = ()
    """Delegated Routing endpoints that know more gateways, as URLs; a cluster's master need not be named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterSettings:
    """``holdfast up``."""

    host: str = "127.0.0.1"
    port: int = 7400
    num_cpus: int = 0
    """CPUs of the master's own machine that jobs may use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """``holdfast worker``."""

    host: str = "127.0.0.1"
    port: int = 0
    """Port of the node's block server; 0 takes a free one."""
    num_cpus: int = 0
    """CPUs that jobs may use; 0 means all of this machine's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """``holdfast serve``."""

    host: str = "127.0.0.1"
    port: int = 8080
    max_body_bytes: int = 64 << 20
    """A larger request is refused with 413."""
    threads: int = 1
    """ONNX Runtime threads per session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """Names, models and who must have signed them."""

    require_signed_by: tuple[str, ...] = ()
    """Names of keys (see ``holdfast keys``), or keys: one of them must have signed every model that is loaded or served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set, with where each value came from."""

    home: Path
    storage: StorageSettings = field(default_factory=StorageSettings)
    fetch: FetchSettings = field(default_factory=FetchSettings)
    master: MasterSettings = field(default_factory=MasterSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    serve: ServeSettings = field(default_factory=ServeSettings)
    registry: RegistrySettings = field(default_factory=RegistrySettings)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    """``section.key`` -> ``argument``, ``environment``, the file's path, or ``default``."""


_SECTIONS: dict[str, type] = {
    "storage": StorageSettings,
    "fetch": FetchSettings,
    "master": MasterSettings,
    "worker": WorkerSettings,
    "serve": ServeSettings,
    "registry": RegistrySettings,
}


def default_home() -> Path:
    """``$HOLDFAST_HOME``, or ``~/.holdfast``."""
    return Path(os.environ.get("HOLDFAST_HOME") or "~/.holdfast").expanduser().absolute()


def load_settings(home: str | Path | None = None, **arguments: Any) -> Settings:
    """Settings of one home.

    Args:
        home: The home folder; default :func:`default_home`. It need not exist.
        arguments: ``section__key=value``; ``None`` means "not given".

    Raises:
        InvalidInput: An unknown key, or a value of the wrong type.
    """
    root = Path(home).expanduser().absolute() if home is not None else default_home()
    known = {f"{section}.{f.name}" for section, cls in _SECTIONS.items() for f in fields(cls)}
    values: dict[str, Any] = {}
    origins = dict.fromkeys(known, "default")
    for origin, layer in (
        (str(root / _IPFS), _from_note(root / _IPFS)),
        (str(root / "config.toml"), _from_file(root / "config.toml")),
        ("environment", _from_environment()),
        ("argument", {k.replace("__", ".", 1): v for k, v in arguments.items() if v is not None}),
    ):
        for key, value in layer.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
                raise InvalidInput(f"unknown setting {key!r} ({origin}){hint}")
            values[key] = value
            origins[key] = origin
    sections = {}
    for section, cls in _SECTIONS.items():
        hints = get_type_hints(cls)
        sections[section] = cls(
            **{
                f.name: _typed(f"{section}.{f.name}", hints[f.name], values[f"{section}.{f.name}"])
                for f in fields(cls)
                if f"{section}.{f.name}" in values
            }
        )
    return Settings(home=root, origins=origins, **sections)


def note_ipfs(home: Path, address: str) -> None:
    """Note where a home's blocks are kept, for every process that opens it from now on.

    Args:
        home: Exists.
        address: As ``storage.ipfs``; empty means in the home, and removes the note.
    """
    path = home / _IPFS
    with disk_errors(home):
        if not address:
            path.unlink(missing_ok=True)
            return
        partial = home / f".{_IPFS}.{secrets.token_hex(4)}.part"
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(address)  # it may have a password in it
        partial.replace(path)


def _from_note(path: Path) -> dict[str, Any]:
    try:
        return {"storage.ipfs": path.read_text(encoding="utf-8").strip()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} can't be read: {error}") from error


def _from_file(path: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidInput(
            f"{path} can't be read ({error.strerror}): is {path.parent} a folder of yours?"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not valid TOML: {error}") from error
    flat: dict[str, Any] = {}
    for section, table in tables.items():
        if not isinstance(table, dict):
            raise InvalidInput(f"{path}: {section!r} stands outside a table such as [storage]")
        flat |= {f"{section}.{key}": value for key, value in table.items()}
    return flat


def _from_environment() -> dict[str, str]:
    return {
        name[len(ENV_PREFIX) :].lower().replace("__", ".", 1): value
        for name, value in os.environ.items()
        if name.startswith(ENV_PREFIX) and "__" in name
    }


def _typed(key: str, wanted: Any, value: Any) -> Any:
    try:
        if wanted is int and not isinstance(value, (bool, float)):
            return int(value)
        if wanted is float and not isinstance(value, bool) and math.isfinite(float(value)):
            return float(value)
        if wanted is str and isinstance(value, str):
            return value
        if get_origin(wanted) is Literal and value in get_args(wanted):
            return value
        if wanted == tuple[str, ...]:
            items = value.split(",") if isinstance(value, str) else list(value)
            if not isinstance(value, dict):
                return tuple(stripped for item in items if (stripped := str.strip(item)))
    except (TypeError, ValueError):
        pass
    if get_origin(wanted) is Literal:
        raise InvalidInput(f"setting {key!r} must be {' or '.join(get_args(wanted))}, not {value!r}")
    raise InvalidInput(f"setting {key!r} must be a {getattr(wanted, '__name__', wanted)}, not {value!r}")


def token_for(home: Path, token: str | None = None) -> str:
    """The token of a home, in ``<home>/token`` with file mode 0600.

    Args:
        home: Made if it does not exist.
        token: Kept there, for a home that joins a cluster; None takes what is there, or makes a new one.

    Raises:
        Denied: The file can be read by others.
        InvalidInput: The given token is too short, or has characters that can't be sent.
    """
    if token is not None and not (_TOKEN.fullmatch(token) and len(token) >= MIN_TOKEN_CHARS):
        raise InvalidInput(
            f"a token has at least {MIN_TOKEN_CHARS} characters, all printable ASCII, and no spaces"
        )
    path = home / "token"
    with disk_errors(home):
        home.mkdir(parents=True, exist_ok=True)
        if token is None and path.exists():
            return read_token(path)
        partial = home / f".token.{secrets.token_hex(4)}.part"
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(token or secrets.token_hex(32))
        try:
            # Two processes may make it at once: the first one's stays, unless one was told which it is.
            (partial.replace if token is not None else lambda target: os.link(partial, target))(path)
        except FileExistsError:
            pass
        finally:
            partial.unlink(missing_ok=True)
    return read_token(path)


def read_token(path: Path) -> str:
    """The token in a file that only its owner may read.

    Raises:
        NotFound: No such file.
        Denied: Group or others may read it, or it is too short to be a secret.
    """
    try:
        mode = path.stat().st_mode & 0o077
        token = path.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise NotFound(
            f"there is no token file {path}: copy the token file of the master's home there, or name one with --token-file"
        ) from error
    except (PermissionError, UnicodeDecodeError) as error:
        raise Denied(f"the token file {path} can't be read: {error}") from error
    if mode:
        raise Denied(f"the token file {path} can be read by others: chmod 600 {path}")
    if len(token) < MIN_TOKEN_CHARS:
        raise Denied(f"the token in {path} is shorter than {MIN_TOKEN_CHARS} characters")
    return token
