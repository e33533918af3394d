"""``holdfast names`` and ``holdfast alias``: what they print, what they change, how they fail."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

import holdfast
from holdfast.cluster.cli import main
from holdfast.registry.names import facts_of_model

from .conftest import listening_master

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def home(tmp_path):
    """A home with three models, of which one is made from a dataset."""
    home = tmp_path / "home"
    with holdfast.connect(home=home) as client:
        data = client.datasets.store_dataset({"x": [1]}, name="rows")
        names = client.names
        for name, version, accuracy in (
            ("digits", "1.0.0", 0.8),
            ("digits", "2.0.0", 0.95),
            ("letters", "1.0.0", 0.9),
        ):
            cid = client.store.put_record({"kind": "model", "of": f"{name} {version}"})
            datasets = [data.cid] if name == "letters" else []
            names.register(
                "model", name, version, cid, facts_of_model(metrics={"accuracy": accuracy}, datasets=datasets)
            )
    return home


@pytest.fixture
def run(home, capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process: its exit status, and what it printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([*arguments, "--home", str(home)])
        return (status, *capsys.readouterr())

    return run


@pytest.fixture
def asked(run) -> Callable[..., Any]:
    """What a command that succeeds prints with ``--json``."""

    def asked(*arguments: str) -> Any:
        status, out, err = run(*arguments, "--json")
        assert status == 0, err
        return json.loads(out)

    return asked


def found(entries):
    return [f"{entry['name']}:{entry['version']}" for entry in entries]


def test_a_search_on_the_command_line_finds_what_it_describes(asked, run):
    assert asked("names", "tag", "digits", "stage=prod")["tags"] == {"stage": "prod"}
    asked("alias", "digits", "champion", "1.0.0")
    assert found(asked("names", "search", "dig*")) == ["digits:1.0.0", "digits:2.0.0"]
    assert found(asked("names", "search", "--tag", "stage=prod")) == ["digits:2.0.0"]
    assert found(asked("names", "search", "--alias", "champion")) == ["digits:1.0.0"]
    assert found(asked("names", "search", "--metric", "accuracy>=0.9")) == ["digits:2.0.0", "letters:1.0.0"]
    assert found(asked("names", "search", "--metric", "accuracy=0.9")) == ["letters:1.0.0"]
    assert found(asked("names", "search", "--dataset", "rows")) == ["letters:1.0.0"]
    assert found(asked("names", "ls", "--kind", "dataset")) == ["rows:1.0.0"]
    status, out, _ = run("names", "search", "digits", "--kind", "model")
    assert status == 0
    assert "model  digits:1.0.0  @champion" in out
    assert "model  digits:2.0.0  stage=prod" in out
    assert run("names", "search", "none")[1] == "nothing\n"


def test_tags_and_aliases_move_only_from_where_the_caller_saw_them(asked, run):
    asked("names", "tag", "digits:1.0.0", "stage=test", "--expected", "")
    status, _, err = run("names", "tag", "digits:1.0.0", "stage=prod", "--expected", "old")
    assert (status, "has 'test', not 'old'" in err) == (4, True)
    assert asked("names", "untag", "digits:1.0.0", "stage", "--expected", "test")["tags"] == {}
    asked("alias", "digits", "champion", "1.0.0", "--expected", "none")
    status, _, err = run("alias", "digits", "champion", "--delete", "--expected", "2.0.0")
    assert (status, "points to 1.0.0, not to 2.0.0" in err) == (4, True)
    assert asked("alias", "digits", "champion", "--delete")["aliases"] == []
    assert run("alias", "digits", "champion", "--delete")[0] == 3


def test_names_are_removed_one_by_one_or_all_versions_at_once(asked, run):
    asked("alias", "digits", "champion", "1.0.0")
    assert found(asked("names", "rm", "digits:1.0.0")) == ["digits:1.0.0"]
    assert found(asked("names", "list", "--kind", "model")) == ["digits:2.0.0", "letters:1.0.0"]
    assert run("stat", "digits@champion")[0] == 2
    status, out, _ = run("names", "rm", "rows", "--all", "--kind", "dataset")
    assert (status, out.startswith("removed dataset rows:1.0.0  baf")) == (0, True)
    assert run("names", "rm", "rows", "--all", "--kind", "dataset")[0] == 3


def test_files_and_records_are_reached_by_name_too(asked):
    (entry,) = asked("names", "search", "letters")
    stat = asked("stat", "letters")
    assert (stat["cid"], stat["kind"]) == (entry["cid"], "record")


def test_the_past_and_the_history_are_told(asked, run):
    time.sleep(1.1)
    then = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime())
    asked("names", "rename", "digits", "numbers")
    assert found(asked("names", "ls", "--kind", "model")) == [
        "letters:1.0.0",
        "numbers:1.0.0",
        "numbers:2.0.0",
    ]
    assert found(asked("names", "search", "*s", "--kind", "model", "--at", then)) == [
        "digits:1.0.0", "digits:2.0.0", "letters:1.0.0"]  # fmt: skip
    commits = asked("names", "history", "numbers")
    assert [commit["change"]["op"] for commit in commits] == ["rename", "register", "register"]
    assert found(asked("names", "ls", "--kind", "model", "--at", commits[-1]["cid"])) == ["digits:1.0.0"]
    status, out, _ = run("names", "history", "numbers")
    assert status == 0
    assert "model digits is numbers now" in out
    assert asked("names", "verify")["commits"] == 5
    assert "4 versions are what they tell; the newest is" in run("names", "verify")[1]


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("names", "search", "--metric", "accuracy"), 2, "not a comparison"),
        (("names", "search", "--metric", "accuracy>much"), 2, "not a comparison"),
        (("names", "search", "--tag", "stage"), 2, "not KEY=VALUE"),
        (("names", "ls", "--at", "last Tuesday"), 2, "neither a time"),
        (("names", "tag", "digits", "stage"), 2, "not KEY=VALUE"),
        (("names", "tag", "digtis", "stage=prod"), 3, "there is digits, letters"),
        (("names", "rename", "digits", "letters"), 4, "there is a model of this name"),
        (("names", "rm", "digits"), 2, "which version of digits"),
        (("names", "rm", "digits:1.0.0", "--all"), 2, "leave out --all"),
        (("names", "rm", "digits:9.0.0"), 3, "9.0.0"),
        (("names", "rm", "digits:1.0.0", "--kind", "index"), 3, "digits"),
        (("names", "tag", "digits", "stage=prod", "--expected", "test"), 4, "has no value, not 'test', so it did not get 'prod': look"),
        (("names", "rename", "nothing", "new"), 3, "no model named 'nothing'"),
    ],
)  # fmt: skip
def test_a_wrong_command_changes_nothing_and_says_why(run, asked, arguments, status, told):
    before = asked("names", "ls")
    code, _, err = run(*arguments)
    assert code == status
    assert told in err
    assert asked("names", "ls") == before


def test_the_names_of_a_master_are_changed_the_same_way(tmp_path, capsys):
    with listening_master(tmp_path / "master") as (master, _):
        master.names.register("model", "m", "1.0.0", master.store.put_record({"kind": "model"}))
        where = (
            "--address",
            master.url,
            "--token-file",
            str(tmp_path / "master" / "token"),
            "--home",
            str(tmp_path / "c"),
        )
        for arguments in (("tag", "m", "stage=prod"), ("rename", "m", "n"), ("history", "n"), ("verify",)):
            assert main(["names", *arguments, *where]) == 0, capsys.readouterr().err
        assert "over HTTP" in capsys.readouterr().out
        assert master.names.resolve("model", "n").tags == {"stage": "prod"}
