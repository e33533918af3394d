"""The same rows are the same table, whatever they came from."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.dataset as pds
import pyarrow.feather as pf
import pyarrow.parquet as pq
import pytest
import torch

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.sources import open_sources


class Stream:
    """What polars, DuckDB and others offer: an Arrow stream and nothing else."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


class Samples(torch.utils.data.Dataset[dict[str, object]]):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Streamed(torch.utils.data.IterableDataset[dict[str, object]]):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def scalars(row):
    return {"n": np.int64(row["n"]), "x": np.float64(row["x"]), "s": row["s"], "b": np.bool_(row["b"])}


IN_MEMORY = {
    "table": lambda _, table: table,
    "chunked table": lambda _, table: pa.concat_tables([table.slice(0, 7), table.slice(7)]),
    "batch": lambda _, table: table.combine_chunks().to_batches()[0],
    "reader": lambda _, table: table.to_reader(max_chunksize=100),
    "dataset": lambda _, table: pds.dataset(table),
    "scanner": lambda _, table: pds.dataset(table).scanner(batch_size=99),
    "stream": lambda _, table: Stream(table),
    "views": lambda _, table: Stream(table.set_column(2, "s", table["s"].cast(pa.string_view()))),
    "categories of views": lambda _, table: Stream(
        table.set_column(
            2,
            "s",
            pa.DictionaryArray.from_arrays(
                pa.array(range(2500), pa.uint32()), table["s"].combine_chunks().cast(pa.string_view())
            ),
        )
    ),
    "frame": lambda _, table: table.to_pandas(),
    "frame with an index": lambda _, table: table.to_pandas().set_index(pd.Index(range(5, 2505), name="row")),
    "frame of objects": lambda _, table: table.to_pandas().astype(object),
    "arrays": lambda _, table: {name: table[name].to_numpy() for name in table.column_names},
    "columns of lists": lambda _, table: table.to_pydict(),
    "columns of Arrow arrays": lambda _, table: {name: table[name] for name in table.column_names},
    "columns of series": lambda _, table: dict(table.to_pandas().items()),
    "mixed columns": lambda _, table: {
        "n": np.arange(2500),
        "x": torch.arange(2500).double() / 4,
        **table.select(["s", "b"]).to_pydict(),
    },
    "list": lambda rows, _: rows,
    "tuple": lambda rows, _: tuple(rows),
    "generator": lambda rows, _: (row for row in rows),
    "rows of NumPy scalars": lambda rows, _: [scalars(row) for row in rows],
    "torch map-style": lambda rows, _: Samples(rows),
    "torch iterable": lambda rows, _: Streamed(rows),
}


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_rows_in_memory_are_what_they_are(kind, rows, table, read):
    assert read(IN_MEMORY[kind](rows, table)).equals(table)


def files(rows, table, folder):
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    folder.mkdir()
    pq.write_table(table, folder / "a.parquet", row_group_size=300)
    pq.write_table(table, folder / "compressed.pq", compression="zstd")
    table.to_pandas().to_parquet(folder / "pandas.parquet")
    table.to_pandas().iloc[::-1].iloc[::-1].set_index(pd.Index([*range(1, 2501)][::-1])).to_parquet(
        folder / "indexed.parquet"
    )
    pc.write_csv(table, folder / "a.csv")
    pc.write_csv(table, folder / "a.tsv", pc.WriteOptions(delimiter="\t"))
    table.to_pandas().to_csv(folder / "pandas.csv", index=False)
    (folder / "a.csv.gz").write_bytes(gzip.compress((folder / "a.csv").read_bytes()))
    with pa.output_stream(folder / "a.csv.zst", compression="zstd") as out:
        out.write((folder / "a.csv").read_bytes())
    (folder / "bom.csv").write_bytes(b"\xef\xbb\xbf" + (folder / "a.csv").read_bytes())
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n\n"))
    (folder / "no-newline.ndjson").write_bytes(lines.removesuffix(b"\n"))
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    with pa.output_stream(folder / "a.ndjson.zst", compression="zstd") as out:
        out.write(lines)
    (folder / "lines.json").write_bytes(lines)
    with pa.ipc.new_file(folder / "a.arrow", table.schema) as writer:
        writer.write_table(table, 400)
    with pa.ipc.new_stream(folder / "stream.arrow", table.schema) as writer:
        writer.write_table(table, 400)
    with pa.ipc.new_stream(folder / "a.arrows", table.schema) as writer:
        writer.write_table(table)
    pf.write_feather(table, folder / "a.feather")
    pf.write_feather(table, folder / "plain.feather", compression="uncompressed")
    arrays = {name: table[name].to_numpy() for name in table.column_names}
    arrays["s"] = arrays["s"].astype(np.str_)
    np.savez(folder / "a.npz", **arrays)
    np.savez_compressed(folder / "compressed.npz", **arrays)
    structured = np.zeros(2500, [("n", "<i8"), ("x", ">f8"), ("s", arrays["s"].dtype), ("b", "?")])
    for name, values in arrays.items():
        structured[name] = values
    np.save(folder / "a.npy", structured)
    return sorted(folder.iterdir())


def test_rows_in_files_are_what_they_are(rows, table, read, tmp_path):
    different = [
        path.name for path in files(rows, table, tmp_path / "files") if not read(path=path).equals(table)
    ]
    assert different == []


def test_a_file_is_read_as_the_format_that_is_named(rows, table, read, write):
    path = write("rows.log", "".join(json.dumps(row) + "\n" for row in rows))
    assert read(path=path, format="jsonl").equals(table)
    assert read(str(path), format="NDJSON").equals(table)
    with pytest.raises(InvalidInput, match=r"rows.log does not tell its format.*parquet"):
        open_sources(path=path)
    with pytest.raises(InvalidInput, match=r"'xml' is not known.*parquet, csv"):
        open_sources(path=path, format="xml")


@pytest.mark.parametrize(
    "kind",
    ["table", "dataset", "stream", "frame", "arrays", "list", "torch map-style", "torch iterable"],
)
def test_what_can_be_read_twice_gives_the_same_again(kind, rows, table):
    source = open_sources(IN_MEMORY[kind](rows, table))["train"]
    first, second = (pa.Table.from_batches(source.batches(), source.schema) for _ in range(2))
    assert first.equals(second)
    assert first.num_rows == 2500


@pytest.mark.parametrize("kind", ["reader", "generator"])
def test_what_can_be_read_once_never_seems_empty_the_second_time(kind, rows, table):
    source = open_sources(IN_MEMORY[kind](rows, table))["train"]
    assert sum(batch.num_rows for batch in source.batches()) == 2500
    with pytest.raises(InvalidInput, match="only once"):
        source.batches()


@pytest.mark.parametrize(
    "kind", ["table", "batch", "frame", "arrays", "columns of lists", "list", "torch map-style"]
)
def test_a_known_number_of_rows_is_right(kind, rows, table):
    assert open_sources(IN_MEMORY[kind](rows, table))["train"].rows == 2500


def test_batches_are_bounded_and_copy_nothing_of_a_table():
    table = pa.table({"x": np.arange(5 << 20)})
    batches = list(open_sources(table)["train"].batches())
    assert max(batch.nbytes for batch in batches) <= 8 << 20
    assert batches[0].column(0).buffers()[1].address == table["x"].chunk(0).buffers()[1].address
    assert pa.Table.from_batches(batches).equals(table)
    rows = list(open_sources({"x": b"x" * (1 << 20)} for _ in range(20))["train"].batches())
    assert sum(batch.num_rows for batch in rows) == 20
    assert max(batch.num_rows for batch in rows) <= 8
