"""Feeds damaged blocks and CARs to every reader: `python tests/storage/formats/fuzz_readers.py [SECONDS] [SEED]`.

Only holdfast's own errors may come out, within bounded time and memory, and what a reader accepts must be written again
as the same bytes where its format has one spelling. A failure prints the seed and the input that repeat it.
"""

import io
import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.storage.cid import DAG_PB, Cid, write_varint
from holdfast.storage.formats import dag_cbor, dag_json
from holdfast.storage.formats.car import car_blocks, car_frames
from holdfast.storage.formats.dag_pb import PbLink, PbNode, UnixFs, UnixFsType, decode_node, encode_node
from holdfast.storage.formats.unixfs import directory_entries, file_leaves

MAX_PEAK_BYTES = 64 << 20
MAX_LEAVES = 10_000
INTERESTING = [0, 1, 0x12, 0x20, 0x7F, 0x80, 0xA1, 0xD8, 0xFE, 0xFF]

LINK = Cid.of(b"linked")
RECORD = {
    "a": [1, -1, 2**40, 1.5, None, True, "text", b"bytes", LINK],
    "b": {"c": {"d": {}}, "/": [LINK]},
    "long": "x" * 300,
}


def _node(kind: UnixFsType, *links: PbLink, **fields: Any) -> bytes:
    return encode_node(PbNode(links, UnixFs(type=kind, **fields).encode()))


NODES = [
    _node(
        UnixFsType.FILE, PbLink(LINK, "", 6), PbLink(LINK, "", 6), file_size=12, block_sizes=(6, 6), data=None
    ),
    _node(UnixFsType.FILE, file_size=300, data=b"y" * 300),
    _node(UnixFsType.DIRECTORY, PbLink(LINK, "name", 6), PbLink(Cid.of(b"", version=0), "ä" * 40, 0)),
    _node(UnixFsType.SYMLINK, data=b"../target"),
    _node(
        UnixFsType.HAMT_SHARD,
        PbLink(LINK, "00name", 6),
        PbLink(LINK, "FF", 9),
        data=b"\xff",
        hash_type=0x22,
        fanout=256,
    ),
]


def _cars() -> list[bytes]:
    blocks: list[tuple[Cid, bytes]] = [(Cid.of(data, DAG_PB), data) for data in NODES]
    blocks += [
        (LINK, b"linked"),
        (Cid.of(NODES[0], version=0), NODES[0]),
        (Cid.of(b"3", hash="blake3"), b"3"),
    ]
    blocks += [(Cid(b"\x01\x55\x00\x02hi"), b"hi"), (Cid.of(b"large"), b"large")]
    plain = b"".join(car_frames([LINK], blocks))
    numbers = b"".join(number.to_bytes(8, "little") for number in (60, len(plain), 60 + len(plain)))
    return [
        plain,
        bytes.fromhex("0aa16776657273696f6e02") + bytes(16) + numbers + bytes(9) + plain + b"index",
    ]


def read_car(data: bytes) -> None:
    """Every block that comes out must be what its CID names."""
    for cid, block in car_blocks(io.BytesIO(data)):
        assert cid.matches(block)


def read_dag_pb(data: bytes) -> None:
    """A node that is accepted has one spelling."""
    node = decode_node(data)
    assert encode_node(node) == data
    assert UnixFs.decode(node.data or b"").encode()


def read_dag_cbor(data: bytes) -> None:
    """A record that is accepted has one spelling."""
    assert dag_cbor.encode(dag_cbor.decode(data)) == data


def read_dag_json(data: bytes) -> None:
    """A record that is accepted is accepted again as it is written."""
    value = dag_json.decode(data)
    assert dag_json.encode(dag_json.decode(dag_json.encode(value), canonical=True)) == dag_json.encode(value)


def read_unixfs(data: bytes) -> None:
    """A damaged node, read as a file and as a folder; whatever it links to is that node again."""
    root = Cid.of(data, DAG_PB)

    def get(_: Cid) -> bytes:
        return data

    for read in (
        lambda: sum(
            1 for _, _ in zip(range(MAX_LEAVES), file_leaves(root, get, lambda _: None), strict=False)
        ),
        lambda: directory_entries(root, get, lambda _: None),
    ):
        try:
            read()
        except HoldfastError:
            continue


TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "car": (read_car, _cars()),
    "dag-pb": (read_dag_pb, NODES),
    "dag-cbor": (read_dag_cbor, [dag_cbor.encode(RECORD), dag_cbor.encode([RECORD] * 3)]),
    "dag-json": (read_dag_json, [dag_json.encode(RECORD), dag_json.encode([RECORD] * 3)]),
    "unixfs": (read_unixfs, NODES),
}


def mutated(rng: random.Random, corpus: list[bytes]) -> bytes:
    """One of the inputs with a few bytes changed, removed, repeated, or numbers made huge."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.choice(INTERESTING)
        elif kind == 2:
            del data[at : at + rng.randrange(1, 20)]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.randrange(1, 20))
        elif kind == 4:
            data[at:at] = data[at : at + rng.randrange(1, 60)]
        elif kind == 5:
            data[at : at + 1] = write_varint(
                rng.choice([1 << 21, 1 << 31, (1 << 63) - 1, rng.getrandbits(50)])
            )
        elif kind == 6:
            del data[at:]
        else:
            other = rng.choice(corpus)
            data[at : at + rng.randrange(40)] = other[rng.randrange(len(other)) :][: rng.randrange(60)]
    return bytes(data)


def attack(name: str, data: bytes) -> bool:
    """Whether the reader accepted ``data``; any error but holdfast's own goes through."""
    try:
        TARGETS[name][0](data)
    except HoldfastError:
        return False
    return True


def run(seconds: float, seed: int, *, rounds: int | None = None) -> dict[str, int]:
    """Attack all readers in turn; gives how many inputs each accepted.

    Raises:
        AssertionError: A reader broke its promise, or took too much memory; with the input that did it.
    """
    rng = random.Random(seed)
    accepted = dict.fromkeys(TARGETS, 0)
    end = time.monotonic() + seconds
    done = 0
    tracemalloc.start()
    try:
        while (done < rounds) if rounds is not None else (time.monotonic() < end):
            done += 1
            for name, (_, corpus) in TARGETS.items():
                data = mutated(rng, corpus)
                tracemalloc.reset_peak()
                try:
                    accepted[name] += attack(name, data)
                except BaseException as error:
                    raise AssertionError(f"{name}, seed {seed}, round {done}: {data.hex()}") from error
                peak = tracemalloc.get_traced_memory()[1]
                assert peak < MAX_PEAK_BYTES, f"{name} took {peak} bytes for {data.hex()}"
    finally:
        tracemalloc.stop()
    return accepted


def main() -> None:
    """Fuzz for a while with a seed that is printed."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}: inputs accepted by reader:", run(seconds, seed))  # noqa: T201


if __name__ == "__main__":
    main()
