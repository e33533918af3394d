"""Errors are part of the interface: their classes, codes, statuses and texts."""

from __future__ import annotations

import errno
import json
import pickle
import re

import pytest

from holdfast import errors
from holdfast.errors import (
    Conflict,
    Corrupt,
    Denied,
    ErrorCode,
    HoldfastError,
    InvalidInput,
    NotFound,
    Unavailable,
    Unsupported,
    disk_errors,
    error_from_json,
    require,
)

TREE = {
    NotFound: (LookupError, "not_found", 3, 404),
    Conflict: (RuntimeError, "conflict", 4, 409),
    Corrupt: (ValueError, "corrupt", 5, 502),
    Unavailable: (ConnectionError, "unavailable", 6, 503),
    Denied: (PermissionError, "denied", 7, 401),
    InvalidInput: (ValueError, "invalid_input", 2, 400),
    Unsupported: (NotImplementedError, "unsupported", 8, 501),
}
"""What callers, scripts and other versions rely on: it may grow, and never change."""

EVERY = [HoldfastError, *TREE]


def test_no_error_class_is_missing_from_this_list():
    assert set(HoldfastError.__subclasses__()) == set(TREE)
    assert {code.value for code in ErrorCode} == {"internal"} | {code for _, code, _, _ in TREE.values()}
    assert {cls.__name__ for cls in EVERY} < set(errors.__all__)


@pytest.mark.parametrize(("cls", "contract"), TREE.items(), ids=lambda v: getattr(v, "__name__", ""))
def test_a_class_never_changes_its_builtin_code_or_status(cls, contract):
    builtin, code, exit_status, http_status = contract
    assert issubclass(cls, HoldfastError)
    assert issubclass(cls, builtin)
    assert (cls.code.value, cls.exit_status, cls.http_status) == (code, exit_status, http_status)


@pytest.mark.parametrize("attribute", ["code", "exit_status", "http_status"])
def test_two_classes_can_not_be_confused(attribute):
    assert len({getattr(cls, attribute) for cls in EVERY}) == len(EVERY)


def test_no_exit_status_means_success_or_a_signal():
    assert all(0 < cls.exit_status < 126 for cls in EVERY)


@pytest.mark.parametrize("cls", EVERY)
@pytest.mark.parametrize("text", ["", "bafy is gone: ask again", "ein Wort, ein „Zitat“\n2nd line"])
def test_an_error_is_the_same_behind_a_process_border(cls, text):
    again = pickle.loads(pickle.dumps(cls(text)))
    assert (type(again), str(again), again.args) == (cls, text, (text,))


@pytest.mark.parametrize("cls", EVERY)
def test_an_error_is_the_same_behind_a_server(cls):
    text = "no block bafkqaaa here, try elsewhere"
    again = error_from_json(json.loads(json.dumps(cls(text).to_json())), where="the master")
    assert (type(again), str(again)) == (cls, text)


@pytest.mark.parametrize("code", ["quantum", "", None, 7, ["denied"], {}])
def test_a_code_of_a_newer_version_is_still_an_error_with_its_text(code):
    error = error_from_json({"error": "something new", "code": code}, where="the master")
    assert (type(error), str(error)) == (HoldfastError, "something new")


@pytest.mark.parametrize(
    "body", [None, [], "<html>502</html>", b"\xff", {}, {"error": 5}, {"detail": "x" * 9999}]
)
def test_an_answer_of_something_else_is_not_taken_for_an_error_of_ours(body):
    error = error_from_json(body, where="http://127.0.0.1:1")
    assert type(error) is Unavailable
    assert str(error).startswith("http://127.0.0.1:1 gave an answer that is not holdfast's")
    assert len(str(error)) < 400


def test_a_missing_extra_is_named_with_the_command_that_installs_it():
    with pytest.raises(
        Unsupported, match=r"plotting a run needs the package 'no_such_package'.*'holdfast\[plots\]'"
    ):
        require("no_such_package.pyplot", extra="plots", why="plotting a run")


def test_a_dependency_that_is_there_is_simply_imported():
    assert require("json.decoder", extra="plots", why="this").JSONDecoder is json.JSONDecoder


@pytest.mark.parametrize(
    ("number", "cls"),
    [
        (errno.ENOSPC, Unavailable),
        (errno.EDQUOT, Unavailable),
        (errno.EACCES, Denied),
        (errno.EROFS, Denied),
        (errno.EPERM, Denied),
    ],
)
def test_a_full_or_locked_disk_says_which_folder(number, cls, tmp_path):
    with pytest.raises(cls, match=re.escape(str(tmp_path))) as caught, disk_errors(tmp_path):
        raise OSError(number, "as the kernel says")
    assert isinstance(caught.value.__cause__, OSError)


def test_other_failures_of_the_disk_are_not_dressed_up(tmp_path):
    with pytest.raises(OSError, match="I/O") as caught, disk_errors(tmp_path):
        raise OSError(errno.EIO, "I/O error")
    assert not isinstance(caught.value, HoldfastError)


@pytest.mark.parametrize("cls", [Denied, Unavailable])
def test_our_own_errors_are_not_taken_for_the_disk_s(cls, tmp_path):
    with pytest.raises(cls, match=r"^the peer said so$"), disk_errors(tmp_path):
        raise cls("the peer said so")
