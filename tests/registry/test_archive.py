"""Archives: what comes out of one registry is in the other with the same CIDs, or nothing at all is."""

from __future__ import annotations

import io
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from holdfast.errors import Conflict, Corrupt, HoldfastError, InvalidInput, NotFound
from holdfast.registry import Database, SqliteNames
from holdfast.registry.archive.archive_record import ArchivedName, ArchiveRecord
from holdfast.registry.archive.exporting import export_archive
from holdfast.registry.archive.importing import copy_names, import_archive
from holdfast.registry.proof import SigningKey, SqliteAttestations, read_attestation, sign
from holdfast.registry.records import ConversionRecord, load_record
from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.cid import DAG_CBOR, Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.datasets.dataset import open_dataset, store_dataset
from holdfast.storage.datasets.versions import append
from holdfast.storage.formats import dag_cbor
from holdfast.storage.formats.car import car_blocks, car_frames
from holdfast.storage.local.collector import Collector
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.local.pins import Pins
from tests.registry.lineages import stored_conversion, stored_index, stored_model


class Place(NamedTuple):
    """A registry with its store."""

    store: ContentStore
    names: SqliteNames
    attestations: SqliteAttestations
    database: Database
    blocks: LocalStore

    def state(self):
        """Everything that an import could change."""
        rows = [
            tuple(row)
            for table in ("versions", "aliases", "commits", "attestations")
            for row in self.database.rows(f"SELECT * FROM {table}")
        ]
        return rows, set(self.store.blocks.multihashes())


@pytest.fixture
def place(tmp_path):
    with ExitStack() as stack:

        def make(name: str) -> Place:
            blocks = stack.enter_context(closing(LocalStore(tmp_path / name / "blocks")))
            database = stack.enter_context(closing(Database(tmp_path / name / "registry.db")))
            store = ContentStore(VerifyingStore(blocks, source="the disk"), pins=Pins(blocks))
            return Place(
                store, SqliteNames(database, store), SqliteAttestations(database, store), database, blocks
            )

        yield make


@pytest.fixture
def here(place) -> Place:
    """A registry with two versions of a model, its data of two versions, an index and a conversion."""
    made: Place = place("here")
    store, names = made[:2]
    first = store_dataset(
        store, {"train": {"x": np.arange(5000.0)}, "test": {"x": np.arange(10.0)}}, chunk_size=4096
    )
    second = append(first, {"x": [1.0]}, split="train")
    names.register("dataset", "wine", "1.0.0", first.cid)
    names.register("dataset", "wine", "1.1.0", second.cid)
    old = stored_model(store, second.cid, weights=b"w" * 3_000_000)
    new = stored_model(store, second.cid, seed=1, parent=old)
    names.register("model", "digits", "1.0.0", old)
    names.register("model", "digits", "1.1.0", new)
    names.set_alias("model", "digits", "champion", "1.1.0")
    names.set_tag("model", "digits", "1.1.0", "stage", "production")
    conversion = stored_conversion(store, new, second.cid)
    names.register("conversion", str(new), "1.0.0", conversion)
    names.register("index", "wines", "1.0.0", stored_index(store, new, conversion, first.cid))
    other = stored_model(store, first.cid, seed=9)
    names.register("model", "other", "1.0.0", other)
    key = SigningKey.generate("alice")
    for about in (old, first.cid, (new, other)):
        sign(store, made.attestations, about, key)
    return made


def exported(here: Place, path, **options):
    return export_archive(*here[:3], path, **options)


def taken(there: Place, source, **options):
    return import_archive(*there[:3], source, **options)


def signed(at: Place, *subjects: Cid):
    """Who signed what about these, each checked now."""
    found = {entry.attestation for entry in at.attestations.find(subjects)}
    return {(cid, str(key)) for cid in found for key in read_attestation(at.store, cid).check()}


def what(names: SqliteNames):
    return {(e.kind, e.name, e.version, e.cid, e.aliases) for e in names.entries()}


def test_a_whole_registry_arrives_with_the_same_names_aliases_cids_and_bytes(here, place, tmp_path):
    exported(here, tmp_path / "all.car")
    there = place("there")
    done = taken(there, tmp_path / "all.car")
    assert what(there.names) == what(here.names)
    assert (done.new, len(done.entries), done.kept_aliases) == (7, 7, ())
    for entry in there.names.entries():
        if entry.kind != "dataset":
            for cid, data in here.store.walk(entry.cid):
                assert bytes(there.store.blocks.get(cid)) == bytes(data)
    for ref in ("wine:1.0.0", "wine:1.1.0"):
        cid = here.names.resolve("dataset", ref).cid
        assert open_dataset(there.store, cid).to_arrow("train") == open_dataset(here.store, cid).to_arrow(
            "train"
        )


def test_one_version_of_a_model_brings_its_lineage_and_conversion_and_no_other_name(here, place, tmp_path):
    exported(here, tmp_path / "one.car", refs=["digits@champion"])
    there = place("there")
    taken(there, tmp_path / "one.car")
    assert {(e.kind, e.version) for e in there.names.entries()} == {
        ("model", "1.1.0"),
        ("conversion", "1.0.0"),
    }
    assert there.names.resolve("model", "digits@champion").cid == here.names.resolve("model", "digits").cid
    other = here.names.resolve("model", "other").cid
    assert not there.store.blocks.has(other)


@pytest.mark.parametrize("how_much", [("all", True, True), ("files", True, False), ("records", False, False)])
def test_as_many_bytes_go_along_as_are_asked_for_and_every_record_always(here, place, tmp_path, how_much):
    amount, weights, rows = how_much
    exported(here, tmp_path / "some.car", refs=["digits"], amount=amount)
    there = place("there")
    taken(there, tmp_path / "some.car")
    model = there.names.resolve("model", "digits").cid
    record = there.store.get_record(model)
    data = there.store.get_record(record["run"])["data"]
    manifest = there.store.get_record(data)
    assert there.store.get_record(manifest["parent"])["kind"] == "dataset"
    assert there.store.get_record(record["parent"])["kind"] == "model"
    assert there.store.blocks.has(record["files"]) is weights
    assert there.store.blocks.has(manifest["splits"]["train"]["lists"][0]) is rows
    if rows:
        assert open_dataset(there.store, data).rows_in("train") == 5001


def test_rows_of_what_a_dataset_was_made_from_stay_behind(here, place, tmp_path):
    store = here.store
    parent = store_dataset(store, {"x": np.arange(9000.0)})
    from holdfast.storage.datasets.versions import filter_rows

    child = filter_rows(parent, "x < 3")
    here.names.register("dataset", "few", "1.0.0", child.cid)
    exported(here, tmp_path / "few.car", refs=["few"])
    there = place("there")
    taken(there, tmp_path / "few.car")
    assert there.store.blocks.has(parent.cid)
    assert not any(
        there.store.blocks.has(link) for split in parent.summaries.values() for link in split.lists
    )


def test_the_same_archive_again_changes_nothing(here, place, tmp_path):
    exported(here, tmp_path / "a.car", refs=["digits"])
    there = place("there")
    taken(there, tmp_path / "a.car")
    before = there.state()
    done = taken(there, tmp_path / "a.car")
    assert done.new == 0
    assert there.state() == before


def test_the_same_names_give_the_same_archive(here, tmp_path):
    one = exported(here, tmp_path / "1.car", refs=["digits"])
    two = exported(here, tmp_path / "2.car", refs=["digits"])
    assert one.root == two.root
    assert (tmp_path / "1.car").read_bytes() == (tmp_path / "2.car").read_bytes()


def test_names_can_be_put_under_a_prefix_or_renamed(here, place, tmp_path):
    exported(here, tmp_path / "a.car", refs=["digits", "wine"])
    there = place("there")
    taken(there, tmp_path / "a.car", prefix="partner-", rename={"digits": "theirs"})
    assert {e.name for e in there.names.entries() if e.kind != "conversion"} == {"theirs", "partner-wine"}
    assert there.names.resolve("model", "theirs@champion").version == "1.1.0"
    conversion = next(e for e in there.names.entries("conversion"))
    assert conversion.name == str(there.names.resolve("model", "theirs").cid)
    for wrong in ({"nobody": "x"}, {"digits": "not a model's name"}, {"digits": "a:b"}, {"digits": ""}):
        before = there.state()
        with pytest.raises(InvalidInput):
            taken(there, tmp_path / "a.car", rename=wrong)
        assert there.state() == before


def test_what_is_served_for_a_model_that_is_here_is_not_an_archive_s_to_say(here, place, tmp_path):
    exported(here, tmp_path / "a.car", refs=["digits"])
    partner = place("partner")
    taken(partner, tmp_path / "a.car")
    model = here.names.resolve("model", "digits").cid
    known = here.names.resolve("conversion", str(model)).cid
    theirs = replace(load_record(partner.store, known, ConversionRecord), opset=1).store(partner.store)
    partner.names.register("conversion", str(model), "999.0.0", theirs)
    exported(partner, tmp_path / "b.car")
    done = taken(here, tmp_path / "b.car", prefix="partner-")
    assert here.names.resolve("conversion", str(model)).cid == known
    assert done.left_conversions == 1
    assert theirs not in {entry.cid for entry in done.entries}
    third = place("third")
    assert taken(third, tmp_path / "b.car").left_conversions == 0
    assert third.names.resolve("conversion", str(model)).cid == theirs, "it came with its model"


def test_an_onnx_form_of_another_model_is_refused(here, place, tmp_path):
    model, other = (here.names.resolve("model", name).cid for name in ("digits", "other"))
    known = here.names.resolve("conversion", str(model)).cid
    here.names.register("conversion", str(other), "1.0.0", known)
    exported(here, tmp_path / "a.car")
    there = place("there")
    before = there.state()
    with pytest.raises(Corrupt, match=f"an ONNX form of {other}, but it is one of {model}"):
        taken(there, tmp_path / "a.car")
    assert there.state() == before


def test_an_alias_that_points_elsewhere_here_is_left_alone_and_said(here, place, tmp_path):
    exported(here, tmp_path / "a.car", refs=["digits"])
    there = place("there")
    own = stored_model(there.store, store_dataset(there.store, {"x": [1.0]}).cid)
    there.names.register("model", "digits", "9.0.0", own)
    there.names.set_alias("model", "digits", "champion", "9.0.0")
    done = taken(there, tmp_path / "a.car")
    assert done.kept_aliases == ("digits@champion",)
    assert there.names.resolve("model", "digits@champion").cid == own


def test_a_version_that_is_something_else_here_stops_the_import_before_a_block_is_stored(
    here, place, tmp_path
):
    exported(here, tmp_path / "a.car")
    there = place("there")
    there.names.register(
        "model", "other", "1.0.0", stored_model(there.store, store_dataset(there.store, {"x": [1.0]}).cid)
    )
    before = there.state()
    with pytest.raises(Conflict, match=r"other:1\.0\.0") as caught:
        taken(there, tmp_path / "a.car")
    assert str(here.names.resolve("model", "other").cid) in str(caught.value)
    assert there.state() == before


def test_a_version_that_was_removed_here_as_something_else_leaves_no_name_behind(here, place, tmp_path):
    exported(here, tmp_path / "a.car")
    there = place("there")
    there.names.register(
        "model", "other", "1.0.0", stored_model(there.store, store_dataset(there.store, {"x": [1.0]}).cid)
    )
    there.names.unregister("model", "other")
    with pytest.raises(Conflict, match="removed"):
        taken(there, tmp_path / "a.car")
    assert there.names.entries() == []


# ------------------------------------------------------------------------------------------ broken archives


def pairs_of(path) -> tuple[Cid, list[tuple[Cid, bytes]]]:
    with path.open("rb") as file:
        reader = car_blocks(file)
        return reader.roots[0], list(reader)


def written(root, pairs) -> io.BytesIO:
    return io.BytesIO(b"".join(car_frames([root], pairs)))


@pytest.fixture
def archive(here, tmp_path):
    exported(here, tmp_path / "small.car", refs=["digits:1.0.0"])
    return pairs_of(tmp_path / "small.car")


@pytest.mark.parametrize("amount", ["all", "files", "records"])
def test_no_block_can_be_left_out_unnoticed(here, place, tmp_path, amount):
    exported(here, tmp_path / "x.car", refs=["digits:1.0.0"], amount=amount)
    root, pairs = pairs_of(tmp_path / "x.car")
    assert len(pairs) > 8
    there = place("there")
    before = there.state()
    for number, (left_out, _) in enumerate(pairs):
        with pytest.raises((NotFound, Corrupt), match=str(left_out)):
            taken(there, written(root, pairs[:number] + pairs[number + 1 :]))
        assert there.state() == before


def test_a_foreign_block_is_refused_wherever_it_stands(place, archive):
    root, pairs = archive
    there = place("there")
    before = there.state()
    foreign = (Cid.of(b"foreign"), b"foreign")
    for at in (1, len(pairs) // 2, len(pairs)):
        with pytest.raises(Corrupt, match="does not lead to"):
            taken(there, written(root, [*pairs[:at], foreign, *pairs[at:]]))
        assert there.state() == before
    with pytest.raises(Corrupt, match="does not begin with its root"):
        taken(there, written(root, [foreign, *pairs]))
    assert there.state() == before


def test_a_flipped_byte_anywhere_is_refused(place, archive):
    root, pairs = archive
    data = bytearray(written(root, pairs).getvalue())
    there = place("there")
    before = there.state()
    for at in range(0, len(data), max(1, len(data) // 40)):
        data[at] ^= 1
        with pytest.raises(HoldfastError):
            taken(there, io.BytesIO(bytes(data)))
        data[at] ^= 1
        assert there.state() == before


def test_an_archive_that_is_cut_off_anywhere_is_refused(place, archive):
    whole = written(*archive).getvalue()
    there = place("there")
    before = there.state()
    for part in range(1, 40):
        with pytest.raises(HoldfastError):
            taken(there, io.BytesIO(whole[: len(whole) * part // 40]))
        assert there.state() == before


def test_a_name_that_is_of_another_kind_than_it_says_is_refused(place, archive):
    _, pairs = archive
    blocks = dict(pairs)
    model = next(c for c, d in pairs if c.codec == DAG_CBOR and dag_cbor.decode(d).get("kind") == "model")
    below = [(cid, data) for cid, data in pairs if b"archive" not in data[:40]]
    there = place("there")
    before = there.state()
    for kind in ("dataset", "index"):
        forged = ArchiveRecord(
            amount="all",
            names=(ArchivedName(kind=kind, name="x", version="1.0.0", aliases=(), cid=model),),
            commits=(),
        ).blocks()
        with pytest.raises((Corrupt, NotFound)):
            taken(there, written(forged[0][0], [*forged, *below]))
        assert there.state() == before
    assert blocks[model]


def test_what_is_no_archive_says_so(place, archive, tmp_path):
    there = place("there")
    before = there.state()
    plain = Cid.of(b"plain")
    record = dag_cbor.encode({"kind": "model"})
    for broken in (
        written(plain, [(plain, b"plain")]),
        written(Cid.of(record, DAG_CBOR), [(Cid.of(record, DAG_CBOR), record)]),
        io.BytesIO(b"".join(car_frames([], []))),
        io.BytesIO(b"".join(car_frames([plain, archive[0]], []))),
    ):
        with pytest.raises(InvalidInput, match="archive"):
            taken(there, broken)
    for garbage in (b"", b"\x00", b"no car at all"):
        with pytest.raises(Corrupt):
            taken(there, io.BytesIO(garbage))
    with pytest.raises(NotFound, match="no file"):
        taken(there, tmp_path / "nothing.car")
    newer = dag_cbor.encode({"kind": "archive", "format": 2, "bytes": "all", "names": [], "commits": []})
    with pytest.raises(HoldfastError, match="format"):
        taken(there, written(Cid.of(newer, DAG_CBOR), [(Cid.of(newer, DAG_CBOR), newer)]))
    assert there.state() == before


def test_an_export_that_can_not_be_finished_leaves_no_file(here, tmp_path):
    body = here.store.get_record(here.names.resolve("model", "digits").cid)
    broken = here.store.put_record(body | {"files": Cid.of(b"nobody has this", 0x70)})
    here.names.register("model", "broken", "1.0.0", broken)
    with pytest.raises(NotFound):
        exported(here, tmp_path / "x.car", refs=["broken"])
    with pytest.raises(NotFound, match=r"there is .*model digits"):
        exported(here, tmp_path / "x.car", refs=["digit"])
    with pytest.raises(InvalidInput, match="records"):
        exported(here, tmp_path / "x.car", amount="most")
    with pytest.raises(NotFound, match="no folder"):
        exported(here, tmp_path / "no" / "x.car")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []
    (tmp_path / "x.car").write_bytes(b"mine")
    with pytest.raises(Conflict):
        exported(here, tmp_path / "x.car")
    assert (tmp_path / "x.car").read_bytes() == b"mine"


def test_names_go_from_registry_to_registry_with_no_file_between(here, place):
    there = place("there")
    done = copy_names(here[:3], there[:3], refs=["digits@champion", "wines"], prefix="copy-")
    assert {e.name for e in there.names.entries() if e.kind != "conversion"} == {"copy-digits", "copy-wines"}
    assert done.new == 3
    assert copy_names(here[:3], there[:3], refs=["digits@champion", "wines"], prefix="copy-").new == 0


def test_tags_and_what_a_model_is_found_by_arrive_too_and_own_tags_stay(here, place, tmp_path):
    exported(here, tmp_path / "a.car", refs=["digits"])
    there = place("there")
    taken(there, tmp_path / "a.car")
    assert there.names.resolve("model", "digits:1.1.0").tags == {"stage": "production"}
    data = here.store.get_record(here.names.resolve("model", "digits").cid)["data"][0]
    found = there.names.search("model", dataset=data, metric={"test_accuracy": (">=", 0.9)})
    assert {entry.version for entry in found} == {"1.0.0", "1.1.0"}
    there.names.set_tag("model", "digits", "1.1.0", "stage", "mine")
    taken(there, tmp_path / "a.car")
    assert there.names.resolve("model", "digits:1.1.0").tags == {"stage": "mine"}


def test_the_changes_of_the_names_go_along_as_evidence_and_are_kept(here, place, tmp_path):
    exported(here, tmp_path / "a.car", refs=["digits"])
    there = place("there")
    taken(there, tmp_path / "a.car")
    own = here.names.history("model", "digits")
    assert len(own) == 4
    for commit in own:
        assert there.store.get_record(commit.cid) == here.store.get_record(commit.cid)


def test_signatures_on_what_is_in_an_archive_go_along_and_are_kept(here, place, tmp_path):
    old, new, other = (here.names.resolve("model", ref).cid for ref in ("digits:1.0.0", "digits", "other"))
    data = here.names.resolve("dataset", "wine:1.0.0").cid
    there = place("there")
    assert exported(here, tmp_path / "a.car", refs=["digits"]).attestations == 2
    assert taken(there, tmp_path / "a.car").attestations == 2
    assert signed(there, old) == signed(here, old) != set()
    assert signed(there, data) == signed(here, data) != set()  # of an ancestor of what was named
    assert signed(there, new) == set()  # about something else, too, which stayed behind
    Collector(there.blocks, Pins(there.blocks), grace_s=0.0).collect()
    assert signed(there, old) == signed(here, old)
    whole = exported(here, tmp_path / "whole.car")
    assert taken(there, tmp_path / "whole.car").attestations == whole.attestations == 3
    assert signed(there, new, other) == signed(here, new, other) != set()


def test_a_forged_attestation_stops_the_import(here, place, archive):
    root, pairs = archive
    records = {cid: dag_cbor.decode(data) for cid, data in pairs if cid.codec == DAG_CBOR}
    good = ArchiveRecord.of_records(root, records)
    (attestation,) = [cid for cid in good.attestations if records[cid]["subjects"] == [good.names[0].cid]]
    own = {cid for cid, _ in good.blocks()}
    there = place("there")
    before = there.state()

    def with_attestation(record):
        data = dag_cbor.encode(record)
        forged = Cid.of(data, DAG_CBOR)
        parts = replace(good, attestations=(forged,)).blocks()
        rest = [pair for pair in pairs if pair[0] not in own and pair[0] not in good.attestations]
        return written(parts[0][0], [*parts, (forged, data), *rest])

    record = records[attestation]
    envelope = record["envelope"]
    broken = {**envelope["signatures"][0], "sig": bytes(64)}
    elsewhere = sign(
        here.store, here.attestations, here.names.resolve("model", "other").cid, SigningKey.generate("alice")
    )
    for forged, words in (
        ({**record, "envelope": {**envelope, "signatures": [broken]}}, "can't be kept"),
        ({**record, "envelope": {**envelope, "signatures": []}}, "attestation"),
        ({**record, "subjects": [root]}, "what was signed is about"),
        ({"kind": "note"}, "is note"),
        (here.store.get_record(elsewhere), "which is not in the archive"),
    ):
        with pytest.raises(Corrupt, match=words):
            taken(there, with_attestation(forged))
        assert there.state() == before
    assert taken(there, with_attestation(record)).attestations == 1


def test_thousands_of_names_outgrow_no_block(here):
    cid = here.names.resolve("model", "digits").cid
    names = tuple(
        ArchivedName(kind="model", name=f"{'n' * 100}-{n}", version="1.0.0", aliases=("a",), cid=cid)
        for n in range(9000)
    )
    archive = ArchiveRecord(amount="all", names=names, commits=(cid,) * 5000)
    blocks = archive.blocks()
    assert max(len(data) for _, data in blocks) < 1 << 20
    records = {c: dag_cbor.decode(data) for c, data in blocks}
    assert ArchiveRecord.of_records(blocks[0][0], records) == archive
