"""Files that come one by one, such as a run's, by path: a changing tree whose every state is a CID.

The tree is cut into roots. A root is everything up to the first folder called ``artifacts``, which is where MLflow keeps a run's or
a model's files; what lies outside of such folders belongs to the root of its first name. Each root is a name of kind
``artifacts``: a change is a new version of it, and only the folders on the way to what changed are stored again. So several
processes may write at once: each registers exactly the next version, and starts again where another was quicker.
"""

from __future__ import annotations

import re
import secrets
import string
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.errors import Conflict, InvalidInput, NotFound
from holdfast.storage.adding import MAX_TREE_DEPTH
from holdfast.storage.cid import RAW
from holdfast.storage.formats.unixfs import file_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from holdfast.registry.names import NameEntry, Names
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["Artifact", "ArtifactTree", "name_of", "path_of", "split_path"]

KIND = "artifacts"
_FOLDER = "artifacts"
_PLAIN = frozenset(string.ascii_letters + string.digits + "-")
_ESCAPE = re.compile(r"_(_|[0-9a-f]{2})")
_MAX_NAME = 128
"""What the names table takes."""
_TRIES = 200
_LONGEST_WAIT_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One entry of a folder."""

    name: str
    cid: Cid | None
    """None for a folder that has nothing but roots below it."""
    is_folder: bool
    size: int
    """Bytes of a file; 0 for a folder."""


def split_path(path: str) -> tuple[str, ...]:
    """The names in a path, ``team/run/artifacts/model``; slashes too many are passed over.

    Raises:
        InvalidInput: It leads out of the tree, is too deep, or its first name does not begin with a letter or digit.
    """
    parts = tuple(file_name(part) for part in path.split("/") if part not in ("", "."))
    if not parts or not (parts[0][0].isascii() and parts[0][0].isalnum()):
        raise InvalidInput(
            f"the artifact path {path!r} must begin with a name that has a letter or digit in front"
        )
    if len(parts) > MAX_TREE_DEPTH:
        raise InvalidInput(f"the artifact path {path[:80]!r}... is deeper than {MAX_TREE_DEPTH}")
    return parts


def name_of(parts: tuple[str, ...]) -> str:
    """The name that a root has in the names table: ``.`` for the slash, ``__`` for ``_``, ``_2e`` and the like for other letters.

    ASCII letters, digits and dashes stay as they are.

    Raises:
        InvalidInput: It would be too long.
    """
    name = ".".join("".join(map(_escaped, part)) for part in parts)
    if len(name) > _MAX_NAME:
        raise InvalidInput(
            f"the artifact root {'/'.join(parts)!r} needs a name of {len(name)} characters, and {_MAX_NAME} is the most: choose a "
            "shorter artifact location"
        )
    return name


def path_of(name: str) -> tuple[str, ...]:
    """The root whose name it is: the inverse of :func:`name_of`.

    Raises:
        InvalidInput: No root has such a name.
    """
    try:
        parts = tuple(_ESCAPE.sub(_unescaped, part).encode("latin-1").decode() for part in name.split("."))
        if name_of(split_path("/".join(parts))) == name:
            return parts
    except (UnicodeError, InvalidInput) as error:
        raise InvalidInput(f"{name!r} is not the name of an artifact root: {error}") from error
    raise InvalidInput(f"{name!r} is not the name of an artifact root")


def _escaped(letter: str) -> str:
    if letter in _PLAIN:
        return letter
    return "__" if letter == "_" else "".join(f"_{byte:02x}" for byte in letter.encode())


def _unescaped(match: re.Match[str]) -> str:
    """One byte, as the letter of Latin-1 that has its number."""
    return "_" if match[1] == "_" else chr(int(match[1], 16))


def _root_length(parts: tuple[str, ...]) -> int:
    return parts.index(_FOLDER, 1) + 1 if _FOLDER in parts[1:] else 1


class ArtifactTree:
    """Files and folders by path, such as ``team/run/artifacts/model/MLmodel``.

    Args:
        store: Where their bytes are.
        names: Where the newest state of each root is kept, with all states before.
    """

    def __init__(self, store: ContentStore, names: Names) -> None:
        self._store = store
        self._names = names

    # ------------------------------------------------------------------------------------------- reading

    def find(self, path: str) -> Cid | None:
        """The CID of a file or folder of one root as it is now; None if there is none."""
        parts = split_path(path)
        length = _root_length(parts)
        newest = self._newest(name_of(parts[:length]))
        cid = newest.cid if newest else None
        for part in parts[length:]:
            cid = self._entries(cid).get(part) if cid is not None and self._is_folder(cid) else None
        return cid

    def entries(self, path: str) -> list[Artifact]:
        """What is directly in a folder, sorted by name; nothing for a file, or where nothing is."""
        cid = self.find(path)
        entries = self._entries(cid) if cid is not None and self._is_folder(cid) else {}
        found = {name: self._artifact(name, below) for name, below in entries.items()}
        parts = split_path(path)
        for root, entry in self._roots_below(parts):
            name = root[len(parts)]
            if len(root) == len(parts) + 1:
                found[name] = self._artifact(name, entry.cid)
            else:
                found.setdefault(name, Artifact(name=name, cid=None, is_folder=True, size=0))
        return [found[name] for name in sorted(found)]

    def get(self, path: str, destination: Path) -> int:
        """Write a file, verified, to ``destination``, in place of what was there; how many bytes.

        Raises:
            NotFound: There is no such file, or a block of it is missing.
        """
        cid = self.find(path)
        if cid is None or self._is_folder(cid):
            raise NotFound(
                f"there is no artifact file {path!r}{'; it is a folder' if cid is not None else ''}"
            )
        partial = destination.with_name(f".holdfast-{secrets.token_hex(8)}.got")
        try:
            written = self._store.get(cid, partial)
            partial.replace(destination)
        finally:
            partial.unlink(missing_ok=True)
        return written

    # ------------------------------------------------------------------------------------------ changing

    def put(self, path: str, local: Path) -> Cid:
        """Store a file at a path, or a folder's files into the folder there; gives the CID of what ``local`` is.

        Files of the same names are replaced, others stay. Symbolic links are followed: what counts is what they lead to. A folder
        with several roots in it is one change for each.

        Raises:
            Conflict: A file is where a folder must be, or the other way round; or others kept changing the same root.
            InvalidInput: The path leads out of the tree, or a link in the folder leads to a folder that it is in.
            NotFound: There is no such file.
        """
        parts = split_path(path)
        added = self._added(local, ())
        own, apart = (added, []) if _root_length(parts) > 1 else self._apart(parts, added)
        for where, cid in [(parts, own), *apart]:
            self._put(where, cid)
        return added

    def _put(self, parts: tuple[str, ...], cid: Cid) -> None:
        length = _root_length(parts)
        self._check_other_roots(parts, cid)
        self._change(parts[:length], lambda old: self._placed(old, parts[:length], parts[length:], cid))

    def _check_other_roots(self, parts: tuple[str, ...], cid: Cid) -> None:
        """No file of one root may stand where a folder on the way to another root is."""
        length = _root_length(parts)
        if length == 1:
            ways = [(root, cid, root[len(parts) :]) for root, _ in self._roots_below(parts)]
        else:
            outer = self._newest(name_of(parts[:1]))
            ways = [(parts[:length], outer.cid, parts[1:length])] if outer else []
        for root, top, names in ways:
            at: Cid | None = top
            for name in names:
                if at is None:
                    break
                if not self._is_folder(at):
                    raise Conflict(
                        f"the artifacts {'/'.join(root)!r} can't have a file in place of a folder above them"
                    )
                at = self._entries(at).get(name)

    def delete(self, path: str) -> None:
        """Remove a file, or a folder with all that is below it; nothing happens where there is none.

        The states before are forgotten, so the bytes go with the next garbage collection, unless something else keeps them.
        """
        parts = split_path(path)
        length = _root_length(parts)
        roots = [root for root, _ in self._roots_below(parts)]
        if self.find(path) is not None:
            self._forget_before(self._change(parts[:length], lambda old: self._without(old, parts[length:])))
        for root in roots:
            self._forget_before(self._change(root, lambda _: self._store.add_files({}, pin=False)))

    def _change(self, root: tuple[str, ...], change: Callable[[Cid | None], Cid]) -> NameEntry:
        """The next version of a root, made of the newest by ``change``, however many others change it meanwhile."""
        name = name_of(root)
        number, seen = 0, -2
        for attempt in range(_TRIES):
            newest = self._newest(name)
            cid = change(newest.cid if newest else None)
            if newest is not None and cid == newest.cid:
                return newest
            before = int(newest.version.split(".")[1]) if newest else -1
            # The same newest again means that the next one was removed by hand: its number is spent.
            number, seen = number + 1 if before == seen else before + 1, before
            try:
                return self._names.register(KIND, name, f"1.{number}.0", cid)
            except Conflict:
                time.sleep(min(_LONGEST_WAIT_S, 0.001 * 2**attempt))
        raise Conflict(
            f"the artifacts {'/'.join(root)!r} were changed by others {_TRIES} times while this change was tried; nothing is "
            "stored: try again"
        )

    def _forget_before(self, newest: NameEntry) -> None:
        """Remove the versions before one; its successors by others stay."""
        number = int(newest.version.split(".")[1])
        for entry in self._names.entries(KIND):
            if entry.name == newest.name and int(entry.version.split(".")[1]) < number:
                self._names.unregister(KIND, entry.name, entry.version)

    def _placed(self, old: Cid | None, above: tuple[str, ...], parts: tuple[str, ...], new: Cid) -> Cid:
        """``old`` with ``new`` at ``parts`` in it."""
        if old is None and not parts:
            return new
        if not parts and not self._is_folder(new):
            if old is not None and self._is_folder(old) and self._has_files(old):
                raise Conflict(
                    f"the artifact {'/'.join(above)!r} is a folder, and can't be replaced by a file"
                )
            return new
        if old is not None and not self._is_folder(old):
            raise Conflict(f"the artifact {'/'.join(above)!r} is a file, and can't be replaced by a folder")
        entries = self._entries(old) if old is not None else {}
        if parts:
            entries[parts[0]] = self._placed(entries.get(parts[0]), (*above, parts[0]), parts[1:], new)
        else:
            for name, cid in self._entries(new).items():
                entries[name] = self._placed(entries.get(name), (*above, name), (), cid)
        return self._store.add_files(entries, pin=False)

    def _without(self, old: Cid | None, parts: tuple[str, ...]) -> Cid:
        """``old`` with nothing at ``parts``."""
        entries = self._entries(old) if parts and old is not None and self._is_folder(old) else {}
        if parts and parts[0] not in entries:
            return (
                old if old is not None else self._store.add_files({}, pin=False)
            )  # somebody else was quicker
        if len(parts) > 1:
            entries[parts[0]] = self._without(entries[parts[0]], parts[1:])
        elif parts:
            del entries[parts[0]]
        return self._store.add_files(entries, pin=False)

    def _apart(self, parts: tuple[str, ...], cid: Cid) -> tuple[Cid, list[tuple[tuple[str, ...], Cid]]]:
        """A folder without those in it that are roots of their own, and these."""
        if not self._is_folder(cid):
            return cid, []
        own, others = {}, []
        for name, below in self._entries(cid).items():
            if name == _FOLDER:
                others.append(((*parts, name), below))
            else:
                own[name], more = self._apart((*parts, name), below)
                others += more
        return (self._store.add_files(own, pin=False) if others else cid), others

    def _added(self, local: Path, above: tuple[Path, ...]) -> Cid:
        """A local file or folder, stored, with what links lead to in their places."""
        real = local.resolve()
        if real in above:
            raise InvalidInput(f"{local} leads back to {real}, which it is in: it would have no end")
        if not real.is_dir() or not any(below.is_symlink() for below in real.rglob("*")):
            return self._store.add(real, pin=False)
        return self._store.add_files(
            {below.name: self._added(below, (*above, real)) for below in real.iterdir()}, pin=False
        )

    # ------------------------------------------------------------------------------------------- looking

    def _newest(self, name: str) -> NameEntry | None:
        try:
            return self._names.resolve(KIND, name)
        except NotFound:
            return None

    def _roots_below(self, parts: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], NameEntry]]:
        """The roots inside a folder, with their newest versions; not those without a file."""
        if _root_length(parts) > 1:
            return
        front = f"{name_of(parts)}."
        newest = {entry.name: entry for entry in self._names.entries(KIND) if entry.name.startswith(front)}
        for name, entry in newest.items():
            if self._has_files(entry.cid):
                yield path_of(name), entry

    def _is_folder(self, cid: Cid) -> bool:
        return cid.codec != RAW and self._store.stat(cid).kind == "directory"

    def _has_files(self, cid: Cid) -> bool:
        """Whether it is a file, or one is in it at any depth: folders of folders that were emptied are in nobody's way."""
        return not self._is_folder(cid) or any(map(self._has_files, self._entries(cid).values()))

    def _entries(self, cid: Cid) -> dict[str, Cid]:
        return {entry.name: entry.cid for entry in self._store.ls(cid)}

    def _artifact(self, name: str, cid: Cid) -> Artifact:
        found = self._store.stat(cid)
        folder = found.kind == "directory"
        return Artifact(name=name, cid=cid, is_folder=folder, size=0 if folder else found.size)
