"""Measures the memory of each command on one large file: `python -m bench.bench_memory [FOLDER] [MIB]`.

Every command is a process of its own. Its high-water mark comes from the kernel (`VmHWM`: all resident pages, those of mapped files as well), and the
most that lay in mapped files from looking every few milliseconds (`RssFile`). The limit for any size of file is 300 MB.
"""

import contextlib
import http.client
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.side_by_side import random_file

LIMIT_BYTES = 300_000_000
LOOK_S = 0.005
CLI = (sys.executable, "-m", "holdfast.cluster.cli")


def status_of(pid: int) -> dict[str, int]:
    """What the kernel says of a process's memory, in bytes; nothing once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    facts = (line.split() for line in lines if line.startswith(("VmHWM:", "RssFile:", "RssAnon:")))
    return {name[:-1]: int(value) << 10 for name, value, _ in facts}


class Watched:
    """A process whose memory is watched until it ends, or is ended."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.most: dict[str, int] = {}
        self.seconds = 0.0

    def look(self) -> None:
        """Note what it has now."""
        for name, value in status_of(self.process.pid).items():
            self.most[name] = max(value, self.most.get(name, 0))

    def until_it_ends(self) -> None:
        """Watch until the process has ended."""
        began = time.perf_counter()
        while self.process.poll() is None:
            self.look()
            time.sleep(LOOK_S)
        self.seconds = time.perf_counter() - began
        if self.process.returncode:
            raise RuntimeError(f"{self.process.args!r} failed")


def show(title: str, watched: Watched) -> None:
    most = {name: value / 1e6 for name, value in watched.most.items()}
    verdict = "" if watched.most["VmHWM"] < LIMIT_BYTES else "  over the limit"
    print(
        f"  {title:<44}{most['VmHWM']:>8,.0f}{most['RssFile']:>10,.0f}{most['RssAnon']:>10,.0f}{watched.seconds:>9.2f}{verdict}",
        flush=True,
    )


def command(title: str, home: Path, *arguments: str, providers: str = "", quiet: bool = True) -> None:
    """Run a command of the command line, and show what it took."""
    environment = {**os.environ, "HOLDFAST_HOME": str(home)}
    if providers:
        environment["HOLDFAST_FETCH__PROVIDERS"] = providers
    process = subprocess.Popen(
        [*CLI, *arguments],
        env=environment,
        text=True,
        stdout=subprocess.DEVNULL if quiet else None,
        stderr=subprocess.DEVNULL,
    )
    watched = Watched(process)
    watched.until_it_ends()
    show(title, watched)


@contextlib.contextmanager
def gateway(home: Path) -> Iterator[tuple[str, Watched]]:
    process = subprocess.Popen(
        [*CLI, "gateway", "--port", "0", "--json"],
        env={**os.environ, "HOLDFAST_HOME": str(home)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        url = re.search(r"http://[0-9.]+:[0-9]+", "".join(iter(process.stdout.readline, "}\n")))
        assert url is not None
        yield url[0], Watched(process)
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def download(url: str, path: str, watched: Watched) -> None:
    host = url.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(host, timeout=120)
    began = time.perf_counter()
    connection.request("GET", path)
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"{path}: {response.status}")
    looked = began
    while response.read(1 << 20):
        if time.perf_counter() > looked + LOOK_S:
            watched.look()
            looked = time.perf_counter()
    watched.look()
    watched.seconds = time.perf_counter() - began
    connection.close()


def cid_of(home: Path, path: Path, *arguments: str) -> str:
    done = subprocess.run(
        [*CLI, "add", str(path), "--cid-only", *arguments, "--home", str(home)],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def measure(folder: Path, mebibytes: int) -> None:
    source = random_file(folder / "source", mebibytes << 20)
    home = folder / "home"
    print(f"\nMemory on a file of {mebibytes} MiB (MB; limit {LIMIT_BYTES / 1e6:.0f})")
    print(f"  {'':<44}{'VmHWM':>8}{'RssFile':>10}{'RssAnon':>10}{'seconds':>9}")
    command("help (nothing done)", home, "--help")
    command("add", home, "add", str(source))
    command("add --no-copy", folder / "by-reference", "add", str(source), "--no-copy")
    cid = cid_of(home, source)
    command("get", home, "get", cid, "-o", str(folder / "out"))
    (folder / "out").unlink()
    command("get, added with --no-copy", folder / "by-reference", "get", cid, "-o", str(folder / "out"))
    (folder / "out").unlink()
    command("cat", home, "cat", cid)
    command("pin add", home, "pin", "add", cid)
    command("export", home, "export", cid, "-o", str(folder / "x.car"))
    command("import", folder / "imported", "import", str(folder / "x.car"))
    (folder / "x.car").unlink()
    command("fsck", home, "fsck")
    command("fsck, added with --no-copy", folder / "by-reference", "fsck")
    with gateway(home) as (url, watched):
        for title, path in (
            ("gateway: the file", f"/ipfs/{cid}"),
            ("gateway: a CAR", f"/ipfs/{cid}?format=car"),
        ):
            download(url, path, watched)
            show(f"{title} (since its start)", watched)
        command("get from a peer", folder / "peer", "get", cid, "-o", str(folder / "out"), providers=url)
        watched.look()
        show("gateway: the blocks (since its start)", watched)
    (folder / "out").unlink()
    half = folder / "half"
    with source.open("rb") as whole, half.open("wb") as part:
        os.copy_file_range(whole.fileno(), part.fileno(), mebibytes << 19)
    second = folder / "collected"
    environment = {**os.environ, "HOLDFAST_STORAGE__GRACE_S": "0"}
    first = cid_of(second, source)
    cid_of(second, random_file(folder / "kept", mebibytes << 20))
    subprocess.run(
        [*CLI, "pin", "rm", first, "--home", str(second)],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    os.environ["HOLDFAST_STORAGE__GRACE_S"] = "0"
    time.sleep(1.1)
    command("gc, which copies what is kept", second, "gc", "--yes")


def main() -> None:
    arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory(dir=arguments[0] if arguments else None) as folder:
        measure(Path(folder), int(arguments[1]) if len(arguments) > 1 else 1024)


if __name__ == "__main__":
    main()
