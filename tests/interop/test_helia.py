"""Helia, a current client: it reads what we wrote from our gateway, and names it as we do."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from holdfast.storage.cid import DAG_PB, Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.local.local_store import LocalStore

pytestmark = pytest.mark.interop

NAMES = ["unixfs-v0-2015", "unixfs-v1-2025", "kubo-v1-raw"]


@pytest.fixture
def blocks(tmp_path: Path) -> Iterator[LocalStore]:
    with closing(LocalStore(tmp_path / "blocks")) as blocks:
        yield blocks


@pytest.mark.parametrize("profile", NAMES)
def test_helia_reads_every_byte_of_a_directory_that_we_wrote(
    *,
    profile: str,
    blocks: LocalStore,
    serve: Callable[..., Any],
    helia: Callable[..., Any],
    tree: Path,
    tmp_path: Path,
) -> None:
    root = ContentStore(blocks, profile=profile).add(tree)
    gateway = serve(blocks)
    (count,) = helia([{"do": "copy", "cid": str(root), "to": str(tmp_path / "out")}], gateways=[gateway.url])
    expected = sorted(path.relative_to(tree) for path in tree.rglob("*"))
    copied = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*"))
    assert copied == expected
    assert count == len(expected)
    for name in expected:
        source, copy = tree / name, tmp_path / "out" / name
        assert copy.is_symlink() == source.is_symlink()
        if source.is_symlink():
            assert copy.readlink() == source.readlink()
        elif source.is_file():
            assert copy.read_bytes() == source.read_bytes(), name
    assert gateway.asked  # from us, and not from anywhere else


@pytest.mark.parametrize("profile", NAMES)
def test_a_range_that_helia_reads_is_that_range_and_no_more_is_sent(
    *,
    profile: str,
    blocks: LocalStore,
    serve: Callable[..., Any],
    helia: Callable[..., Any],
    tree: Path,
    tmp_path: Path,
) -> None:
    data = (tree / "5000000.bin").read_bytes()
    cid = ContentStore(blocks, profile=profile).add(tree / "5000000.bin")
    gateway = serve(blocks)
    borders = [262_144, 1_048_576, 4_999_999]
    ranges = [(0, 1), *((border - 1, 2) for border in borders), (1_000_000, 3_000_000), (4_999_990, 100)]
    tasks = [
        {"do": "cat", "cid": str(cid), "to": str(tmp_path / f"{at}+{size}"), "offset": at, "length": size}
        for at, size in ranges
    ]
    helia(tasks, gateways=[gateway.url])
    for at, size in ranges:
        assert (tmp_path / f"{at}+{size}").read_bytes() == data[at : at + size]
    gateway.asked.clear()
    helia([tasks[2] | {"to": str(tmp_path / "alone")}], gateways=[gateway.url])
    assert (tmp_path / "alone").read_bytes() == data[1_048_575:1_048_577]
    assert 2 <= len(set(gateway.asked)) <= 3  # the root, and the two leaves that the border lies between


def test_a_gateway_that_lies_is_not_believed(
    blocks: LocalStore, serve: Callable[..., Any], helia: Callable[..., Any]
) -> None:
    promised = Cid.of(b"what was promised")
    blocks.put_many([(promised, b"what was sent instead")])
    gateway = serve(blocks)
    with pytest.raises(AssertionError, match="rror"):
        helia([{"do": "block", "cid": str(promised)}], gateways=[gateway.url])
    assert gateway.asked


def test_one_block_has_one_answer_under_all_its_names(
    blocks: LocalStore, serve: Callable[..., Any], helia: Callable[..., Any]
) -> None:
    content = b"one block, three names"
    blocks.put_many([(Cid.of(content), content)])
    names = [Cid.of(content), Cid.of(content, DAG_PB), Cid.of(content, version=0)]
    tasks = [{"do": "block", "cid": str(name)} for name in names]
    assert helia(tasks, gateways=[serve(blocks).url]) == [content.hex()] * 3


@pytest.mark.parametrize("profile", NAMES)
def test_helia_gives_everything_the_cid_that_we_give_it(
    profile: str, profiles: dict[str, Any], blocks: LocalStore, helia: Callable[..., Any], tree: Path
) -> None:
    paths = [tree, tree / "many", tree / "empty folder", *sorted(tree.glob("*.bin"))]
    theirs = helia([{"do": "add", "path": str(path), "profile": profiles[profile]} for path in paths])
    ours = ContentStore(blocks, profile=profile)
    assert [Cid.parse(cid) for cid in theirs] == [ours.add(path) for path in paths]
