"""The commands around the store of one home: what they print, what they change, how they fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING

import pytest

from holdfast.config import load_settings
from holdfast.storage.block_store import SupportsExtent
from holdfast.storage.cid import Cid
from holdfast.storage.opening import open_local, write_peers

from .conftest import cli_json, run_cli

if TYPE_CHECKING:
    from pathlib import Path

HELLO_V1 = "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq"
HELLO_V0 = "QmWfVY9y3xjsixTgbd9AorQxH7VtMpzfx2HaWtsoUYecaX"


@pytest.fixture
def home(tmp_path: Path) -> str:
    return str(tmp_path / "home")


def test_only_hash_gives_the_cid_and_stores_nothing(tmp_path: Path, home: str):
    (tmp_path / "hello").write_bytes(b"hello")
    for arguments, expected in (
        ((), HELLO_V1),
        (("--profile", "unixfs-v0-2015"), HELLO_V0),
        (("--profile", "kubo-v1-raw"), HELLO_V1),
    ):
        path = str(tmp_path / "hello")
        assert cli_json("add", path, "--only-hash", *arguments, "--home", home)["cid"] == expected
    done = run_cli("cat", HELLO_V1, "--home", home)
    assert done.returncode == 3


def test_cid_only_prints_nothing_else(home: str):
    done = subprocess.run(
        [sys.executable, "-m", "holdfast.cluster.cli", "add", "-", "--cid-only", "--home", home],
        input=b"hello",
        capture_output=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == (f"{HELLO_V1}\n".encode(), b"")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--profile", "kubo"), "unixfs-v0-2015"),
        (("--chunker", "magic"), "fastcdc"),
        (("--hash", "md5"), "blake3"),
        (("--profile", "unixfs-v0-2015", "--no-copy"), "unixfs-v0-2015"),
    ],
)
def test_an_unknown_way_to_add_is_answered_with_the_known_ones(tmp_path: Path, home: str, arguments, words):
    (tmp_path / "x").write_bytes(b"x")
    done = run_cli("add", str(tmp_path / "x"), *arguments, "--home", home)
    assert done.returncode == 2
    assert words in done.stderr


def test_pins_from_the_command_line(tmp_path: Path, home: str):
    (tmp_path / "a").write_bytes(b"kept")
    (tmp_path / "b").write_bytes(b"not kept")
    kept = cli_json("add", str(tmp_path / "a"), "--home", home)["cid"]
    loose = cli_json("add", str(tmp_path / "b"), "--no-pin", "--home", home)["cid"]
    assert [pin["cid"] for pin in cli_json("pin", "ls", "--home", home)] == [kept]
    cli_json("pin", "add", loose, "--name", "for later", "--home", home)
    assert {(p["cid"], p["name"]) for p in cli_json("pin", "ls", "--home", home)} == {
        (kept, ""),
        (loose, "for later"),
    }
    cli_json("pin", "rm", kept, "--home", home)
    done = run_cli("pin", "rm", kept, "--home", home)
    assert done.returncode == 3
    assert kept in done.stderr


def test_collecting_shows_first_and_removes_only_when_told(tmp_path: Path, home: str):
    (tmp_path / "big").write_bytes(os.urandom(3_000_000))
    cid = cli_json("add", str(tmp_path / "big"), "--no-pin", "--home", home)["cid"]
    plan = cli_json("gc", "--grace", "0", "--home", home)
    assert plan["dead_blocks"] == 4
    assert plan["dead_bytes"] > 3_000_000
    assert cli_json("gc", "--home", home)["young_blocks"] == 4
    text = run_cli("gc", "--grace", "0", "--home", home)
    assert "would go" in text.stdout
    assert "--yes" in text.stdout
    assert cli_json("stat", cid, "--home", home)["size"] == 3_000_000
    assert cli_json("gc", "--yes", "--grace", "0", "--home", home)["blocks"] == 4
    assert run_cli("stat", cid, "--home", home).returncode == 3


def test_what_keeps_a_block_is_told(tmp_path: Path, home: str):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "leaf").write_bytes(b"leaf")
    root = cli_json("add", str(tmp_path / "in"), "--home", home)["cid"]
    leaf = str(Cid.of(b"leaf"))
    assert cli_json("gc", "--why", leaf, "--home", home)["kept_by"] == [f"a pin: {root} → {leaf}"]


def spoil(home: str, cid: str) -> None:
    store = open_local(load_settings(home))
    assert isinstance(store, SupportsExtent)
    extent = store.extent(Cid.parse(cid))
    assert extent is not None
    with extent.path.open("r+b") as file:
        file.seek(extent.offset)
        file.write(b"#")
    store.close()


def test_fsck_tells_of_bad_bytes_with_its_exit_status(tmp_path: Path, home: str):
    (tmp_path / "x").write_bytes(b"sound")
    cid = cli_json("add", str(tmp_path / "x"), "--home", home)["cid"]
    assert cli_json("fsck", "--home", home)["bad"] == 0
    spoil(home, cid)
    done = run_cli("fsck", "--home", home)
    assert done.returncode == 5
    assert cid in done.stdout
    assert "--repair" in done.stderr


def test_fsck_mends_from_a_peer(tmp_path: Path, home: str):
    (tmp_path / "x").write_bytes(b"sound")
    other = str(tmp_path / "other")
    for where in (home, other):
        cid = cli_json("add", str(tmp_path / "x"), "--home", where)["cid"]
    with gateway(other) as url:
        write_peers(load_settings(home).home, [url])
        spoil(home, cid)
        found = cli_json("fsck", "--repair", "--home", home)
    assert (found["bad"], [f["mended"] for f in found["findings"]]) == (0, [True])
    assert run_cli("cat", cid, "--home", home).stdout == "sound"


def test_a_dag_travels_in_a_car(tmp_path: Path, home: str):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a").write_bytes(os.urandom(2_500_000))
    (folder / "b").write_bytes(b"b")
    root = cli_json("add", str(folder), "--home", home)["cid"]
    car = tmp_path / "x.car"
    assert cli_json("export", root, "-o", str(car), "--home", home)["bytes"] == car.stat().st_size
    assert run_cli("export", root, "-o", str(car), "--home", home).returncode == 4
    other = str(tmp_path / "other")
    stored = cli_json("import", str(car), "--home", other)
    assert stored["roots"] == [root]
    assert [pin["cid"] for pin in cli_json("pin", "ls", "--home", other)] == [root]
    cli_json("get", root, "-o", str(tmp_path / "out"), "--home", other)
    assert (tmp_path / "out" / "a").read_bytes() == (folder / "a").read_bytes()


def test_a_damaged_car_leaves_the_store_as_it_was(tmp_path: Path, home: str):
    (tmp_path / "a").write_bytes(os.urandom(2_500_000))
    root = cli_json("add", str(tmp_path / "a"), "--home", home)["cid"]
    cli_json("export", root, "-o", str(tmp_path / "x.car"), "--home", home)
    data = (tmp_path / "x.car").read_bytes()
    other = str(tmp_path / "other")
    for name, wrong in (
        ("cut", data[:-1000]),
        ("bent", data[:-1000] + b"?" + data[-999:]),
        ("none", b"GIF89a"),
    ):
        (tmp_path / name).write_bytes(wrong)
        done = run_cli("import", str(tmp_path / name), "--home", other)
        assert done.returncode == 5, name
        assert done.stderr.startswith(f"holdfast: {tmp_path / name}: "), name
        assert "Traceback" not in done.stderr
    assert run_cli("import", str(tmp_path / "nothing"), "--home", other).returncode == 3
    assert cli_json("fsck", "--home", other)["blocks"] == 0


class gateway:  # noqa: N801 -- reads like a function
    """``holdfast gateway`` on a home; gives its URL."""

    def __init__(self, home: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "holdfast.cluster.cli", "gateway", "--port", "0", "--json"]
        self.process = subprocess.Popen(
            [*command, *arguments, "--home", home], stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> str:
        assert self.process.stdout is not None
        text = ""
        for line in self.process.stdout:
            text += line
            if line.startswith("}"):
                break
        return str(json.loads(text)["url"])

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        with self.process:
            assert self.process.wait(20) == 0


def test_a_gateway_serves_one_home_and_ends_cleanly(tmp_path: Path, home: str):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "hello.txt").write_bytes(b"hello")
    root = cli_json("add", str(tmp_path / "in"), "--home", home)["cid"]
    with gateway(home) as url:
        with urllib.request.urlopen(f"{url}/ipfs/{root}/hello.txt") as answer:
            assert answer.read() == b"hello"
            assert answer.headers["Content-Type"].startswith("text/plain")
        with urllib.request.urlopen(f"{url}/ipfs/{HELLO_V1}?format=raw") as answer:
            assert answer.read() == b"hello"


def test_peers_are_listed_with_whether_they_answer(tmp_path: Path, home: str):
    assert cli_json("peers", "--home", home) == []
    other = str(tmp_path / "other")
    with gateway(other) as url:
        write_peers(load_settings(home).home, [url, "http://127.0.0.1:9"])
        found = {peer["url"]: peer["answers"] for peer in cli_json("peers", "--home", home)}
    assert found == {url: True, "http://127.0.0.1:9": False}
