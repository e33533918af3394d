"""Settings come from where they say, and a token is a secret."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from holdfast.config import MIN_TOKEN_CHARS, Settings, load_settings, read_token, token_for
from holdfast.errors import Denied, InvalidInput, NotFound


def write(home, text):
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------------------- settings


def test_a_stronger_layer_is_never_overruled_by_a_weaker_one(tmp_path, monkeypatch):
    write(tmp_path, "[master]\nport = 1\nhost = '1.1.1.1'\nnum_cpus = 3\n")
    monkeypatch.setenv("HOLDFAST_MASTER__PORT", "2")
    monkeypatch.setenv("HOLDFAST_MASTER__HOST", "2.2.2.2")
    settings = load_settings(tmp_path, master__port=3, master__host=None)
    assert (settings.master.port, settings.master.host, settings.master.num_cpus) == (3, "2.2.2.2", 3)
    assert settings.origins["master.port"] == "argument"
    assert settings.origins["master.host"] == "environment"
    assert settings.origins["master.num_cpus"] == str(tmp_path / "config.toml")
    assert settings.origins["worker.port"] == "default"


def test_the_origin_of_every_setting_is_known(tmp_path):
    settings = load_settings(tmp_path)
    assert settings == Settings(home=tmp_path)
    sections = ("storage", "fetch", "master", "worker", "serve", "registry")
    every = {f"{s}.{name}" for s in sections for name in type(getattr(settings, s)).__slots__}
    assert set(settings.origins) == every
    assert set(settings.origins.values()) == {"default"}


def test_reading_settings_does_not_make_a_home(tmp_path):
    load_settings(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_home_of_the_environment_is_used_and_never_a_relative_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "h"))
    assert load_settings().home == tmp_path / "h"
    monkeypatch.chdir(tmp_path)
    assert load_settings("x").home == tmp_path / "x"
    monkeypatch.setenv("HOLDFAST_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings().home == tmp_path / ".holdfast"


def test_a_misspelt_key_in_the_file_is_not_ignored(tmp_path):
    write(tmp_path, "[master]\nprot = 1\n")
    with pytest.raises(InvalidInput, match=r"'master\.prot'.*config\.toml.*did you mean 'master\.port'"):
        load_settings(tmp_path)


def test_a_misspelt_key_in_the_environment_is_not_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_FETCH__TIMEOUTS", "1")
    with pytest.raises(InvalidInput, match=r"environment.*did you mean 'fetch\.timeout_s'"):
        load_settings(tmp_path)


def test_a_misspelt_argument_is_not_ignored(tmp_path):
    with pytest.raises(InvalidInput, match=r"argument.*did you mean 'serve\.threads'"):
        load_settings(tmp_path, serve__thread=1)


def test_a_key_that_is_like_no_other_lists_what_there_is(tmp_path):
    with pytest.raises(InvalidInput, match=r"known: fetch\.concurrency, .*worker\.port"):
        load_settings(tmp_path, zzz__qqq=1)


@pytest.mark.parametrize(
    "text",
    ["port = 1\n", "[master\n", "master = 1", "\u0000", '[master]\nport = "x"\n', "[master.port]\nx = 1\n"],
)
def test_a_broken_file_is_not_half_read(tmp_path, text):
    write(tmp_path, text)
    with pytest.raises(InvalidInput):
        load_settings(tmp_path)


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe[master]")
    with pytest.raises(InvalidInput, match=r"config\.toml"):
        load_settings(tmp_path)


def test_a_home_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="file"):
        load_settings(tmp_path / "file")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("master__port", "many"),
        ("master__port", 1.5),
        ("master__port", True),
        ("master__port", []),
        ("master__host", 5),
        ("storage__verify", "maybe"),
        ("storage__verify", 1),
        ("fetch__timeout_s", "soon"),
        ("fetch__timeout_s", True),
        ("fetch__timeout_s", "nan"),
        ("fetch__timeout_s", float("inf")),
        ("fetch__providers", 5),
        ("fetch__providers", [5]),
        ("fetch__providers", {"http://a": 1}),
    ],
)
def test_a_value_of_the_wrong_type_is_not_guessed_at(tmp_path, key, value):
    with pytest.raises(InvalidInput, match=key.replace("__", r"\.")):
        load_settings(tmp_path, **{key: value})


def test_text_of_the_environment_becomes_the_type_of_the_setting(tmp_path, monkeypatch):
    for key, text in {
        "STORAGE__VERIFY": "ingest",
        "FETCH__TIMEOUT_S": "2",
        "FETCH__CONCURRENCY": "3",
        "FETCH__PROVIDERS": "http://a, http://b,",
    }.items():
        monkeypatch.setenv(f"HOLDFAST_{key}", text)
    settings = load_settings(tmp_path)
    assert settings.storage.verify == "ingest"
    assert (settings.fetch.timeout_s, settings.fetch.concurrency) == (2.0, 3)
    assert settings.fetch.providers == ("http://a", "http://b")


# ---------------------------------------------------------------------------------------------------- token


def test_a_new_token_can_be_read_by_its_owner_only(tmp_path):
    old = os.umask(0)
    try:
        token = token_for(tmp_path / "a" / "home")
    finally:
        os.umask(old)
    path = tmp_path / "a" / "home" / "token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == token
    assert len(token) == 64
    assert [p.name for p in path.parent.iterdir()] == ["token"]


def test_a_token_stays_the_same(tmp_path):
    assert token_for(tmp_path) == token_for(tmp_path) == read_token(tmp_path / "token")
    assert token_for(tmp_path) != token_for(tmp_path / "other")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_token_that_others_can_read_is_refused(tmp_path, mode):
    token_for(tmp_path)
    (tmp_path / "token").chmod(mode)
    for read in (lambda: token_for(tmp_path), lambda: read_token(tmp_path / "token")):
        with pytest.raises(Denied, match="chmod 600"):
            read()


def test_a_given_token_replaces_the_one_that_is_there(tmp_path):
    token_for(tmp_path)
    given = "g" * MIN_TOKEN_CHARS
    assert token_for(tmp_path, given) == given == token_for(tmp_path)
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["token"]


@pytest.mark.parametrize(
    "bad", ["", "short", "x" * 20 + "\r\nEvil: 1", "with some spaces in it", "schlüssel" * 3]
)
def test_a_bad_token_does_not_take_the_place_of_a_good_one(tmp_path, bad):
    good = token_for(tmp_path)
    with pytest.raises(InvalidInput) as caught:
        token_for(tmp_path, bad)
    assert not bad or bad not in str(caught.value)
    assert token_for(tmp_path) == good
    assert [p.name for p in tmp_path.iterdir()] == ["token"]


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64])
def test_a_token_file_without_a_secret_is_refused(tmp_path, content):
    (tmp_path / "token").write_bytes(content)
    (tmp_path / "token").chmod(0o600)
    with pytest.raises(Denied):
        token_for(tmp_path)


def test_a_missing_token_file_is_named(tmp_path):
    with pytest.raises(NotFound, match="token"):
        read_token(tmp_path / "token")


def test_processes_that_make_the_token_at_once_agree(tmp_path):
    program = (
        "import sys, pathlib\nfrom holdfast.config import token_for\n"
        "print('ready', flush=True)\nsys.stdin.readline()\nprint(token_for(pathlib.Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "home")]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    tokens = set()
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        out, _ = process.communicate(timeout=30)
        tokens.add(out.strip())
    assert tokens == {read_token(tmp_path / "home" / "token")}
