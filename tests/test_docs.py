"""The documents' code is run, so that they can't promise what the code does not do."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from holdfast.cluster.cli import parser

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: Path, language: str) -> list[tuple[str, str]]:
    """The code blocks of a language: what stands behind it, and the code."""
    return [
        (info.strip(), code) for name, info, code in _FENCE.findall(document.read_text()) if name == language
    ]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks(d, "python")], ids=lambda d: d.stem)
def test_every_python_block_does_what_the_text_says(document: Path, tmp_path: Path):
    found = blocks(document, "python")
    assert any("no-run" not in info for info, _ in found), "nothing of this document is run"
    for number, (info, code) in enumerate(found):
        ast.parse(code)
        if "no-run" in info:
            continue
        script = tmp_path / (info.removeprefix("file=") if info else f"block_{number}.py")
        script.write_text(code)
        environment = {**os.environ, "HOLDFAST_HOME": str(tmp_path / "home"), "NO_PROXY": "*"}
        done = subprocess.run(
            [sys.executable, "-W", "error::UserWarning:__main__", str(script)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, f"block {number + 1} of {document.name}:\n{done.stdout}\n{done.stderr}"


def commands() -> dict[str, Any]:
    return next(a.choices for a in parser()._actions if isinstance(a.choices, dict))


def understood(line: str) -> bool:
    """Whether a line of a shell gives the command line arguments that it takes; what follows two spaces is a remark."""
    line = line[line.index("holdfast ") :]
    unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", lambda quoted: "x" * len(quoted[0]), line)
    end = re.search(r"\s#|\s[|<>&]|\s{2,}|$", unquoted)
    assert end is not None
    try:
        parser().parse_args(shlex.split(line[: end.start()])[1:])
    except SystemExit:
        return False
    return True


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.stem)
def test_every_command_in_the_documents_is_understood(document: Path):
    code = "\n".join(code for _, code in blocks(document, "console"))
    wrong = [line for line in re.findall(r"^holdfast .*$", code, re.MULTILINE) if not understood(line)]
    assert wrong == []
    for name in re.findall(r"`holdfast ([a-z-]+)", document.read_text()):
        assert name in commands()


def parsers(of: Any) -> dict[str, Any]:
    """A parser and all below it, by what is typed for them."""
    found = {of.prog: of}
    for action in of._actions:
        for below in action.choices.values() if isinstance(action.choices, dict) else ():
            found |= parsers(below)
    return found


@pytest.mark.parametrize("name", parsers(parser()))
def test_every_command_shows_examples_that_are_understood(name: str):
    text = parsers(parser())[name].format_help()
    _, _, examples = text.partition("\nexamples:\n")
    lines = [line for line in examples.split("\n\n")[0].splitlines() if "holdfast " in line]
    assert lines, f"{name} shows no example"
    assert [line for line in lines if not understood(line)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.stem)
def test_every_link_inside_the_project_leads_somewhere(document: Path):
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links {target}"
