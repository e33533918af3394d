import dataclasses
import os
from urllib.parse import quote, urlsplit

import aiohttp
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from holdfast.errors import NotFound
from holdfast.storage.cid import RAW, Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.formats.unixfs import PROFILES, Node, directory_blocks
from holdfast.storage.gateway.dag_walk import resolve
from tests.storage.gateway.gateway_client import (
    CAR,
    FileStore,
    ask,
    cids_in,
    imported,
    leaves_file,
    talk,
    unpacked,
)

# ------------------------------------------------------------------- CARs: the published conformance cases

MULTIBLOCK = [
    "bafybeigcisqd7m5nf3qmuvjdbakl5bdnh4ocrmacaqkpuh77qjvggmt2sa",
    "bafkreie5noke3mb7hqxukzcy73nl23k6lxszxi5w3dtmuwz62wnvkpsscm",
    "bafkreih4ephajybraj6wnxsbwjwa77fukurtpl7oj7t7pfq545duhot7cq",
    "bafkreigu7buvm3cfunb35766dn7tmqyh2um62zcio63en2btvxuybgcpue",
    "bafkreicll3huefkc3qnrzeony7zcfo7cr3nbx64hnxrqzsixpceg332fhe",
    "bafkreifst3pqztuvj57lycamoi7z34b4emf7gawxs74nwrc2c7jncmpaqm",
]
"""multiblock.txt of the suite: the root, four leaves of 256 bytes, and one of 2."""
DIR_WITH_FILES = "bafybeihchr7vmgjaasntayyatmp5sv6xza57iy2h4xj7g46bpjij6yhrmy"
ASCII = "bafkreifkam6ns4aoolg3wedr4uzrs3kvq66p4pecirz6y2vlrngla62mxm"
HELLO = "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"


@pytest.fixture
def published(public_fixtures, source, node):
    """A node with the blocks of the suite's CARs; its URL."""
    for path in sorted((public_fixtures / "gateway").glob("*.car")):
        imported(path, source)
    return node.url


@pytest.mark.parametrize(
    ("entity_bytes", "leaves"),
    [
        ("0:*", slice(0, 5)),
        ("512:*", slice(2, 5)),
        ("512:1023", slice(2, 4)),
        ("512:-256", slice(2, 4)),
        ("-5:*", slice(3, 5)),
        ("-9999:*", slice(0, 5)),
        ("-9999:-3", slice(0, 4)),
        ("0:0", slice(0, 1)),
        ("255:256", slice(0, 2)),
        ("1025:9999", slice(4, 5)),
        ("1000:-1000", slice(0, 0)),  # crossed: of zero length, so the root alone
    ],
)
def test_entity_bytes_give_the_blocks_that_the_conformance_suite_expects(published, entity_bytes, leaves):
    expected = [MULTIBLOCK[0], *MULTIBLOCK[1:][leaves]]
    query = f"format=car&dag-scope=entity&entity-bytes={entity_bytes}"
    assert cids_in(f"{published}/ipfs/{MULTIBLOCK[0]}?{query}") == expected
    assert cids_in(f"{published}/ipfs/{DIR_WITH_FILES}/multiblock.txt?{query}") == [DIR_WITH_FILES, *expected]


@pytest.mark.parametrize("entity_bytes", ["1026:*", "2000:3000", "-3000:-2000"])
def test_entity_bytes_outside_of_a_file_are_refused(published, entity_bytes):
    status, _, body = ask(f"{published}/ipfs/{MULTIBLOCK[0]}?format=car&entity-bytes={entity_bytes}")
    assert (status, b"1026 bytes" in body) == (400, True)


def test_entity_bytes_of_what_is_no_file_are_ignored(published):
    query = "format=car&entity-bytes=5000:6000"
    assert cids_in(f"{published}/ipfs/{DIR_WITH_FILES}?{query}") == [DIR_WITH_FILES]


@pytest.mark.parametrize(
    ("path", "scope", "expected"),
    [
        ("", "block", [DIR_WITH_FILES]),
        ("", "entity", [DIR_WITH_FILES]),
        ("", "all", [DIR_WITH_FILES, ASCII, HELLO, *MULTIBLOCK]),
        ("", None, [DIR_WITH_FILES, ASCII, HELLO, *MULTIBLOCK]),
        ("/ascii.txt", "block", [DIR_WITH_FILES, ASCII]),
        ("/ascii.txt", "entity", [DIR_WITH_FILES, ASCII]),
        ("/multiblock.txt", "block", [DIR_WITH_FILES, MULTIBLOCK[0]]),
        ("/multiblock.txt", "entity", [DIR_WITH_FILES, *MULTIBLOCK]),
        ("/multiblock.txt", "all", [DIR_WITH_FILES, *MULTIBLOCK]),
    ],
)
def test_a_scope_gives_the_blocks_that_the_conformance_suite_expects(published, path, scope, expected):
    query = "format=car" + (f"&dag-scope={scope}" if scope else "")
    assert cids_in(f"{published}/ipfs/{DIR_WITH_FILES}{path}?{query}") == expected


def test_duplicates_are_sent_as_the_client_asks(published):
    url = f"{published}/ipfs/{DIR_WITH_FILES}"
    with_them = [DIR_WITH_FILES, ASCII, ASCII, HELLO, *MULTIBLOCK]
    without = [DIR_WITH_FILES, ASCII, HELLO, *MULTIBLOCK]
    assert cids_in(url, Accept=f"{CAR}; version=1; order=dfs; dups=y") == with_them
    assert cids_in(url, Accept=f"{CAR}; version=1; order=dfs; dups=n") == without
    assert (
        cids_in(f"{url}?format=car", Accept=f"{CAR};dups=y") == with_them
    )  # the parameters of Accept still count
    assert cids_in(f"{url}?format=car&car-dups=n", Accept=f"{CAR};dups=y") == without  # but the URL's more
    assert cids_in(f"{url}?format=car&car-version=1&car-order=unk") == without
    for accept, dups in ((f"{CAR};dups=y", "y"), (CAR, "n"), (f"{CAR};order=unk", "n")):
        headers = ask(url, Accept=accept)[1]
        assert headers["Content-Type"] == f"{CAR}; version=1; order=dfs; dups={dups}"
        assert headers["Content-Disposition"] == f'attachment; filename="{DIR_WITH_FILES}.car"'
        assert headers["Accept-Ranges"] == "none"


def test_a_path_leads_through_directories_and_says_what_it_passed(published):
    root = "bafybeig6ka5mlwkl4subqhaiatalkcleo4jgnr3hqwvpmsqfca27cijp3i"
    proof = [
        root,
        "bafybeidx5mxi45eqpzxsxdbz4v7gnza6f6arwhnrj5aqak2yqxhlspphta",
        "bafybeih24awytf2cmnuycs4nslllfrdzhd6yliyzgd7mxwuxcgv2gm5mda",
        "bafkreialihlqnf5uwo4byh4n3cmwlntwqzxxs2fg5vanqdi3d7tb2l5xkm",
    ]
    url = f"{published}/ipfs/{root}/{quote('ą/ę/file-źł.txt')}"
    assert cids_in(f"{url}?format=car") == proof
    headers = ask(f"{url}?format=car")[1]
    assert headers["X-Ipfs-Roots"] == ",".join(proof)
    assert headers["X-Ipfs-Path"] == urlsplit(url).path
    assert ask(f"{url}/deeper?format=car")[0] == 404
    assert ask(f"{published}/ipfs/{root}/api/nope?format=car")[0] == 404
    percent = "bafybeig675grnxcmshiuzdaz2xalm6ef4thxxds6o6ypakpghm5kghpc34"
    assert (
        len(
            cids_in(
                f"{published}/ipfs/{percent}/Portugal%252C+Espa%C3%B1a=Peninsula%20Ib%C3%A9rica.txt?format=car"
            )
        )
        == 2
    )


def test_a_path_leads_through_the_links_of_records(published):
    for codec, blocks in {
        "dag-cbor": (
            "bafyreibs4utpgbn7uqegmd2goqz4bkyflre2ek2iwv743fhvylwi4zeeim",
            "bafyreig5alecq2l2akgajxywgnv22kuxh6xcagsnelepylqovt4t5jxt6u",
            "bafyreiaefvpp22slf5bzd4lqgzwbztqahwlldtqkpgmlhv7mh23pudle7y",
        ),
        "dag-json": (
            "baguqeeram5ujjqrwheyaty3w5gdsmoz6vittchvhk723jjqxk7hakxkd47xq",
            "baguqeeraxpdqyfizawpb7zl5gnpg7jw3myuynb42ngzmeo7xn5kmm5pabt6q",
            "baguqeerabz2ohuxlrfgan3sxrgsfeyi5woxikwoiun5i5cesn2zgp3evmy4q",
        ),
    }.items():
        url = f"{published}/ipfs/{blocks[0]}"
        assert cids_in(f"{url}/foo/link/bar?format=car") == list(blocks), codec
        assert cids_in(f"{url}/foo/link?format=car&dag-scope=entity") == list(blocks[:2])
        assert cids_in(f"{url}?format=car") == list(blocks)
        assert ask(f"{url}/foo/nothing?format=car")[0] == 404
        assert ask(f"{url}/foo/link/bar/hello?format=car")[0] == 501  # a value that is no link


# ------------------------------------------------------------------------------------------- CARs: our own cases


def test_a_block_that_is_missing_outside_of_a_range_does_no_harm(files, start_gateway):
    """The suite's file of 3 KiB in 3 blocks without the middle one."""
    leaves = [os.urandom(1024) for _ in range(3)]
    root, made = leaves_file(files, leaves)
    files.forget(made[1])
    url, _ = start_gateway(files)
    for entity_bytes, leaf in (("0:1000", 0), ("2200:*", 2), ("-1:*", 2)):
        assert cids_in(f"{url}/ipfs/{root}?format=car&entity-bytes={entity_bytes}") == [
            str(root),
            str(made[leaf]),
        ]


@pytest.mark.parametrize(
    "query",
    ["format=car", "format=car&dag-scope=entity", "format=car&entity-bytes=0:2000", "format=car&car-dups=y"],
)
@pytest.mark.parametrize("leaf_bytes", [1024, 200_000])
def test_a_car_that_can_not_be_finished_never_ends_as_if_it_were_whole(
    files, start_gateway, query, leaf_bytes
):
    root, made = leaves_file(files, [os.urandom(leaf_bytes) for _ in range(3)])
    files.forget(made[1])
    url, gateway = start_gateway(files)
    query = query.replace("0:2000", f"0:{2 * leaf_bytes - 1}")
    with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError)):
        ask(f"{url}/ipfs/{root}?{query}")
    # Also not in HTTP/1.0, where the end of the connection is the end of the answer.
    with pytest.raises(ConnectionResetError):
        talk(url, f"GET /ipfs/{root}?{query} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
    assert gateway.statistics() == {"streams": 0, "seen": 0}


def test_an_old_client_gets_a_whole_car(files, start_gateway):
    root, _ = leaves_file(files, [os.urandom(200_000), b"small"])
    url, _ = start_gateway(files)
    head, _, body = talk(url, f"GET /ipfs/{root}?format=car HTTP/1.0\r\nHost: x\r\n\r\n".encode()).partition(
        b"\r\n\r\n"
    )
    assert head.startswith(b"HTTP/1.0 200")
    assert len(unpacked(body)) == 3


def sharded_directory(store, count):
    """A HAMT directory of small files of several blocks; its root, and the contents by name."""
    profile = dataclasses.replace(PROFILES["unixfs-v1-2025"], hamt_threshold_bytes=0)
    children, contents = [], {}
    for number in range(count):
        leaves = [f"{number}/{part}".encode() * 20 for part in range(2)]
        root, _ = leaves_file(store, leaves)
        contents[f"{number}.txt"] = b"".join(leaves)
        children.append((f"{number}.txt", Node(root, sum(map(len, leaves)), 0)))
    made = list(_blocks_of(directory_blocks(children, profile)))
    store.put_many(made)
    return made[-1][0], contents, {cid for cid, _ in made}


def _blocks_of(generator):
    yield from generator


def test_a_path_through_a_sharded_directory_brings_its_proof_and_nothing_else(tmp_path, source, node):
    root, contents, shards = sharded_directory(source, 400)
    assert len(shards) > 20
    for name in ("7.txt", "123.txt", "399.txt"):
        url = f"{node.url}/ipfs/{root}/{name}?format=car"
        found = unpacked(ask(url)[2])
        assert {cid for cid, _ in unpacked(ask(f"{url}&dag-scope=block")[2])} - shards == {found[-3][0]}

        def readable(blocks, name=name):
            store = ContentStore(FileStore(tmp_path / os.urandom(8).hex()))
            store.blocks.put_many(blocks)
            return b"".join(store.stream(resolve(store.blocks.get, root, [name]).cid))

        assert readable(found) == contents[name]
        for leave_out in range(len(found)):
            with pytest.raises(NotFound):
                readable(found[:leave_out] + found[leave_out + 1 :])
    assert ask(f"{node.url}/ipfs/{root}/400.txt?format=car")[0] == 404
    entity = cids_in(f"{node.url}/ipfs/{root}?format=car&dag-scope=entity")
    assert sorted(entity) == sorted(map(str, shards))
    assert len(cids_in(f"{node.url}/ipfs/{root}?format=car")) == len(shards) + 3 * 400


@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=30),
    width=st.integers(2, 4),
    first=st.integers(-6000, 6000),
    last=st.none() | st.integers(-6000, 6000),
    dups=st.booleans(),
)
@example(sizes=[10, 0, 0, 10], width=2, first=0, last=None, dups=False)
@example(sizes=[0], width=2, first=0, last=5, dups=False)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_verifier_can_rebuild_exactly_the_range_it_asked_for(  # noqa: PLR0917 -- hypothesis draws them
    tmp_path, files, shared_gateway, sizes, width, first, last, dups
):
    leaves = [bytes([index]) * size for index, size in enumerate(sizes)]
    data = b"".join(leaves)
    root, _ = leaves_file(files, leaves, inner_links=width)
    start = max(0, len(data) + first) if first < 0 else first
    end = len(data) if last is None else min(len(data), (len(data) + last if last < 0 else last) + 1)
    text = f"{first}:{'*' if last is None else last}"
    status, _, body = ask(
        f"{shared_gateway}/ipfs/{root}?format=car&entity-bytes={text}&car-dups={'y' if dups else 'n'}"
    )
    if data and (start >= len(data) or end <= 0 or (last is not None and first >= 0 and 0 <= last < first)):
        assert status == 400
        return
    if status == 400:
        assert last is not None and first >= 0 and 0 <= last < first  # noqa: PT018 -- refused before it is looked up
        return
    assert status == 200
    found = unpacked(body)
    if dups is False:
        assert len({cid for cid, _ in found}) == len(found)
    store = ContentStore(FileStore(tmp_path / os.urandom(8).hex()))
    store.blocks.put_many(found)
    assert found[0][0] == root
    if start < end:
        assert b"".join(store.stream(root, start, end)) == data[start:end]
        if (first, last) != (0, None):  # the whole file comes with its empty leaves, too
            at, wanted = 0, set()
            for leaf in leaves:
                if leaf and at < end and at + len(leaf) > start:
                    wanted.add(Cid.of(leaf))
                at += len(leaf)
            assert {cid for cid, _ in found if cid.codec == RAW} == wanted
    else:
        assert len(found) == 1


@pytest.fixture
def shared_gateway(files, start_gateway):
    return start_gateway(files)[0]
