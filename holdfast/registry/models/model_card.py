"""Model cards in Hugging Face's format: what the records say about a model, for people and for the Hub.

A card holds facts that are recorded, with the CIDs that they come from, and nothing else: what nobody recorded is left out. A card
that was stored with the model is given back byte for byte instead.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import Conflict, InvalidInput, NotFound, disk_errors
from holdfast.registry.records import CodeRecord, ModelRecord, RunRecord, load_record
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from holdfast.registry.names import Names
    from holdfast.registry.names.names import NameEntry
    from holdfast.storage.content import ContentStore

__all__ = ["card_of", "export_folder", "read_card"]

README = "README.md"
_FRONT = re.compile(r"\s*---[ \t]*(?:\r\n|\r|\n)(.*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\r|\n|\Z)", re.DOTALL)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$])")
_LICENCES = frozenset(
    [
        "afl-3.0",
        "agpl-3.0",
        "apache-2.0",
        "artistic-2.0",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsd-3-clause-clear",
        "bsl-1.0",
        "cc-by-2.0",
        "cc-by-2.5",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-nc-2.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nc-nd-3.0",
        "cc-by-nc-nd-4.0",
        "cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "cc-by-nd-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc0-1.0",
        "ecl-2.0",
        "epl-1.0",
        "epl-2.0",
        "eupl-1.1",
        "eupl-1.2",
        "gpl-2.0",
        "gpl-3.0",
        "isc",
        "lgpl-2.1",
        "lgpl-3.0",
        "mit",
        "mpl-2.0",
        "ms-pl",
        "ncsa",
        "ofl-1.1",
        "osl-3.0",
        "postgresql",
        "unlicense",
        "wtfpl",
        "zlib",
    ]
)
"""Licences that the Hub knows by their SPDX names, in small letters."""
_SHOWN = 100
_NO_RESULTS = {"epoch", "step"}
"""Numbers of the last report that say when it was made, and not how good the model is."""
_UNKNOWN_TASK = "other"
"""The Hub's name for a task that is none of its own; results must have one."""


def card_of(store: ContentStore, names: Names, ref: str | Cid) -> str:
    """The card of a model: the one that was stored with it, else the ``README.md`` among its files, else one made of its records.

    Args:
        store: Has the manifest, the run's record and the datasets' manifests. What is missing of the latter two is left out.
        names: Give the names of the model, its datasets and its parent.
        ref: A CID, name, ``name:1.0.0`` or ``name@alias``. The card of a name says that name; of a CID, its oldest one.

    Raises:
        InvalidInput: It is no model.
        NotFound: There is no such model, or nobody has its manifest or its files.
    """
    cid, called = names.meant("model", ref)
    return _card(store, names, cid, load_record(store, cid, ModelRecord), called).decode(errors="replace")


def read_card(text: str) -> dict[str, Any]:
    """The front matter of a card; empty where it has none.

    Raises:
        InvalidInput: What stands between the two lines ``---`` is not YAML with fields.
    """
    import yaml

    match = _FRONT.match(text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}"))
    if match is None:
        return {}
    try:
        found = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidInput(f"the card's front matter is not YAML: {error}") from error
    if not isinstance(found, dict | None):
        raise InvalidInput(f"the card's front matter has no fields: {match[1]!r:.100}")
    return found or {}


def export_folder(
    store: ContentStore, names: Names, ref: str | Cid, destination: str | os.PathLike[str]
) -> int:
    """Write a model as a folder for the Hub: its files as they are, and ``README.md``, which is its card; how many bytes.

    A card that was stored with the model takes the place of a ``README.md`` among the files. The folder appears under its final
    name when it is complete.

    Args:
        store: Has the model.
        names: As for :func:`card_of`.
        ref: A CID, name, ``name:1.0.0`` or ``name@alias``.
        destination: A path that does not exist.

    Raises:
        Conflict: ``destination`` exists.
        NotFound: There is no such model, or a block is missing.
    """
    cid, called = names.meant("model", ref)
    record = load_record(store, cid, ModelRecord)
    card = _card(store, names, cid, record, called)
    target = Path(destination)
    if target.exists() or target.is_symlink():
        raise Conflict(f"{target} exists: choose another name, or remove it first")
    partial = target.with_name(f".holdfast-{secrets.token_hex(8)}.part")
    try:
        store.get(record.files, partial)
        with disk_errors(target.parent):
            (partial / README).unlink(missing_ok=True)  # it may be a link
            (partial / README).write_bytes(card)
            partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file() and not path.is_symlink())


def _card(
    store: ContentStore, names: Names, cid: Cid, record: ModelRecord, called: NameEntry | None
) -> bytes:
    given = _given(store, record)
    if given is not None:
        return given
    facts = _Facts(store, names, cid, record, called)
    return f"---\n{_yaml(facts.front_matter())}---\n\n{facts.body()}".encode()


def _given(store: ContentStore, record: ModelRecord) -> bytes | None:
    """The card that somebody wrote."""
    if record.card is not None:
        return bytes(store.open(record.card))
    found = next((entry.cid for entry in store.ls(record.files) if entry.name == README), None)
    return bytes(store.open(found)) if found is not None and store.stat(found).kind == "file" else None


class _Facts:
    """What is recorded about one model."""

    def __init__(
        self, store: ContentStore, names: Names, cid: Cid, record: ModelRecord, called: NameEntry | None
    ) -> None:
        self._store = store
        self._cid = cid
        self._asked_for = called
        self._record = record
        self._names = names
        self._run = self._loaded(record.run, RunRecord)
        data = dict.fromkeys((*record.data, *((self._run.data,) if self._run else ())))
        self._data = tuple(data)

    def _loaded(self, cid: Cid | None, kind: Any) -> Any:
        try:
            return None if cid is None else load_record(self._store, cid, kind)
        except NotFound:
            return None

    def _name(self, cid: Cid) -> str | None:
        found = (self._asked_for if cid == self._cid else None) or self._names.name_of(cid)
        return f"{found.name}:{found.version}" if found else None

    def _called(self, cid: Cid) -> str:
        return self._name(cid) or str(cid)

    def _metrics(self) -> dict[str, float]:
        return {
            str(name): value
            for name, value in self._record.metrics.items()
            if isinstance(value, (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
            and name not in _NO_RESULTS
        }

    # ---------------------------------------------------------------------------------------- front matter

    def front_matter(self) -> dict[str, Any]:
        """The fields of the Hub, and the CIDs under ``holdfast``."""
        record, about = self._record, self._record.metadata
        tags = about.get("tags")
        own = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
        fields: dict[str, Any] = {
            **_licence(record.licence),
            "library_name": record.framework if record.framework != "pickle" else None,
            "pipeline_tag": _text_or_none(about.get("pipeline_tag")),
            "language": _text_or_none(about.get("language")),
            "tags": list(
                dict.fromkeys(tag for tag in ("holdfast", record.format, record.model_type, *own) if tag)
            ),
            # By CID: on the Hub, a name from here would mean somebody else's.
            "datasets": [str(cid) for cid in self._data],
            "base_model": str(record.parent) if record.parent else None,
            "metrics": list(self._metrics()),
            "model-index": self._results(),
            "holdfast": {
                "model": str(self._cid),
                "files": str(record.files),
                "run": str(record.run) if record.run else None,
                "data": [str(cid) for cid in self._data],
                "parent": str(record.parent) if record.parent else None,
            },
        }
        fields["holdfast"] = {key: value for key, value in fields["holdfast"].items() if value}
        return {key: value for key, value in fields.items() if value}

    def _results(self) -> list[dict[str, Any]]:
        """The metrics as results; none where it is not recorded which dataset they belong to."""
        about = self._run.data if self._run else self._data[0] if len(self._data) == 1 else None
        metrics = self._metrics()
        if about is None or not metrics:
            return []
        task = _text_or_none(self._record.metadata.get("pipeline_tag")) or _UNKNOWN_TASK
        result = {
            "task": {"type": task},
            "dataset": {"name": self._called(about), "type": str(about), "revision": str(about)},
            "metrics": [{"type": name, "name": name, "value": value} for name, value in metrics.items()],
        }
        return [{"name": self._called(self._cid), "results": [result]}]

    # ------------------------------------------------------------------------------------------------ body

    def body(self) -> str:
        """The text for people."""
        sections = [
            f"# {_escape(self._called(self._cid))}\n\n{_table(('', ''), self._summary())}",
            self._signature(),
            self._measured(),
            self._learned(),
            self._trained(),
            self._listed(),
            _section("Metadata", _json(self._record.metadata) if self._record.metadata else ""),
            self._verifying(),
        ]
        return "\n\n".join(section for section in sections if section) + "\n"

    def _summary(self) -> Iterator[tuple[str, str]]:
        record = self._record
        yield "Model", f"`{self._cid}`"
        yield "Framework, format", f"{_escape(record.framework)}, {_escape(record.format)}"
        if record.model_type:
            yield "Type", _escape(record.model_type)
        if record.licence:
            yield "Licence", _escape(record.licence)
        if record.parent:
            yield "Made from", self._linked(record.parent)
        if (code := self._loaded(record.code, CodeRecord)) is not None:
            yield "Class", f"{_escape(code.entry)} `{record.code}`"

    def _linked(self, cid: Cid) -> str:
        name = self._name(cid)
        return f"{_escape(name)} `{cid}`" if name is not None else f"`{cid}`"

    def _signature(self) -> str:
        rows = [
            (
                way,
                _escape(str(each.get("name", ""))),
                _escape(str(each.get("dtype", ""))),
                _escape(str(each.get("shape", ""))),
            )
            for way, sides in (("in", self._record.inputs), ("out", self._record.outputs))
            for each in sides
        ]
        return _section(
            "Inputs and outputs", _table(("", "name", "type", "shape of one sample"), rows) if rows else ""
        )

    def _measured(self) -> str:
        rows = [(_escape(str(name)), _escape(str(value))) for name, value in self._record.metrics.items()]
        return _section("Metrics", _table(("metric", "value"), rows) if rows else "")

    def _learned(self) -> str:
        rows = [(self._linked(cid), self._rows_of(cid)) for cid in self._data]
        return _section("Data", _table(("dataset", "rows"), rows) if rows else "")

    def _rows_of(self, cid: Cid) -> str:
        from holdfast.storage.datasets.manifest import Manifest

        try:
            splits = Manifest.from_plain(cid, self._store.get_record(cid)).splits
        except (NotFound, InvalidInput):
            return ""  # it is elsewhere, or of a format that this release does not read
        return ", ".join(f"{_escape(name)} {split.rows}" for name, split in splits.items())

    def _trained(self) -> str:
        run = self._run
        if run is None:
            return _section("Run", f"`{self._record.run}`" if self._record.run else "")
        threads = run.threads_per_worker
        rows = [
            ("Run", f"`{self._record.run}`"),
            ("Code", f"`{run.code}`"),
            ("Environment", f"`{run.environment}`"),
            ("Seed", str(run.seed)),
            ("Workers", f"{run.workers}, with {threads} thread{'s' * (threads != 1)} each"),
        ]
        return _section("Run", f"{_table(('', ''), rows)}\n\n{_json(run.config)}")

    def _listed(self) -> str:
        entries = self._store.ls(self._record.files)
        rows = []
        for entry in entries[:_SHOWN]:
            found = self._store.stat(entry.cid)
            name = f"{entry.name}/" if found.kind == "directory" else entry.name
            rows.append((_escape(name), f"{found.size:,}", f"`{entry.cid}`"))
        more = f"\n\nand {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
        return _section(
            "Files",
            f"`{self._record.files}`\n\n{_table(('file', 'bytes', 'CID'), rows)}{more}" if rows else "",
        )

    def _verifying(self) -> str:
        return _section(
            "How to verify",
            "Every CID above is the hash of what it names. This hashes the model, its files and all that it was made from again:\n\n"
            f"```console\nholdfast verify {self._cid}\n```\n\n"
            "and this writes its files, each block verified:\n\n"
            f"```console\nholdfast get {self._record.files} -o model\n```",
        )


def _licence(licence: str) -> dict[str, str]:
    small = licence.lower().removesuffix("-only").removesuffix("-or-later")
    if small in _LICENCES:
        return {"license": small}
    name = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-.")
    return {"license": "other", **({"license_name": name} if name else {})} if licence else {}


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _escape(text: str) -> str:
    """``text`` as it is, in one line of Markdown and in a table's cell."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _json(value: Mapping[str, Any]) -> str:
    def plain(other: Any) -> Any:
        return {"/": str(other)} if isinstance(other, Cid) else other.hex()

    # Of JSON no line begins with the fence, whatever is in the strings.
    return f"```json\n{json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=plain)}\n```"


def _yaml(fields: Mapping[str, Any]) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no type information
        """Writes texts with unusual characters between double quotes: the other styles lose some line ends."""

    def text(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar(
            "tag:yaml.org,2002:str", value, style=None if value.isprintable() else '"'
        )

    Dumper.add_representer(str, text)
    dumped = yaml.dump(dict(fields), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=math.inf)
    return str(dumped)
