import os
from urllib.parse import quote

import pytest

from holdfast.storage.cid import Cid
from holdfast.storage.testing import block
from tests.storage.gateway.gateway_client import CAR, ask


@pytest.mark.parametrize("size", [1000, 300_000])
@pytest.mark.parametrize(
    ("header", "bounds"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=10-19", (10, 20)),
        ("bytes=990-", (990, None)),
        ("bytes=-10", (-10, None)),
        ("bytes=-999999", (0, None)),
        ("bytes=5-999999", (5, None)),
        ("Bytes = 10-19 ", (10, 20)),
    ],
)
def test_a_range_of_a_block_is_exactly_that(node, source, size, header, bounds):
    cid, data = block(os.urandom(size))
    source.put_many([(cid, data)])
    status, headers, body = ask(f"{node.url}/ipfs/{cid}?format=raw", Range=header)
    first, last, _ = slice(*bounds).indices(size)
    assert (status, body) == (206, data[slice(*bounds)])
    assert headers["Content-Range"] == f"bytes {first}-{last - 1}/{size}"


@pytest.mark.parametrize("header", ["bytes=1000-", "bytes=1000-2000", "bytes=-0", "bytes=5000-6000,7000-"])
def test_a_range_outside_of_a_block_is_refused_with_its_size(node, source, header):
    cid, data = block(bytes(1000))
    source.put_many([(cid, data)])
    status, headers, body = ask(f"{node.url}/ipfs/{cid}?format=raw", Range=header)
    assert (status, headers["Content-Range"], body) == (416, "bytes */1000", b"")


@pytest.mark.parametrize(
    "header",
    [
        "bytes=",
        "bytes=a-b",
        "bytes=5",
        "bytes=9-5",
        "items=0-5",
        "bytes=--5",
        "bytes=\xb2-5",
        "bytes=1-2,5-6",
        "bytes=" + "9" * 40 + "-",
    ],
)
def test_a_range_that_is_none_gives_the_whole_block(node, source, header):
    cid, data = block(bytes(1000))
    source.put_many([(cid, data)])
    assert ask(f"{node.url}/ipfs/{cid}?format=raw", Range=header)[::2] == (200, data)


def test_a_range_of_another_version_is_not_glued_to_this_one(node, source):
    cid, data = block(bytes(1000))
    source.put_many([(cid, data)])
    url = f"{node.url}/ipfs/{cid}?format=raw"
    assert ask(url, Range="bytes=0-9", If_Range='"other"')[0] == 200
    assert ask(url, Range="bytes=0-9", If_Range=ask(url)[1]["Etag"])[0] == 206


@pytest.mark.parametrize(
    ("query", "accept"),
    [
        ("", ""),
        ("", "*/*"),
        ("", "text/html"),
        ("", "application/vnd.ipld.raw;q=0"),
        ("?format=", ""),
        ("?format=RAW", ""),
        ("?format=bogus", "application/vnd.ipld.raw"),
        ("?format=ipns-record", ""),
        ("", "application/vnd.ipfs.ipns-record"),
        ("?format=tar", ""),
        ("", "application/x-tar"),
        ("?format=dag-json", ""),
        ("?format=json", ""),
        ("?format=car&car-version=2", ""),
        ("", f"{CAR}; version=2"),
        ("?format=car&car-order=bfs", ""),
        ("?format=car&car-dups=maybe", ""),
        ("?format=car&dag-scope=everything", ""),
        ("?format=car&dag-scope=", ""),
        ("?format=car&entity-bytes=", ""),
        ("?format=car&entity-bytes=5", ""),
        ("?format=car&entity-bytes=a:b", ""),
        ("?format=car&entity-bytes=*:5", ""),
        ("?format=car&entity-bytes=9:5", ""),
        ("?format=car&entity-bytes=1:2:3", ""),
        ("?format=car&entity-bytes=1:" + "9" * 5000, ""),
    ],
)
def test_what_is_not_served_is_refused_with_a_hint_not_guessed(node, source, query, accept):
    source.put_many([block(b"x")])
    status, _, body = ask(f"{node.url}/ipfs/{Cid.of(b'x')}{query}", Accept=accept)
    assert status == (406 if "tar" in query + accept or "json" in query else 400)
    assert b"ask for" in body or b"say what you want" in body or b"entity-bytes" in body


@pytest.mark.parametrize(
    "accept",
    [
        "application/vnd.ipld.raw, */*",
        "*/*, application/vnd.ipld.raw",
        f"{CAR};q=0.5, application/vnd.ipld.raw",
        "application/signed-exchange;v=b3, application/vnd.ipld.raw;q=0.1",
        "APPLICATION/VND.IPLD.RAW; x=y",
    ],
)
def test_the_best_of_what_a_client_accepts_is_chosen(node, source, accept):
    source.put_many([block(b"x")])
    assert (
        ask(f"{node.url}/ipfs/{Cid.of(b'x')}", Accept=accept)[1]["Content-Type"] == "application/vnd.ipld.raw"
    )


@pytest.mark.parametrize("name", ["plain.bin", 'a"b\\c/d\r\ne', "tæst ☃.bin", "x" * 2000])
def test_a_file_name_that_is_asked_for_can_not_break_the_header(node, source, name):
    source.put_many([block(b"x")])
    headers = ask(f"{node.url}/ipfs/{Cid.of(b'x')}?format=raw&filename={quote(name)}")[1]
    disposition = headers["Content-Disposition"]
    assert disposition.startswith('attachment; filename="')
    assert disposition.count('"') == 2
    assert disposition.isascii()
    assert len(disposition) < 1200
