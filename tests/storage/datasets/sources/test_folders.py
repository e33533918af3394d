"""Folders and mappings as splits: what is taken, in which order, and what is too ambiguous to be taken."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as pf
import pyarrow.parquet as pq
import pytest
import torch

from holdfast.errors import Corrupt, InvalidInput
from holdfast.storage.datasets.sources import open_sources


@pytest.fixture
def parquet(tmp_path):
    """Writes a Parquet file with the column ``n`` under the test's folder, and gives that folder."""

    def parquet(name, *values):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"n": pa.array(values, pa.int64())}), path)
        return tmp_path / "data"

    return parquet


def numbers(splits):
    return {split: table["n"].to_pylist() for split, table in splits.items()}


def test_files_of_a_folder_follow_each_other_by_name_and_hidden_ones_are_left_out(
    parquet, write, read_splits
):
    for name, value in (
        ("part-10.parquet", 3),
        ("part-1.parquet", 1),
        ("part-02.parquet", 0),
        ("part-2.pq", 4),
    ):
        folder = parquet(name, value)
    for hidden in (".part-0.parquet.crc", ".DS_Store", "_SUCCESS", "Thumbs.db"):
        write(hidden, "not data")
    assert numbers(read_splits(path=folder)) == {"train": [0, 1, 3, 4]}


def test_sub_folders_and_file_names_make_splits(parquet, read_splits):
    parquet("folders/train/b.parquet", 2)
    parquet("folders/train/a.parquet", 1)
    parquet("folders/Validation/x.parquet", 3)
    folder = parquet("folders/test/x.parquet", 4)
    assert numbers(read_splits(path=folder / "folders")) == {"train": [1, 2], "test": [4], "validation": [3]}
    parquet("names/dev.parquet", 9)
    parquet("names/val_0.parquet", 8)
    parquet("names/train-00001-of-00002.parquet", 2)
    folder = parquet("names/train-00000-of-00002.parquet", 1)
    assert numbers(read_splits(path=folder / "names")) == {"train": [1, 2], "val": [8], "dev": [9]}


def test_a_name_that_only_begins_like_a_split_is_none(parquet, read_splits):
    parquet("training.parquet", 1)
    assert numbers(read_splits(path=parquet("tests.parquet", 2))) == {"train": [2, 1]}


def test_one_part_of_a_folder_is_never_left_out_silently(parquet, write):
    folder = parquet("train-0.parquet", 1)
    parquet("more.parquet", 2)
    with pytest.raises(InvalidInput, match=r"begin with a split \(train\) and some don't \(more.parquet\)"):
        open_sources(path=folder)
    write("sub/a.csv", "a\n1\n")
    with pytest.raises(
        InvalidInput, match=r"both folders \(sub\) and files \(more.parquet, train-0.parquet\)"
    ):
        open_sources(path=folder)
    for name in ("train", "extra"):
        parquet(f"mixed/{name}/a.parquet", 1)
    with pytest.raises(InvalidInput, match=r"folders of splits \(train\) and others \(extra\)"):
        open_sources(path=folder / "mixed")
    with pytest.raises(
        InvalidInput, match=r"a\.parquet is no image: sub-folders are classes of images, or splits"
    ):
        open_sources({"train": folder / "mixed"})


def test_mixed_formats_are_listed(parquet, write):
    parquet("b.parquet", 1)
    folder = write("a.csv", "n\n1\n").parent
    with pytest.raises(InvalidInput, match=r"several formats \(csv: a.csv; parquet: b.parquet\)"):
        open_sources(path=folder)
    write("README.md", "# Data")
    with pytest.raises(InvalidInput, match=r"README.md does not tell its format.*csv \(.csv"):
        open_sources(path=folder)


def test_an_empty_folder_is_no_dataset(tmp_path, write):
    with pytest.raises(InvalidInput, match="is empty"):
        open_sources(path=write(".hidden", "x").parent)
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    with pytest.raises(InvalidInput, match="holds no files"):
        open_sources(path=tmp_path / "classes")


@pytest.mark.parametrize("ending", ["parquet", "arrow", "npy", "npz"])
def test_a_file_with_other_columns_than_the_first_is_named_before_anything_is_read(tmp_path, ending):
    def write(name, values):
        path = tmp_path / f"{name}.{ending}"
        table = pa.table({"n": values})
        if ending == "parquet":
            pq.write_table(table, path)
        elif ending == "arrow":
            pf.write_feather(table, path)
        elif ending == "npy":
            np.save(path, values)
        else:
            np.savez(path, n=values)

    write("a", np.arange(3))
    write("b", np.arange(3) / 2)
    with pytest.raises(
        InvalidInput, match=rf"b\.{ending} has the column .* as double, .*a\.{ending} as int64"
    ):
        open_sources(path=tmp_path)


def test_files_that_differ_in_layout_only_are_one_split(tmp_path, read):
    pq.write_table(pa.table({"s": pa.array(["a"], pa.string()), "n": [1]}), tmp_path / "0.parquet")
    strict = pa.schema([pa.field("n", pa.int64(), nullable=False), ("s", pa.large_string())])
    pq.write_table(pa.table({"n": [2], "s": ["b"]}, schema=strict), tmp_path / "1.parquet")
    pq.write_table(pa.table({"s": pa.array(["c"]).dictionary_encode(), "n": [3]}), tmp_path / "2.parquet")
    assert read(path=tmp_path).to_pylist() == [{"s": "a", "n": 1}, {"s": "b", "n": 2}, {"s": "c", "n": 3}]


def test_other_column_names_are_listed(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": [1]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"a": [1], "c": [1]}), tmp_path / "1.parquet")
    with pytest.raises(
        InvalidInput,
        match=r"1\.parquet has other columns than .*0\.parquet: it lacks \['b'\] and has \['c'\]",
    ):
        open_sources(path=tmp_path)


@pytest.mark.parametrize("cut", [0, 3, 100, -20])
@pytest.mark.parametrize("ending", ["parquet", "arrow", "arrows", "feather", "npy", "npz"])
def test_a_file_that_was_cut_is_never_read_as_a_whole_one(tmp_path, ending, cut):
    path = tmp_path / f"a.{ending}"
    table = pa.table({"n": np.arange(10_000)})
    if ending == "parquet":
        pq.write_table(table, path)
    elif ending == "arrows":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, 1000)
    elif ending in {"arrow", "feather"}:
        pf.write_feather(table, path)
    elif ending == "npy":
        np.save(path, np.arange(10_000))
    else:
        np.savez_compressed(path, n=np.arange(10_000))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(Corrupt, match=rf"a\.{ending} is damaged, ends too early or is not of the format"):
        [batch for source in open_sources(path=path).values() for batch in source.batches()]


def test_flipped_bytes_of_a_compressed_archive_are_found(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, n=np.random.default_rng(0).integers(0, 9, 100_000))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(Corrupt, match=r"a\.npz is damaged"):
        list(open_sources(path=path)["train"].batches())


def test_a_mapping_gives_each_split_a_kind_of_its_own(parquet, read_splits):
    folder = parquet("a.parquet", 1, 2)
    splits = read_splits(
        {
            "train": pd.DataFrame({"n": [3]}),
            "test": folder,
            "more": str(folder / "a.parquet"),
            "rows": [{"n": 5}],
            "arrays": {"n": np.array([6])},
            "table": pa.table({"n": [7]}),
            "generated": ({"n": i} for i in range(2)),
        }
    )
    assert numbers(splits) == {
        "train": [3],
        "test": [1, 2],
        "more": [1, 2],
        "rows": [5],
        "arrays": [6],
        "table": [7],
        "generated": [0, 1],
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": np.zeros((3, 2)), "test": np.zeros((2, 2))}, "columns or splits"),
        ({"train": torch.zeros(3)}, "columns or splits"),
        ({"train": np.zeros(3), "test": [{"a": 1}]}, "'train' are columns and the others are not"),
        ({"a": [1, 2], "b": 3}, "'a' are columns"),
        ({"train": {"train": [{"a": 1}], "more": [{"a": 1}]}}, "split 'train' has splits itself"),
        ({1: [{"a": 1}]}, "no name of a split"),
        ({"train": 5}, "nothing that holds rows"),
        ({"a": [1, 2], "b": [1]}, "rows: a 2, b 1"),
        ({"a": np.arange(2), "b": np.arange(3)}, "differ in their number of rows: a 2, b 3"),
        ({"a": [1, "x"]}, r"row 1 .*column 'a': 'x'"),
    ],
)
def test_a_mapping_that_could_mean_two_things_is_refused(data, message):
    with pytest.raises(InvalidInput, match=message):
        open_sources(data)


def test_splits_may_be_of_structured_arrays():
    fields = np.zeros(3, [("a", "i4"), ("b", "f4", (2,))])
    source = open_sources({"train": fields, "test": fields[:1]})["test"]
    assert source.schema == pa.schema([("a", pa.int32()), ("b", pa.fixed_shape_tensor(pa.float32(), [2]))])
