"""``holdfast dataset``: what it prints, what it changes, how it fails."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import holdfast
from holdfast.cluster.cli import main

from .conftest import cli_json, listening_master, run_cli

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs ``holdfast dataset ...`` in this process: its exit status, and what it printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["dataset", *arguments])
        return (status, *capsys.readouterr())

    return run


@pytest.fixture
def asked(run: Callable[..., tuple[int, str, str]]) -> Callable[..., Any]:
    """What a command that succeeds prints with ``--json``."""

    def asked(*arguments: str) -> Any:
        status, out, err = run(*arguments, "--json")
        assert status == 0, err
        return json.loads(out)

    return asked


@pytest.fixture
def told(run: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """What a command that succeeds prints for people."""

    def told(*arguments: str) -> str:
        status, out, err = run(*arguments)
        assert status == 0, err
        return out

    return told


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A home with the dataset ``wine`` in two versions, for commands that only look."""
    folder = tmp_path_factory.mktemp("datasets")
    with holdfast.connect(home=folder / "home") as client:
        data = wine()
        client.datasets.store_dataset(data, name="wine", metadata={"source": "the lab"})
        client.datasets.edit("wine", {"alcohol": lambda a: [0.5, *a.to_pylist()[1:]]}, name="wine")
        client.names.set_alias("dataset", "wine", "best", "1.0.0")
    return str(folder / "home")


def wine() -> pa.Table:
    return pa.table(
        {
            "id": np.arange(200),
            "alcohol": [10 + n / 50 for n in range(200)],
            "kind": ["red" if n % 4 else None for n in range(200)],
            "picture": [b"\x89PNG" + bytes([n]) for n in range(200)],
        }
    )


def test_a_file_becomes_a_dataset_with_the_same_cid_everywhere(tmp_path: Path, asked, told):
    path = tmp_path / "wine.csv"
    wine().drop_columns(["picture"]).to_pandas().to_csv(path, index=False)
    a, b = (("--home", str(tmp_path / name)) for name in "ab")
    first = cli_json("dataset", "add", str(path), "--name", "wine", *a)
    assert asked("add", str(path), *b)["cid"] == first["cid"]
    assert (first["rows"], first["name"]) == ({"train": 200}, "wine")
    assert [entry["version"] for entry in asked("ls", *a)] == ["1.0.0"]
    text = told("add", str(path), "--name", "wine", "--version", "3.0.0", *a)
    assert text.splitlines()[0] == first["cid"]
    assert "200 train rows" in text
    assert "3.0.0" in told("ls", *a)
    assert "no datasets yet" in told("ls", *b)
    assert asked("list", *a) == asked("ls", *a)


def test_options_of_storing_reach_the_dataset(tmp_path: Path, asked):
    (tmp_path / "rows.txt").write_text('{"a": 1}\n{"a": 2}\n')
    home = ("--home", str(tmp_path / "home"))
    added = asked(
        *("add", str(tmp_path / "rows.txt"), "--format", "jsonl", "--to", "arrow"),
        *("--chunk-size", "4096", "--metadata", '{"by": "me"}', *home),
    )
    shown = asked("show", added["cid"], *home)
    assert (shown["format"], shown["chunk_size"], shown["metadata"]) == ("arrow-v2", 4096, {"by": "me"})


def test_a_dataset_is_described_with_statistics_and_first_rows(home: str, asked, told):
    shown = asked("show", "wine:1.0.0", "--home", home, "--rows", "2")
    assert shown["columns"] == {"id": "int64", "alcohol": "double", "kind": "string", "picture": "binary"}
    train = shown["splits"]["train"]
    assert train["rows"] == 200
    assert train["statistics"]["kind"] == {
        "type": "string",
        "rows": 200,
        "nulls": 50,
        "min": "red",
        "max": "red",
    }
    assert train["statistics"]["id"]["max"] == 199
    assert shown["preview"]["rows"][0] == {"id": 0, "alcohol": 10.0, "kind": None, "picture": "iVBORwA="}
    assert len(shown["preview"]["rows"]) == 2
    edited = asked("show", "wine", "--home", home)
    assert edited["parent"] == shown["cid"]
    assert edited["provenance"]["operation"] == "edit"
    text = told("show", "wine@best", "--home", home)
    for words in ("parquet-v2", "COLUMN (train)", "alcohol", "first rows of train", "the lab", "50"):
        assert words in text


def test_rows_are_asked_for_in_words(home: str, asked, told):
    found = asked(
        *("query", "wine", "--where", "alcohol > 13.9 and kind is not None"),
        *("--columns", "id,kind", "--home", home),
    )
    assert found["rows"] == [{"id": n, "kind": "red"} for n in (197, 198, 199)]
    assert found["counts"]["rows_given"] == 3
    assert len(asked("query", "wine", "--limit", "0", "--home", home)["rows"]) == 200
    assert len(asked("query", "wine", "--home", home)["rows"]) == 20
    text = told("query", "wine", "--where", "id == 7", "--home", home)
    assert "1 row; read 1 row group (" in text
    assert "20 rows; read 1 row group (" in told("query", "wine", "--columns", "id, kind", "--home", home)
    assert "no row meets" in told("query", "wine", "--where", "id == -7", "--home", home)


def test_what_changed_between_versions_is_told_and_shown(home: str, asked, told):
    found = asked("diff", "wine:1.0.0", "wine", "--key", "id", "--rows", "5", "--home", home)
    assert (found["added"], found["removed"], found["changed"]) == (0, 0, 1)
    (row,) = found["splits"]["train"]["rows"]["changed"]
    assert (row["id"], row["before"]["alcohol"], row["after"]["alcohol"]) == (0, 10.0, 0.5)
    plain = asked("diff", "wine:1.0.0", "wine", "--rows", "1", "--home", home)
    assert (plain["added"], plain["removed"]) == (1, 1)
    assert plain["splits"]["train"]["rows"]["added"][0]["alcohol"] == 0.5
    text = run_cli(
        "dataset", "diff", "wine:1.0.0", "wine", "--key", "id", "--rows", "1", "--home", home
    ).stdout
    assert "UNCHANGED" in text
    assert text.endswith("changed in train\nid  CHANGES\n0   alcohol 10.0 → 0.5\n")
    assert "the same rows" in told("diff", "wine", "wine", "--home", home)


def test_a_change_is_seen_whatever_the_values_are(tmp_path: Path, told):
    home = tmp_path / "home"
    long, nan = "x" * 100, float("nan")
    before = pa.table(
        {"a": [1, 2], "b": ["p", "q"], "text": [f"{long}a", None], "f": [nan, nan], "l": [[1], []]}
    )
    after = before.set_column(2, "text", pa.array([f"{long}b", "new"])).set_column(
        3, "f", pa.array([nan, None])
    )
    with holdfast.connect(home=home) as client:
        client.datasets.store_dataset(before, name="t")
        client.datasets.store_dataset(after, name="t")
    text = told("diff", "t:1.0.0", "t", "--key", "a", "--key", "b", "--rows", "9", "--home", str(home))
    changes = text.partition("changed in train\n")[2].splitlines()
    assert changes == [
        "a  b  CHANGES",
        "1  p  text …xxxxxxxxxxa → …xxxxxxxxxxb",
        "2  q  text - → new, f nan → -",
    ]


def test_a_dataset_is_cut_and_versions_are_removed(tmp_path: Path, asked, told, run):
    home = ("--home", str(tmp_path / "home"))
    pq.write_table(wine(), tmp_path / "wine.parquet")
    asked("add", str(tmp_path / "wine.parquet"), "--name", "wine", *home)
    made = cli_json(
        "dataset", "split", "wine", "--name", "cut", "--test-size", "0.25", "--stratify", "kind", *home
    )
    assert made["rows"] == {"train": 150, "test": 50}
    again = cli_json(
        "dataset", "split", "wine", "--test-size", "50", "--seed", "1", "--stratify", "kind", *home
    )
    assert again["rows"] == made["rows"]
    assert again["cid"] != made["cid"]
    status, _, error = run("rm", "wine", *home)
    assert status == 2
    assert "--all" in error
    (gone,) = asked("rm", "wine:1.0.0", *home)
    assert (gone["name"], gone["version"]) == ("wine", "1.0.0")
    assert f"removed cut:1.0.0  {made['cid']}" in told("rm", "cut", "--all", *home)
    assert asked("ls", *home) == []


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("show", "nothing"), 3, "no dataset named 'nothing'; there is wine"),
        (("query", "wine", "--where", "colour == 'red'"), 2, "there is no column 'colour'"),
        (("query", "wine", "--where", "id >"), 2, "is no condition"),
        (("query", "wine", "--columns", "id,colour"), 2, "there is no column 'colour'"),
        (("query", "wine", "--split", "test"), 3, "no split 'test'"),
        (("diff", "wine", "wine", "--key", "colour"), 2, "the key 'colour'"),
        (("split", "wine", "--test-size", "half"), 2, "neither a part"),
        (("split", "wine", "--stratify", "colour"), 2, "no column 'colour'"),
        (("add", "/nowhere.csv"), 3, "/nowhere.csv"),
        (("add", "/dev/null", "--version", "1.0.0"), 2, "give the name, too (name=, --name)"),
        (("query", "wine", "--where", "id > 99999999999999999999999 or colour > 1"), 2, "no column 'colour'"),
        (("add", "/dev/null", "--metadata", "[1]"), 2, "JSON object"),
        (("add", "/dev/null", "--metadata", "{"), 2, "not JSON"),
        (("rm", "wine:9.0.0"), 3, "no dataset wine:9.0.0"),
        (("rm", "wine:1.0.0", "--all"), 2, "leave out --all"),
    ],
)
def test_what_goes_wrong_is_one_line_with_its_exit_status(home: str, arguments, status, words, run):
    found, _, errors = run(*arguments, "--home", home)
    assert found == status, errors
    (line,) = [line for line in errors.splitlines() if line]
    assert line.startswith("holdfast: ")
    assert words in line


@pytest.mark.parametrize("verb", ["", "add", "ls", "show", "query", "diff", "split", "rm"])
def test_help_shows_examples(verb: str, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["dataset", *filter(None, [verb]), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert "holdfast dataset" in text


def test_on_a_cluster_names_are_the_masters_and_rows_come_from_its_nodes(tmp_path: Path):
    with listening_master(tmp_path / "master") as (master, _):
        token = str(tmp_path / "master" / "token")

        def at(home: str) -> tuple[str, ...]:
            return ("--address", master.url, "--token-file", token, "--home", str(tmp_path / home))

        pd.DataFrame({"n": range(100)}).to_csv(tmp_path / "n.csv", index=False)
        added = cli_json("dataset", "add", str(tmp_path / "n.csv"), "--name", "n", *at("writer"))
        found = cli_json("dataset", "query", "n:1.0.0", "--where", "n in [3, 97]", *at("reader"))
        assert [row["n"] for row in found["rows"]] == [3, 97]
        (gone,) = cli_json("dataset", "rm", "n:1.0.0", *at("reader"))
        assert gone["cid"] == added["cid"]
        assert master.names.entries() == []
        assert run_cli("dataset", "show", "n", *at("writer")).returncode == 3
