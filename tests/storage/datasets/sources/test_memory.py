"""Reading much takes no more memory than reading little: real files, a process for each, its peak as the system counts it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.feather as pf
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow

FILE_MB = 400
MORE_MB = 300
"""What reading may add to a process that has the libraries loaded: buffers and read-ahead, and no more for more rows."""

READ = """
import sys, threading
import pyarrow as pa, pyarrow.csv, pyarrow.dataset, pyarrow.json, pyarrow.parquet, numpy
from holdfast.storage.datasets.sources import open_sources

def anonymous():
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["RssAnon"].split()[0]) / 1024  # what files are mapped to is not the process's own

def rows():
    text = "x" * 1000
    for i in range(300_000):
        yield {"i": i, "s": text}

before = peak = anonymous()
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
data = {"data": rows()} if sys.argv[1] == "generator" else {"path": sys.argv[1]}
total = sum(batch.num_rows for source in open_sources(**data).values() for batch in source.batches())
done.set()
watcher.join()
print(total, max(peak, anonymous()) - before)
"""


def read_apart(argument) -> tuple[int, float]:
    done = subprocess.run(
        [sys.executable, "-c", READ, str(argument)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows, more_mb = done.stdout.split()
    return int(rows), float(more_mb)


def csv(path):
    row = b"12345,0.25," + b"x" * 981 + b',"a\nb"\n'
    path.write_bytes(b"i,x,s,t\n" + row * (FILE_MB * 1000))


def jsonl(path):
    row = b'{"i": 12345, "x": 0.25, "s": "' + b"x" * 968 + b'"}\n'
    path.write_bytes(row * (FILE_MB * 1000))


def parquet(path):
    table = pa.table(
        {
            "x": np.random.default_rng(0).random((FILE_MB << 20) // 8),
        }
    )
    pq.write_table(table, path, row_group_size=len(table), use_dictionary=False)


def feather(path):
    pf.write_feather(
        pa.table({"x": np.arange((FILE_MB << 20) // 8)}), path, compression="uncompressed", chunksize=1 << 30
    )


def npy(path):
    np.save(path, np.zeros((FILE_MB, 1 << 17)))


def npz(path):
    np.savez_compressed(path, x=np.zeros((FILE_MB, 1 << 17)))


def npz_by_columns(path):
    np.savez_compressed(path, x=np.zeros((FILE_MB, 1 << 17), order="F"))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.csv", csv),
        ("a.jsonl", jsonl),
        ("a.parquet", parquet),
        ("a.feather", feather),
        ("a.npy", npy),
        ("a.npz", npz),
        ("f.npz", npz_by_columns),
    ],
)
def test_a_large_file_never_fills_the_memory(tmp_path, name, make):
    path = tmp_path / name
    make(path)
    rows, more_mb = read_apart(path)
    assert rows >= FILE_MB
    assert more_mb < MORE_MB
    path.unlink()


def test_a_long_generator_never_fills_the_memory():
    rows, more_mb = read_apart("generator")
    assert rows == 300_000
    assert more_mb < MORE_MB
