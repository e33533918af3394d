"""``ipfs://<cid>/path`` for fsspec.

pandas, pyarrow, Ray Data, dask and Hugging Face ``datasets`` open such paths by themselves once holdfast is installed. What
is read is fetched from the home's peers block by block, verified, and kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fsspec.utils import stringify_path

from holdfast.config import default_home
from holdfast.errors import InvalidInput, Unsupported
from holdfast.storage.cid import Cid
from holdfast.storage.filesystem.content_filesystem import ContentFileSystem
from holdfast.storage.filesystem.content_tree import Node
from holdfast.storage.filesystem.shared import Shared, shared
from holdfast.storage.opening import open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from holdfast.storage.content import ContentStore

__all__ = ["IpfsFileSystem"]


class _OpenStore:
    """A store that somebody else opened, and will close."""

    def __init__(self, store: ContentStore) -> None:
        self._store = store

    def opened(self) -> ContentStore:
        return self._store

    def reopen(self, _: ContentStore) -> bool:
        return False

    def start(self, _: ContentStore, path: str) -> tuple[Node, Sequence[str]]:
        return _from_cid(path)


class _Home:
    """The store of a home; None means the home of the moment."""

    def __init__(self, home: str | os.PathLike[str] | None) -> None:
        self._home = home
        self._shared: tuple[Path, Shared[ContentStore]] | None = None

    def opened(self) -> ContentStore:
        home = default_home() if self._home is None else Path(self._home).expanduser().absolute()
        known = self._shared
        if known is None or known[0] != home:
            known = self._shared = home, shared(("store", home), lambda: open_store(home))
        return known[1].get()

    def reopen(self, store: ContentStore) -> bool:
        self.close(store)
        return True

    def close(self, store: ContentStore | None = None) -> None:
        if self._shared is not None:
            self._shared[1].close(store)

    def start(self, _: ContentStore, path: str) -> tuple[Node, Sequence[str]]:
        return _from_cid(path)


def _from_cid(path: str) -> tuple[Node, Sequence[str]]:
    first, *names = path.split("/")
    if not first:
        raise Unsupported("ipfs:// alone can't be listed: a path begins with a CID, as in ipfs://<cid>/path")
    return Node(cid=Cid.parse(first)), names


class IpfsFileSystem(ContentFileSystem):
    """``ipfs://<cid>/path``: files and directories of one home and its peers.

    Args:
        home: The home's folder; default ``$HOLDFAST_HOME``, looked up at each use. Its store is opened at first use, once a
            process, and by every process for itself: this object may be pickled.
        store: An open store in its place. It stays the caller's to close, and can't be pickled.
        options: fsspec's own, such as ``use_listings_cache`` and ``skip_instance_cache``.

    Example:
        >>> import fsspec
        >>> from holdfast.storage import open_store
        >>> home = getfixture("tmp_path")
        >>> with open_store(home) as store:
        ...     cid = store.add_files({"a/hello.txt": b"hello"})
        >>> with fsspec.open(f"ipfs://{cid}/a/hello.txt", home=str(home)) as file:
        ...     file.read()
        b'hello'
    """

    protocol: ClassVar[str] = "ipfs"

    def __init__(
        self, home: str | os.PathLike[str] | None = None, store: ContentStore | None = None, **options: Any
    ) -> None:
        if home is not None and store is not None:
            raise InvalidInput("ipfs:// reads from home= or from store=, not from both")
        self._of_home = _Home(home) if store is None else None
        super().__init__(self._of_home or _OpenStore(store), **options)  # type: ignore[arg-type]  # one of them is given

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        return super()._strip_protocol(stringify_path(path).removeprefix("/ipfs/"))

    @property
    def fsid(self) -> str:
        """The same everywhere: so is what a CID names."""
        return "ipfs"

    def close(self) -> None:
        """Close the home's store for this process, if it is open; the next use opens it again."""
        if self._of_home is not None:
            self._of_home.close()

    def __reduce__(self) -> Any:
        if self._of_home is None:
            raise Unsupported(
                "a file system over an open store can't be sent to another process: give home= in place of store="
            )
        return super().__reduce__()
