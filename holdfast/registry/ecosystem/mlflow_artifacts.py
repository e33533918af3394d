"""``holdfast://`` for MLflow: a run's files and models are stored by CID in the home, and verified when they are read.

MLflow finds this by itself once both are installed: an experiment with ``artifact_location="holdfast://team"`` is enough. It is
imported by MLflow, and by nothing else here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from holdfast.config import default_home
from holdfast.errors import InvalidInput, NotFound
from holdfast.registry.ecosystem.artifact_tree import ArtifactTree, split_path
from holdfast.registry.opening import open_registry
from holdfast.storage.filesystem.shared import shared

if TYPE_CHECKING:
    import os

    from holdfast.registry.names import SqliteNames
    from holdfast.storage.content import ContentStore

__all__ = ["HoldfastArtifactRepository"]


@dataclass(frozen=True, slots=True)
class _Registry:
    store: ContentStore
    names: SqliteNames

    @classmethod
    def open(cls, home: Path) -> _Registry:
        return cls(*open_registry(home))

    def close(self) -> None:
        self.names.close()
        self.store.close()


class HoldfastArtifactRepository(ArtifactRepository):
    """MLflow's artifacts below one URI, in the home ``$HOLDFAST_HOME``.

    Args:
        artifact_uri: ``holdfast://team/path``; the first name is any that begins with a letter or digit.
        tracking_uri: MLflow's; not needed here.
        registry_uri: MLflow's; not needed here.

    Raises:
        InvalidInput: It is no such URI.
    """

    scheme: ClassVar[str] = "holdfast"

    def __init__(
        self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
    ) -> None:
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        front, found, path = artifact_uri.partition("://")
        if front != self.scheme or not found or "?" in path or "#" in path:
            raise InvalidInput(f"{artifact_uri!r} is not an artifact location such as holdfast://team/path")
        self._path = "/".join(split_path(path))
        home = default_home()
        self._registry = shared(("registry", str(home)), partial(_Registry.open, home))

    def log_artifact(self, local_file: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        """Store a file in a folder of this location, under its own name.

        Raises:
            NotFound: There is no such file.
        """
        local = Path(local_file)
        if not local.is_file():
            raise NotFound(f"there is no file {local} to log")
        self._tree().put(self._below(artifact_path, local.absolute().name), local)

    def log_artifacts(self, local_dir: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        """Store all files of a folder in a folder of this location, as one change.

        Raises:
            NotFound: There is no such folder.
        """
        local = Path(local_dir)
        if not local.is_dir():
            raise NotFound(f"there is no folder {local} to log")
        self._tree().put(self._below(artifact_path), local)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """What is directly in a folder of this location, with sizes in bytes; nothing for a file."""
        folder = "/".join(part for part in (path or "").split("/") if part not in ("", "."))
        return [
            FileInfo(
                f"{folder}/{found.name}" if folder else found.name,
                found.is_folder,
                None if found.is_folder else found.size,
            )
            for found in self._tree().entries(self._below(folder))
        ]

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Remove a file or folder, with its former states; the bytes go with the next garbage collection."""
        self._tree().delete(self._below(artifact_path))

    def _download_file(self, remote_file_path: str, local_path: str | os.PathLike[str]) -> None:
        """Write one file, verified; MLflow's own methods for files and folders call it."""
        self._tree().get(self._below(remote_file_path), Path(local_path))

    def _tree(self) -> ArtifactTree:
        opened = self._registry.get()
        return ArtifactTree(opened.store, opened.names)

    def _below(self, *paths: str | None) -> str:
        return "/".join((self._path, *filter(None, paths)))
