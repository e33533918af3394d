"""The keys of a home: its own, which sign, and those of others that it trusts, by name."""

from __future__ import annotations

import difflib
import os
import re
import secrets
from typing import TYPE_CHECKING

from holdfast.errors import Conflict, Corrupt, Denied, InvalidInput, NotFound, disk_errors
from holdfast.registry.proof.keys import PublicKey, SigningKey, is_key_text

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["NODE_KEY", "USER_KEY", "KeyRing"]

USER_KEY = "user"
"""The key that a person signs with who names no other."""
NODE_KEY = "node"
"""The key that a home signs with on its own behalf, without anybody being asked."""
_AT_FIRST_USE = (USER_KEY, NODE_KEY)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_SECRET, _PUBLIC = ".pem", ".pub"


class KeyRing:
    """Keys in ``<home>/keys``: ``NAME.pem`` are the home's own (PKCS #8, mode 0600), ``trusted/NAME.pub`` those of others.

    Args:
        home: Need not exist before a key is made or trusted.
    """

    def __init__(self, home: Path) -> None:
        self._folder = home / "keys"
        self._trusted = self._folder / "trusted"

    # ---------------------------------------------------------------------------------------------- own

    def own(self, name: str = USER_KEY) -> SigningKey:
        """One of the home's own keys; ``user`` and ``node`` are made when they are first asked for.

        Two processes that ask for the first time at once get the same key.

        Raises:
            NotFound: There is no key of this name.
            Denied: Others can read the file.
            Corrupt: The file holds no key.
            InvalidInput: It holds a key of another kind.
        """
        path = self._folder / f"{_checked(name)}{_SECRET}"
        if name in _AT_FIRST_USE and not path.exists():
            self._make(name)
        try:
            mode = path.stat().st_mode & 0o077
            pem = path.read_bytes()
        except FileNotFoundError:
            raise NotFound(
                f"this home has no key {name!r}{_near(name, self.own_names())}; "
                f"'holdfast keys new {name}' makes it"
            ) from None
        except PermissionError as error:
            raise Denied(f"the key file {path} can't be read: {error.strerror}") from error
        if mode:
            raise Denied(f"the key file {path} can be read by others: chmod 600 {path}")
        return SigningKey.from_pem(name, pem, where=str(path))

    def new(self, name: str) -> SigningKey:
        """A new key of the home's own.

        Raises:
            Conflict: There is a key of this name, of its own or trusted.
            InvalidInput: The name can't be one.
        """
        if _checked(name) in self.trusted():
            raise Conflict(f"{name!r} is the name of a trusted key here: choose another")
        if not self._make(name):
            raise Conflict(
                f"this home has a key {name!r} already: choose another name (a key is never replaced)"
            )
        return self.own(name)

    def own_names(self) -> list[str]:
        """The names of the home's own keys, sorted."""
        return sorted(path.stem for path in self._folder.glob(f"[!.]*{_SECRET}"))

    def _make(self, name: str) -> bool:
        """Make a key, unless there is one; whether this call did."""
        path = self._folder / f"{name}{_SECRET}"
        partial = self._folder / f".{name}.{secrets.token_hex(4)}.part"
        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(SigningKey.generate(name).to_pem())
                    file.flush()
                    os.fsync(file.fileno())  # what it has signed must not outlive it
                os.link(partial, path)  # two processes may make it at once: the first one's stays
            except FileExistsError:
                return False
            finally:
                partial.unlink()
        return True

    # ------------------------------------------------------------------------------------------ trusted

    def trust(self, name: str, key: PublicKey | str) -> PublicKey:
        """Trust somebody's key, and give it a name; doing it twice is fine.

        Raises:
            Conflict: The name is another key's.
            InvalidInput: The name can't be one, or the text is no key.
        """
        key = key if isinstance(key, PublicKey) else PublicKey.parse(key)
        if _checked(name) in (*_AT_FIRST_USE, *self.own_names()):
            raise Conflict(f"{name!r} is a key of this home's own: choose another name")
        path = self._trusted / f"{name}{_PUBLIC}"
        partial = self._trusted / f".{name}.{secrets.token_hex(4)}.part"
        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._trusted.mkdir(exist_ok=True, mode=0o700)
            partial.write_text(f"{key}\n", encoding="ascii")
            try:
                os.link(partial, path)
            except FileExistsError:
                if self.trusted()[name] != key:
                    raise Conflict(
                        f"{name!r} is the name of {self.trusted()[name]} already: "
                        f"'holdfast keys untrust {name}' first, or choose another name"
                    ) from None
            finally:
                partial.unlink()
        return key

    def untrust(self, name: str) -> None:
        """Trust a key no longer; what it signed counts no more.

        Raises:
            NotFound: No trusted key has this name.
        """
        try:
            with disk_errors(self._folder):
                (self._trusted / f"{_checked(name)}{_PUBLIC}").unlink()
        except FileNotFoundError:
            raise NotFound(f"no trusted key is named {name!r}{_near(name, list(self.trusted()))}") from None

    def trusted(self) -> dict[str, PublicKey]:
        """The keys of others that this home trusts, by name.

        Raises:
            Corrupt: A file holds no key.
        """
        found = {}
        for path in sorted(self._trusted.glob(f"[!.]*{_PUBLIC}")):
            try:
                found[path.stem] = PublicKey.parse(path.read_text(encoding="ascii").strip())
            except FileNotFoundError:
                continue  # somebody stopped trusting it just now
            except (InvalidInput, UnicodeDecodeError) as error:
                raise Corrupt(f"the trusted key {path} can't be read: {error}; remove the file") from error
        return found

    # --------------------------------------------------------------------------------------------- both

    def known(self) -> dict[str, PublicKey]:
        """Every key that has a name here, trusted or the home's own, by name."""
        return self.trusted() | {name: self.own(name).public for name in self.own_names()}

    def names(self) -> dict[PublicKey, str]:
        """The name of each key that has one here; the home's own win."""
        return {key: name for name, key in self.known().items()}

    def resolve(self, text: str) -> PublicKey:
        """The key that a text means: ``z6Mk...``, or the name of a trusted or own key.

        Raises:
            NotFound: No key has this name here.
            InvalidInput: It is neither a key nor a name.
        """
        if is_key_text(text):
            return PublicKey.parse(text)
        known = self.known()
        if _checked(text) not in known:
            how = (
                f"show {text}' makes it"
                if text in _AT_FIRST_USE
                else f"trust {text} z6Mk...' gives it to one"
            )
            raise NotFound(f"no key is named {text!r} here{_near(text, list(known))}; 'holdfast keys {how}")
        return known[text]


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name) or is_key_text(name):
        raise InvalidInput(
            f"{name!r} can't be the name of a key: letters, digits, '.', '_', '@', '+' and '-', up to 64, and not a key's own text"
        )
    return name


def _near(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {near[0]!r}?)" if near else f" (there is {', '.join(names) or 'none at all'})"
