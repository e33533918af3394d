"""Paths as splits: one file, a folder of files, or a folder of images with a folder for each class."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.errors import InvalidInput, NotFound
from holdfast.storage.datasets.sources.files import file_errors, format_of, open_files
from holdfast.storage.datasets.sources.image_files import open_images

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from holdfast.storage.datasets.sources.source import BatchSource

__all__ = ["SPLITS", "open_path", "open_split"]

SPLITS = ("train", "test", "validation", "val", "dev")
"""Names of folders, and beginnings of file names, that make splits. A split is called as it is written there."""
_SPLIT_FILE = re.compile(rf"(?i)({'|'.join(SPLITS)})(?:[-_.].*)?")
_SYSTEM = frozenset({"_SUCCESS", "_metadata", "_common_metadata", "__MACOSX", "Thumbs.db", "desktop.ini"})
"""Left in folders by Spark and by desktops; not data, like names that begin with a dot."""


def open_path(path: Path, file_format: str | None = None) -> dict[str, BatchSource] | BatchSource:
    """A path as one source, or as sources by split where its names make splits.

    Raises:
        InvalidInput: The folder is empty, mixes formats, or only a part of it has names of splits.
        NotFound: There is nothing at the path.
        Corrupt: A file is damaged.
    """
    if not path.is_dir():
        return open_split(path, file_format)
    folders, files = _entries(path)
    if folders and not files:
        splits = [folder for folder in folders if folder.name.lower() in SPLITS]
        if len(splits) == len(folders):
            return _split_folders(splits, file_format)
        if splits:
            raise InvalidInput(
                f"{path} has folders of splits ({_names(splits)}) and others "
                f"({_names([f for f in folders if f not in splits])}). Where all are classes of images, give the folder "
                f"as one split: {{'train': {str(path)!r}}}"
            )
    if files and not folders:
        named = {file: _SPLIT_FILE.fullmatch(file.name) for file in files}
        parts: dict[str, list[Path]] = {}
        for file, match in named.items():
            if match is not None:
                parts.setdefault(match[1].lower(), []).append(file)
        without = [file for file, match in named.items() if match is None]
        if parts and without:
            raise InvalidInput(
                f"in {path} some names begin with a split ({', '.join(sorted(parts))}) and some don't "
                f"({_names(without)}): name all, or give the splits as a mapping from split to path"
            )
        if parts:
            return {split: _files_of(parts[split], file_format, path) for split in _ordered(parts)}
    return open_split(path, file_format)


def open_split(path: Path, file_format: str | None = None) -> BatchSource:
    """A file or folder as one source, whatever its names would make of it.

    Raises:
        InvalidInput: The folder is empty, or mixes formats.
        NotFound: There is nothing at the path.
        Corrupt: A file is damaged.
    """
    if not path.is_dir():
        if not path.exists():
            raise NotFound(f"there is no file or folder {path}")
        return open_files([path], format_of(path, file_format))
    folders, files = _entries(path)
    if folders and files:
        raise InvalidInput(
            f"{path} has both folders ({_names(folders)}) and files ({_names(files)}): a dataset is either files, or a "
            "folder for each split or class"
        )
    if files:
        return _files_of(files, file_format, path)
    return _class_folders(folders, sorted(folder.name for folder in folders), file_format, path)


def _split_folders(folders: Sequence[Path], file_format: str | None) -> dict[str, BatchSource]:
    """The sources of folders named like splits. Labels of images mean the same in all of them."""
    names = [folder.name.lower() for folder in folders]
    if len(set(names)) < len(names):
        raise InvalidInput(f"{folders[0].parent} has the same split in several folders: {_names(folders)}")
    by_name = dict(zip(names, folders, strict=True))
    inner = {split: _entries(folder) for split, folder in by_name.items()}
    classes = sorted({child.name for children, _ in inner.values() for child in children})
    sources = {}
    for split in _ordered(by_name):
        children, files = inner[split]
        if children and not files:
            sources[split] = _class_folders(children, classes, file_format, by_name[split])
        else:
            sources[split] = open_split(by_name[split], file_format)
    return sources


def _class_folders(
    folders: Sequence[Path], classes: Sequence[str], file_format: str | None, path: Path
) -> BatchSource:
    """Images, labelled by the folder that they are in."""
    images: list[Path] = []
    labels: list[int] = []
    for folder in sorted(folders, key=lambda folder: folder.name):
        files = _all_files(folder)
        for file in files:
            if format_of(file, file_format) != "image":
                raise InvalidInput(
                    f"{file} is no image: sub-folders are classes of images, or splits ({', '.join(SPLITS)}). Put the "
                    f"files of other formats side by side into one folder"
                )
        images += files
        labels += [classes.index(folder.name)] * len(files)
    if not images:
        raise InvalidInput(f"{path} holds no files: there is nothing to store")
    return open_images(images, labels, classes)


def _files_of(files: Sequence[Path], file_format: str | None, path: Path) -> BatchSource:
    formats: dict[str, list[Path]] = {}
    for file in files:
        formats.setdefault(format_of(file, file_format), []).append(file)
    if len(formats) > 1:
        found = "; ".join(f"{name}: {_names(paths)}" for name, paths in sorted(formats.items()))
        raise InvalidInput(f"{path} has files of several formats ({found}): a split has one")
    return open_files(files, next(iter(formats)))


def _entries(path: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files in a folder, without hidden ones, sorted by name.

    Raises:
        InvalidInput: There is neither.
    """
    with file_errors(path, "folder"):
        found = sorted(
            (child for child in path.iterdir() if _shown(child.name)), key=lambda child: child.name
        )
    if not found:
        raise InvalidInput(f"the folder {path} is empty: there is nothing to store")
    folders = [child for child in found if child.is_dir()]
    return folders, [child for child in found if child not in set(folders)]


def _all_files(folder: Path) -> list[Path]:
    """Every file under a folder, at any depth, sorted by path."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = filter(_shown, folders)
        found += [Path(parent, name) for name in files if _shown(name)]
    return sorted(found, key=lambda file: file.relative_to(folder).parts)


def _shown(name: str) -> bool:
    return not name.startswith(".") and name not in _SYSTEM


def _ordered(splits: Iterable[str]) -> list[str]:
    return sorted(splits, key=SPLITS.index)


def _names(paths: Sequence[Path], limit: int = 8) -> str:
    shown = ", ".join(path.name for path in paths[:limit])
    return shown if len(paths) <= limit else f"{shown} and {len(paths) - limit} more"
