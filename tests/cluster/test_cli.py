"""The command line by itself: exit statuses, one-line errors, JSON."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from holdfast.cluster.cli import main
from holdfast.cluster.processes import free_port

from .conftest import announced, cli_json, run_cli, start_daemon

if TYPE_CHECKING:
    from pathlib import Path


def one_line_error(done: subprocess.CompletedProcess[str]) -> str:
    """The error that a failed command printed: one line, no traceback."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("holdfast: ")
    assert "Traceback" not in done.stderr
    return lines[0]


def test_a_port_in_use_is_one_clear_line(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_cli("up", "--home", str(tmp_path / "master"), "--port", str(port))
    assert done.returncode == 6
    assert f"127.0.0.1:{port}" in one_line_error(done)
    assert "another program uses the port" in done.stderr


def test_a_wrong_token_ends_a_worker_at_once(cluster, tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("f" * 64)
    token.chmod(0o600)
    done = run_cli("worker", "--join", cluster.url, "--token-file", str(token), "--home", str(tmp_path / "w"))
    assert done.returncode == 7
    assert "token" in one_line_error(done)


def test_a_master_that_is_not_there_is_named(tmp_path: Path):
    url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    token = tmp_path / "token"
    token.write_text("f" * 64)
    token.chmod(0o600)
    done = run_cli(
        "worker", "--join", url, "--token-file", str(token), "--wait", "1", "--home", str(tmp_path / "w")
    )
    assert done.returncode == 6
    assert url in done.stderr
    assert done.stderr.count("waiting for the master") == 1, "the same is said once"


def test_two_daemons_cannot_share_a_home(tmp_path: Path):
    first = start_daemon(tmp_path, "home", "up", "--port", "0")
    announced(tmp_path, "home", first)
    done = run_cli("up", "--home", str(tmp_path / "home"), "--port", "0")
    assert done.returncode == 4
    assert "another holdfast daemon uses" in one_line_error(done)
    stopped = cli_json("down", "--home", str(tmp_path / "home"))
    assert stopped == {str(tmp_path / "home"): first.pid}
    assert first.wait(5) == 0


def test_a_full_disk_is_one_clear_line_and_the_store_lives_on(tmp_path: Path):
    home = tmp_path / "small"
    home.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "holdfast-test", str(home)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("a small file system can't be mounted here: " + mounted.stderr.decode().strip())
    try:
        small = tmp_path / "small.bin"
        small.write_bytes(os.urandom(100_000))
        cid = cli_json("add", str(small), "--home", str(home))["cid"]
        large = tmp_path / "large.bin"
        large.write_bytes(os.urandom(8_000_000))
        done = run_cli("add", str(large), "--home", str(home))
        assert done.returncode == 6
        assert "full" in one_line_error(done)
        assert cli_json("get", cid, "-o", str(tmp_path / "back"), "--home", str(home))["bytes"] == 100_000
        assert (tmp_path / "back").read_bytes() == small.read_bytes()
    finally:
        subprocess.run(["umount", str(home)], check=True)


def test_a_missing_dependency_is_named_without_a_traceback(tmp_path: Path):
    # A folder in front of the path that hides one installed package.
    (tmp_path / "lmdb.py").write_text("raise ModuleNotFoundError(\"No module named 'lmdb'\", name='lmdb')\n")
    done = run_cli(
        "ls", "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku", PYTHONPATH=str(tmp_path)
    )
    assert done.returncode == 8
    assert "'lmdb'" in one_line_error(done)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("get", "not-a-cid"), 2, "neither a CID nor a name"),
        (("stat", "bafkreibm6jg3"), 2, "not a CID"),
        (("pin", "add", "digits"), 2, "'holdfast stat digits' gives the CID"),
        (("gc", "--why", "digits"), 2, "'holdfast stat digits' gives the CID"),
        (("status", "--address", "nowhere.invalid"), 6, "no machine is known as 'nowhere.invalid'"),
        (("get", "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq"), 3, "no other node"),
        (("add", "/no/such/file"), 3, "no file or directory"),
        (("verify", "nobody"), 3, "no model, index or dataset named 'nobody'"),
        (("train", "nothing", "--data", "x"), 2, "package.module:function"),
        (("train", "m:f", "--data", "x", "--alias", "champion"), 2, "say --name, too"),
        (("train", "m:f", "--data", "x", "--name", "../x"), 2, "not a name of a model"),
        (("train", "m:f", "--data", "x", "--name", "x", "--alias", "no good"), 2, "not an alias"),
        (("train", "m:f", "--data", "x", "--name", "x", "--version", "one"), 2, "not a version"),
        (("status", "--address", "ftp://x"), 2, "not the address"),
        (("down",), 2, "no holdfast daemon runs"),
    ],
)
def test_bad_input_has_its_own_exit_status(tmp_path: Path, arguments, status, words):
    token = tmp_path / "home" / "token"
    token.parent.mkdir()
    token.write_text("a" * 64)
    token.chmod(0o600)
    done = run_cli(*arguments, "--home", str(tmp_path / "home"))
    assert done.returncode == status, done.stderr
    assert words in one_line_error(done)
    as_json = run_cli(*arguments, "--home", str(tmp_path / "home"), "--json")
    assert as_json.returncode == status
    assert words in json.loads(as_json.stdout)["error"]


def test_add_get_ls_cat_and_stat_agree(tmp_path: Path):
    home = ("--home", str(tmp_path / "home"))
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("hello")
    (folder / "sub" / "b.bin").write_bytes(bytes(2_000_000))
    cid = cli_json("add", str(folder), *home)["cid"]
    assert cli_json("add", str(folder), *home)["cid"] == cid
    assert [entry["name"] for entry in cli_json("ls", cid, *home)] == ["a.txt", "sub"]
    assert run_cli("cat", f"{cid}/a.txt", *home).stdout == "hello"
    assert cli_json("stat", f"{cid}/sub/b.bin", *home)["size"] == 2_000_000
    cli_json("get", cid, "-o", str(tmp_path / "copy"), *home)
    assert (tmp_path / "copy" / "sub" / "b.bin").read_bytes() == bytes(2_000_000)
    again = run_cli("get", cid, "-o", str(tmp_path / "copy"), *home)
    assert again.returncode == 4


def test_what_standard_input_gives_is_stored(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "holdfast.cluster.cli", "add", "-", "--home", str(tmp_path / "home")],
        input=b"hello",
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.decode().strip() == "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq"


def test_an_argument_that_a_command_does_not_know_is_answered_by_the_command():
    done = run_cli("train", "module:function", "--data", "digits", "--set", "width=16")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: holdfast train ")
    assert "holdfast train: error: unrecognized arguments: --set width=16" in done.stderr


def test_a_training_function_that_fails_is_one_line_that_says_where(tmp_path: Path, monkeypatch):
    home = ("--home", str(tmp_path / "home"))
    (tmp_path / "rows.csv").write_text("x\n1\n2\n")
    run_cli("dataset", "add", str(tmp_path / "rows.csv"), "--name", "rows", *home)
    (tmp_path / "mine.py").write_text("def train(context):\n    return context.config['width']\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run_cli("train", "mine:train", "--data", "rows", *home)
    assert done.returncode == 2, done.stderr
    assert (
        one_line_error(done) == "holdfast: the training function failed: KeyError: 'width' (mine.py, line 2)"
    )


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("verfy",), "holdfast: there is no command 'verfy': did you mean 'verify'?\n"),
        (("names", "serach"), "holdfast names: there is no command 'serach': did you mean 'search'?\n"),
        (("xyzzy",), "holdfast: there is no command 'xyzzy': 'holdfast --help' lists them\n"),
    ],
)
def test_a_mistyped_command_is_answered_with_the_nearest(capsys, arguments, advice):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert capsys.readouterr().err == advice


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 0
    assert "exit status:" in capsys.readouterr().out


def test_a_worker_without_a_token_is_told_which_one_it_needs(tmp_path: Path, capsys):
    assert main(["worker", "--join", "http://127.0.0.1:9", "--home", str(tmp_path)]) == 3
    assert "copy the token file of the master's home there" in capsys.readouterr().err


def test_settings_are_told_as_people_write_them(tmp_path: Path, capsys):
    assert main(["config", "--home", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert re.search(r"serve.max_body_bytes +67108864 \(64.0 MiB\) +default", told)
    assert re.search(r"fetch.routers +- +default", told)


def test_a_setting_says_where_it_comes_from(tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text("[serve]\nport = 9999\n")
    settings = cli_json("config", "--home", str(home), HOLDFAST_FETCH__TIMEOUT_S="7.5")["settings"]
    assert settings["serve.port"] == {"value": 9999, "origin": str(home / "config.toml")}
    assert settings["fetch.timeout_s"] == {"value": 7.5, "origin": "environment"}
    assert settings["master.port"]["origin"] == "default"
    (home / "config.toml").write_text("[serve]\nprot = 9999\n")
    done = run_cli("config", "--home", str(home))
    assert done.returncode == 2
    assert "did you mean 'serve.port'" in one_line_error(done)


def test_a_master_stops_at_ctrl_c_while_it_starts(tmp_path: Path):
    process = start_daemon(tmp_path, "master", "up", "--port", "0")
    log = tmp_path / "master" / "logs" / "ray.log"
    for _ in range(200):
        if log.exists():
            break
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(signal.SIGINT)
    assert process.wait(15) == 0
