import json
import os
import re
from contextlib import closing
from html.parser import HTMLParser
from urllib.parse import quote, unquote, urljoin, urlsplit

import aiohttp
import pytest

from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.cid import DAG_CBOR, DAG_PB, Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.formats import dag_cbor, dag_json
from holdfast.storage.formats.dag_pb import PbLink, PbNode, UnixFs, UnixFsType, encode_node
from holdfast.storage.gateway import web_gateway
from holdfast.storage.gateway.web_gateway import gateway_app, media_type
from holdfast.storage.testing import block
from tests.storage.gateway.gateway_client import (
    TOKEN,
    ask,
    cids_in,
    connect,
    imported,
    leaves_file,
    talk,
    until,
)

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


class Page(HTMLParser):
    """The links and the text of a page; scripts are counted."""

    def __init__(self, body):
        super().__init__()
        self.links, self.text, self.scripts = [], "", 0
        self.feed(body.decode())

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script" or any(name.startswith("on") for name, _ in attrs)
        if tag == "a":
            self.links.append(dict(attrs)["href"])

    def handle_data(self, data):
        self.text += data


@pytest.fixture(params=["local store", "file store"])
def source(request, blocks, files):
    return blocks if request.param == "local store" else files


@pytest.fixture
def store(source):
    return ContentStore(source)


@pytest.fixture
def gateway(serve, store):
    return serve(gateway_app(store))


@pytest.fixture
def published(public_fixtures, source, gateway):
    """A gateway with the blocks of the conformance suite's CARs; its URL."""
    for path in sorted((public_fixtures / "gateway").glob("*.car")):
        imported(path, source)
    return gateway


# ------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("size", [0, 1, 100_000, (1 << 20) + 1, 5 << 20])
def test_a_file_does_not_change_on_its_way(gateway, store, size):
    data = os.urandom(size)
    cid = store.add_bytes(data)
    for accept in (BROWSER, "*/*"):
        status, headers, body = ask(f"{gateway}/ipfs/{cid}", Accept=accept)
        assert (status, body) == (200, data)
        assert headers["Content-Length"] == str(size)
        assert headers["Etag"] == f'"{cid}"'
        assert headers["Cache-Control"] == "public, max-age=29030400, immutable"
    status, headers, body = ask(f"{gateway}/ipfs/{cid}", method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(size), b"")


@pytest.mark.parametrize("profile", ["unixfs-v0-2015", "kubo-v1-raw"])
def test_a_file_of_another_profile_is_the_same_file(serve, source, profile):
    store = ContentStore(source, profile=profile)
    data = os.urandom(700_000)
    cid = store.add_bytes(data)
    gateway = serve(gateway_app(store))
    assert ask(f"{gateway}/ipfs/{cid}")[2] == data
    assert ask(f"{gateway}/ipfs/{cid}", Range="bytes=300000-600000")[2] == data[300_000:600_001]


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("a.html", b"x", "text/html; charset=utf-8"),
        ("a.HTML", b"x", "text/html; charset=utf-8"),
        ("a.txt", "é".encode(), "text/plain; charset=utf-8"),
        ("a.txt", "é".encode("latin-1"), "text/plain"),
        ("a.svg", b"<svg", "image/svg+xml"),
        ("a.mjs", b"x", "text/javascript; charset=utf-8"),
        ("a.css", b"x", "text/css; charset=utf-8"),
        ("a.json", b"{}", "application/json"),
        ("a.md", b"# x", "text/markdown; charset=utf-8"),
        ("a.tar.gz", b"x", "application/gzip"),
        ("a.parquet", b"PAR1", "application/vnd.apache.parquet"),
        ("a.safetensors", b"\0\1", "application/octet-stream"),
        ("LICENSE", b"Apache", "text/plain; charset=utf-8"),
        ("LICENSE", "é".encode() * 600, "text/plain; charset=utf-8"),
        ("noname", ("x" + "é" * 600).encode()[:1024], "text/plain; charset=utf-8"),  # cut within a letter
        ("noname", b"\x89PNG\r\n\x1a\n\0", "image/png"),
        ("noname", b"  <!DOCTYPE html><p>", "text/html; charset=utf-8"),
        ("noname", b"\xff\xfe\0\1", "application/octet-stream"),
        ("noname", b"text with \0", "application/octet-stream"),
        ("", b"", "text/plain; charset=utf-8"),
        ("data:text/html,x", b"\0", "application/octet-stream"),
    ],
)
def test_a_browser_is_told_what_it_gets(name, head, expected):
    assert media_type(name, head) == expected


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=6-16", 6, 17),
        ("bytes=-3", -3, None),
        ("bytes=1048570-1048590", 1_048_570, 1_048_591),
        ("bytes=2000000-", 2_000_000, None),
    ],
)
def test_a_range_of_a_file_is_exactly_that(gateway, store, header, start, end):
    data = os.urandom(3 << 20)
    cid = store.add_bytes(data)
    status, headers, body = ask(f"{gateway}/ipfs/{cid}", Range=header)
    first, last, _ = slice(start, end).indices(len(data))
    assert (status, body) == (206, data[start:end])
    assert headers["Content-Range"] == f"bytes {first}-{last - 1}/{len(data)}"
    assert headers["Content-Length"] == str(last - first)
    assert ask(f"{gateway}/ipfs/{cid}", method="HEAD", Range=header)[1]["Content-Length"] == str(last - first)


def test_several_ranges_come_as_parts(published):
    url = f"{published}/ipfs/bafybeihchr7vmgjaasntayyatmp5sv6xza57iy2h4xj7g46bpjij6yhrmy/ascii.txt"
    status, headers, body = ask(url, Range="bytes=6-16,0-4")
    assert status == 206
    kind, _, boundary = headers["Content-Type"].partition("; boundary=")
    assert kind == "multipart/byteranges"
    mark = boundary.encode()
    parts = body.split(b"--" + mark)
    assert parts[0] == b"\r\n"
    assert (
        parts[1]
        == b"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Range: bytes 6-16/31\r\n\r\napplication\r\n"
    )
    assert (
        parts[2]
        == b"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Range: bytes 0-4/31\r\n\r\nhello\r\n"
    )
    assert parts[3] == b"--\r\n"
    assert int(headers["Content-Length"]) == len(body)


def test_nobody_gets_more_than_the_file_by_asking_for_ranges(gateway, store):
    cid = store.add_bytes(bytes(1000))
    for header in (
        "bytes=" + ",".join(["0-999"] * 10),
        "bytes=" + ",".join(f"{i}-{i}" for i in range(100)),
        "bytes=5",
        "lines=1-2",
    ):
        assert ask(f"{gateway}/ipfs/{cid}", Range=header)[::2] == (200, bytes(1000))
    status, headers, _ = ask(f"{gateway}/ipfs/{cid}", Range="bytes=1000-")
    assert (status, headers["Content-Range"]) == (416, "bytes */1000")
    assert ask(f"{gateway}/ipfs/{cid}", Range="bytes=0-9", If_Range='"other"')[0] == 200


def test_a_range_does_not_need_the_rest_of_the_file(serve, files):
    leaves = [b"a" * 1024, b"b" * 1024, b"c" * 1024]
    root, made = leaves_file(files, leaves)
    files.forget(made[1])
    gateway = serve(gateway_app(ContentStore(files)))
    for header, expected in (("bytes=997-1000", b"aaaa"), ("bytes=2200-2201", b"cc")):
        status, headers, body = ask(f"{gateway}/ipfs/{root}", Range=header)
        assert (status, body, headers["Content-Type"]) == (206, expected, "text/plain; charset=utf-8")
    files.forget(made[0])
    assert ask(f"{gateway}/ipfs/{root}", Range="bytes=2200-2201")[::2] == (206, b"cc")


def test_a_file_that_can_not_be_finished_never_ends_as_if_it_were_whole(serve, files):
    root, made = leaves_file(files, [os.urandom(200_000) for _ in range(3)])
    files.forget(made[1])
    gateway = serve(gateway_app(ContentStore(files)))
    with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError)):
        ask(f"{gateway}/ipfs/{root}")
    with pytest.raises(ConnectionResetError):
        talk(gateway, f"GET /ipfs/{root} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
    files.forget(made[0])
    assert ask(f"{gateway}/ipfs/{root}")[0] == 404  # nothing was sent yet: it can still be told


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_failing_disk_is_never_shown_to_a_browser(serve, files, wrapped):
    root, made = leaves_file(files, [b"good bytes", b"more good bytes"])
    gateway = serve(gateway_app(ContentStore(VerifyingStore(files, source="the disk") if wrapped else files)))
    files.path.write_bytes(files.path.read_bytes().replace(b"good", b"evil"))
    for cid in (made[0], root):
        status, _, body = ask(f"{gateway}/ipfs/{cid}", Accept=BROWSER)
        assert (status, b"evil" in body) == (502, False)


def test_a_download_has_the_name_that_is_asked_for(gateway, store):
    root = store.add_files({"a b.txt": b"x"})
    url = f"{gateway}/ipfs/{root}/a%20b.txt"
    assert "Content-Disposition" not in ask(url)[1]
    assert ask(f"{url}?download=1")[1]["Content-Disposition"] == 'attachment; filename="a b.txt"'
    assert ask(f"{url}?download=true&filename=t%C3%A6st.pdf")[1]["Content-Disposition"] == (
        "attachment; filename=\"t_st.pdf\"; filename*=UTF-8''t%C3%A6st.pdf"
    )
    headers = ask(f"{url}?filename=x.html")[1]
    assert headers["Content-Disposition"] == 'inline; filename="x.html"'
    assert headers["Content-Type"] == "text/html; charset=utf-8"


# ------------------------------------------------------------------------------------------- directories

CACHE_ROOT = "bafybeib3ffl2teiqdncv3mkz4r23b5ctrwkzrrhctdbne6iboayxuxk5ui"
CACHE_ROOTS = [
    CACHE_ROOT,
    "bafybeih2w7hjocxjg6g2ku25hvmd53zj7og4txpby3vsusfefw5rrg5sii",
    "bafybeiawdvhmjcz65x5egzx4iukxc72hg4woks6v6fvgyupiyt3oczk5ja",
    "bafybeifq2rzpqnqrsdupncmkmhs3ckxxjhuvdcbvydkgvch3ms24k5lo7q",
    "bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am",
]


def test_a_directory_is_cached_as_the_conformance_suite_expects(published):
    listing = f"{published}/ipfs/{CACHE_ROOT}/root2/root3/"
    status, headers, _ = ask(listing)
    assert status == 200
    assert headers["X-Ipfs-Path"] == f"/ipfs/{CACHE_ROOT}/root2/root3/"
    assert headers["X-Ipfs-Roots"] == ",".join(CACHE_ROOTS[:3])
    assert re.fullmatch(rf'"DirIndex-.*_CID-{CACHE_ROOTS[2]}"', headers["Etag"])
    assert headers["Cache-Control"] == "public, max-age=604800, stale-while-revalidate=2678400"
    for known in (headers["Etag"], f"W/{headers['Etag']}", f'W/"{CACHE_ROOTS[2]}"'):
        assert ask(listing, If_None_Match=known)[0] == 304
    for path, roots, cid in (
        ("root2/root3/root4/", CACHE_ROOTS[:4], CACHE_ROOTS[3]),
        ("root2/root3/root4/index.html", CACHE_ROOTS, CACHE_ROOTS[4]),
    ):
        url = f"{published}/ipfs/{CACHE_ROOT}/{path}"
        status, headers, body = ask(url)
        assert (status, body, headers["Etag"]) == (200, b"hello\n", f'"{cid}"')
        assert headers["X-Ipfs-Roots"] == ",".join(roots)
        assert headers["Cache-Control"] == "public, max-age=29030400, immutable"
        for known in (f'"{cid}"', f'W/"{cid}"', f'"one", "two", "{cid}"', "*"):
            assert ask(url, If_None_Match=known)[0] == 304


def test_a_directory_without_its_slash_is_redirected_with_its_query(published):
    root = "bafybeig6ka5mlwkl4subqhaiatalkcleo4jgnr3hqwvpmsqfca27cijp3i"
    status, headers, _ = ask(f"{published}/ipfs/{root}/%C4%85/%C4%99?filename=x")
    assert (status, headers["Location"]) == (301, f"/ipfs/{root}/%C4%85/%C4%99/?filename=x")


def test_every_link_of_a_listing_leads_where_it_says(gateway, store):
    names = [
        "plain.txt",
        "a b.txt",
        "ą.txt",
        "100%.txt",
        "what?.txt",
        "#1.txt",
        "javascript:alert(1)",
        "a&amp;b",
        "x:y",
        "sub/inner.txt",
    ]
    root = store.add_files({name: name.encode() for name in names})
    _, headers, body = ask(f"{gateway}/ipfs/{root}/", Accept=BROWSER)
    page = Page(body)
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    shown = [link for link in page.links if link.startswith("./")]
    assert sorted(unquote(link[2:]) for link in shown) == sorted([*names[:-1], "sub/"])
    for link in shown:
        address = urljoin(f"{gateway}/ipfs/{root}/", link)
        assert urlsplit(address).netloc == urlsplit(gateway).netloc
        expected = b"inner" if link == "./sub/" else unquote(link[2:]).encode()
        assert expected in ask(address)[2]
    assert ".." not in page.links
    below = Page(ask(f"{gateway}/ipfs/{root}/sub/", Accept=BROWSER)[2])
    assert ".." in below.links
    assert f"/ipfs/{root}/sub/" in below.links


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "'onclick='x",
        "\u202egnp.exe",
        "a\nb",
        "&lt;b&gt;",
    ],
)
def test_a_name_can_not_become_part_of_the_page(gateway, store, name):
    name = name.replace("/", "|")
    root = store.add_files({f"{name}/{name}": b"x"})
    for path in ("", quote(name, safe="") + "/"):
        _, headers, body = ask(f"{gateway}/ipfs/{root}/{path}", Accept=BROWSER)
        page = Page(body)
        assert page.scripts == 0
        assert b"<img" not in body
        assert "\u202e" not in body.decode()
        assert "default-src 'none'" in headers["Content-Security-Policy"]
    status, _, body = ask(f"{gateway}/ipfs/{root}/{quote('nope' + name, safe='')}", Accept=BROWSER)
    assert (status, Page(body).scripts, b"<img" in body) == (404, 0, False)


def test_a_huge_directory_does_not_become_a_huge_page(gateway, store, source, monkeypatch):
    monkeypatch.setattr(web_gateway, "MAX_LISTED", 100)
    leaf = Cid.of(b"x")
    source.put_many([(leaf, b"x")])
    links = tuple(PbLink(leaf, f"{i:05}", 1) for i in range(150))
    plain = encode_node(PbNode(links, UnixFs(type=UnixFsType.DIRECTORY).encode()))
    source.put_many([(Cid.of(plain, DAG_PB), plain)])
    sharded = store.add_files({f"{i:05}-{'n' * 200}": b"x" for i in range(1200)})
    for cid in (Cid.of(plain, DAG_PB), sharded):
        body = ask(f"{gateway}/ipfs/{cid}/", Accept=BROWSER)[2]
        assert len([link for link in Page(body).links if link.startswith("./")]) == 100
        assert "it has more" in Page(body).text


def test_a_listing_of_many_names_is_complete_and_in_order(gateway, store):
    names = [f"{i:04}-{'n' * 200}" for i in range(1500)]
    root = store.add_files(dict.fromkeys(names, b"x"))
    assert [
        link[2:] for link in Page(ask(f"{gateway}/ipfs/{root}/")[2]).links if link.startswith("./")
    ] == names


def test_a_symbolic_link_is_shown_not_followed(published, gateway, store, tmp_path):
    root = "QmWvY6FaqFMS89YAQ9NAPjVP4WZKA1qbHbicc9HeSKQTgt"
    assert ask(f"{published}/ipfs/{root}/bar")[::2] == (200, b"foo")
    page = Page(ask(f"{published}/ipfs/{root}/")[2])
    assert {"./foo", "./bar"} <= set(page.links)
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "out").symlink_to("/etc/passwd")
    (folder / "up").symlink_to("../../..")
    cid = store.add(folder)
    status, headers, body = ask(f"{gateway}/ipfs/{cid}/out")
    assert (status, body, headers["Content-Type"]) == (200, b"/etc/passwd", "text/plain; charset=utf-8")
    assert ask(f"{gateway}/ipfs/{cid}/up/x")[0] == 404


def test_a_name_with_percent_signs_is_found(published):
    root = "bafybeig675grnxcmshiuzdaz2xalm6ef4thxxds6o6ypakpghm5kghpc34"
    url = f"{published}/ipfs/{root}/Portugal%252C+Espa%C3%B1a=Peninsula%20Ib%C3%A9rica.txt"
    assert ask(url)[2] == b"hello from a percent encoded filename\n"


# ----------------------------------------------------------------------------------------------- records


def test_a_record_is_shown_to_people_and_given_to_programs(gateway, store):
    target = store.add_bytes(b"<linked>")
    record = {"name": "<b>bold</b>", "data": target, "raw": b"\0\1", "numbers": [1, 2.5, None, True]}
    cid = store.put_record(record)
    url = f"{gateway}/ipfs/{cid}"
    status, headers, body = ask(url, Accept=BROWSER)
    page = Page(body)
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "<b>bold</b>" in page.text
    assert f"/ipfs/{target}" in page.links
    assert page.scripts == 0
    assert ask(url)[2] == dag_cbor.encode(record)
    assert ask(url)[1]["Content-Type"] == "application/vnd.ipld.dag-cbor"
    for query in ("?format=dag-json", "?format=json"):
        _, headers, body = ask(url + query)
        assert dag_json.decode(body) == record
        assert headers["Content-Type"] == (
            "application/json" if query.endswith("=json") else "application/vnd.ipld.dag-json"
        )
    assert json.loads(ask(url, Accept="application/json")[2])["name"] == "<b>bold</b>"
    assert dag_cbor.decode(ask(f"{url}?format=dag-cbor")[2]) == record
    assert ask(f"{url}/data", Accept=BROWSER)[2] == b"<linked>"
    etags = {
        ask(url + query, Accept=accept)[1]["Etag"]
        for query, accept in (("", BROWSER), ("", "*/*"), ("?format=dag-json", "*/*"))
    }
    assert len(etags) == 3


def test_a_record_with_a_text_that_looks_like_a_link_is_not_linked(gateway, store):
    cid = store.put_record({"x": "/ipfs/ javascript:alert(1)", "y": {"z": str(Cid.of(b"not a link"))}})
    links = Page(ask(f"{gateway}/ipfs/{cid}", Accept=BROWSER)[2]).links
    assert all(str(cid) in link for link in links)


def test_plain_json_and_cbor_blocks_keep_their_types(published):
    for cid, kind in (
        ("bagaaierajjsnhsxqlgfrvknlt7z2heoljcgfv37cn45tu7mhmr23x3ekiboq", "application/json"),
        ("bafireif3aymeikgfbofx533yf5vlx4kimzq6zmzmpra2mnzfsfnmv4hchm", "application/cbor"),
    ):
        status, headers, body = ask(f"{published}/ipfs/{cid}")
        assert (status, headers["Content-Type"]) == (200, kind)
        assert Cid.parse(cid).matches(body)


# ------------------------------------------------------------------------------------------------ security


def test_what_strangers_wrote_has_no_share_in_the_origin(gateway, store):
    root = store.add_files(
        {
            "evil.html": b"<script>document.cookie</script>",
            "evil.svg": b"<svg/>",
            "x": b"<html>",
            "i/index.html": b"x",
        }
    )
    for path in ("evil.html", "evil.svg", "x", "i/", "evil.html?filename=y.xhtml"):
        headers = ask(f"{gateway}/ipfs/{root}/{path}", Accept=BROWSER)[1]
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("sandbox ")
        assert "allow-same-origin" not in policy
        assert "allow-top-navigation" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers
        assert "Set-Cookie" not in headers
    cid = store.put_record({"x": "<script>"})
    assert "default-src 'none'" in ask(f"{gateway}/ipfs/{cid}", Accept=BROWSER)[1]["Content-Security-Policy"]


def test_no_service_worker_comes_from_here(gateway, store):
    root = store.add_files({"worker.js": b"x"})
    for path in ("", "/", "/worker.js"):
        assert ask(f"{gateway}/ipfs/{root}{path}", Service_Worker="script")[0] == 400


def test_a_gateway_with_a_token_gives_strangers_nothing_and_people_a_cookie(serve, store):
    cid = store.add_bytes(b"private")
    gateway = serve(gateway_app(store, token=TOKEN))
    for path in (f"/ipfs/{cid}", f"/ipfs/{cid}?format=raw", f"/ipfs/{cid}?format=car", "/metrics", "/ipns/x"):
        assert ask(gateway + path)[0] == 401
        assert ask(gateway + path, Authorization="Bearer wrong")[0] == 401
    assert ask(f"{gateway}/healthz")[0] == 200
    assert ask(f"{gateway}/")[0] == 200
    assert ask(f"{gateway}/ipfs/{cid}", Authorization=f"Bearer {TOKEN}")[2] == b"private"
    status, headers, _ = ask(f"{gateway}/?token=wrong")
    assert (status, "Set-Cookie" in headers) == (401, False)
    status, headers, _ = ask(f"{gateway}/?token={TOKEN}")
    assert (status, headers["Location"]) == (303, "/")
    assert "HttpOnly" in headers["Set-Cookie"]
    assert "SameSite=Strict" in headers["Set-Cookie"]
    status, answer, body = ask(f"{gateway}/ipfs/{cid}", Cookie=headers["Set-Cookie"].split(";")[0])
    assert (status, body) == (200, b"private")
    assert answer["Cache-Control"].startswith("private")


def test_other_origins_read_only_where_that_was_allowed(serve, store):
    cid = store.add_bytes(b"x")
    gateway = serve(gateway_app(store, allow_origin="*"))
    for path in (f"/ipfs/{cid}", f"/ipfs/{cid}?format=raw", f"/ipfs/{cid}?format=car"):
        assert ask(gateway + path)[1]["Access-Control-Allow-Origin"] == "*"


# -------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/ipfs/nonsense", 400),
        ("/ipfs/{missing}", 404),
        ("/ipfs/{root}/nope", 404),
        ("/ipfs/{root}/a.txt/x", 404),
        ("/ipfs/{odd}", 400),
        ("/ipfs/{root}?format=tar", 406),
        ("/ipfs/{root}/?format=dag-json", 406),
    ],
)
def test_an_error_is_a_page_for_people_and_json_for_programs(gateway, store, source, path, status):
    source.put_many([block(b"odd", 0x78)])
    root = store.add_files({"a.txt": b"x"})
    url = gateway + path.format(missing=Cid.of(b"missing"), root=root, odd=Cid.of(b"odd", 0x78))
    code, headers, body = ask(url, Accept=BROWSER)
    assert (code, headers["Content-Type"]) == (status, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert f"Status {status}" in Page(body).text
    code, headers, body = ask(url)
    assert code == status
    assert set(json.loads(body)) == {"error", "code"}
    assert "Cache-Control" not in headers


def test_what_is_not_here_is_412_for_who_wants_no_search(gateway, store):
    for method in ("GET", "HEAD"):
        assert (
            ask(f"{gateway}/ipfs/{Cid.of(b'missing')}", method=method, Cache_Control="only-if-cached")[0]
            == 412
        )
    assert ask(f"{gateway}/ipfs/{store.add_bytes(b'x')}", Cache_Control="only-if-cached")[0] == 200
    assert ask(f"{gateway}/ipfs/bafkqaaa", Cache_Control="only-if-cached")[0] == 200


def test_programs_get_blocks_and_cars_from_the_same_addresses(gateway, store):
    root = store.add_files({"a.txt": b"x"})
    url = f"{gateway}/ipfs/{root}"
    assert root.matches(ask(f"{url}?format=raw", Accept=BROWSER)[2])
    assert root.matches(ask(url, Accept="application/vnd.ipld.raw")[2])
    assert cids_in(f"{url}/a.txt?format=car") == [str(root), str(Cid.of(b"x"))]
    assert cids_in(url, Accept="application/vnd.ipld.car") == [str(root), str(Cid.of(b"x"))]


# ------------------------------------------------------------------------------------------------- clients


def test_who_comes_while_too_many_files_are_under_way_is_told_when_to_come_again(serve, files, monkeypatch):
    monkeypatch.setattr(web_gateway, "MAX_FILES", 1)
    root, _ = leaves_file(files, [os.urandom(1 << 20)] * 64)
    gateway = serve(gateway_app(ContentStore(files)))
    with closing(connect(gateway)) as connection:
        connection.sendall(f"GET /ipfs/{root} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert connection.recv(1) == b"H"
        status, headers, _ = ask(f"{gateway}/ipfs/{root}")
        assert (status, int(headers["Retry-After"]) > 0) == (503, True)
    until(lambda: ask(f"{gateway}/ipfs/{root}", method="HEAD")[0] == 200)


def test_the_start_page_leads_to_what_is_asked_for(gateway, store):
    root = store.add_files({"a b.txt": b"x"})
    assert Page(ask(f"{gateway}/")[2]).scripts == 0
    for given, expected in (
        (str(root), f"/ipfs/{root}"),
        (f"ipfs://{root}/a b.txt", f"/ipfs/{root}/a%20b.txt"),
        (f" /ipfs/{root}/ ", f"/ipfs/{root}"),
    ):
        status, headers, _ = ask(f"{gateway}/?path={quote(given)}")
        assert (status, headers["Location"]) == (302, expected)
    for given in ("//evil.example", "nonsense", "javascript:alert(1)"):
        assert ask(f"{gateway}/?path={quote(given)}")[0] == 400
    assert ask(f"{gateway}/ipns/example.com")[0] == 501
    assert ask(f"{gateway}/metrics")[0] == 200


def test_a_record_that_is_not_its_codec_is_an_error_not_a_crash(gateway, source):
    source.put_many([block(b"\xff\xff", DAG_CBOR), block(b"\xff\xff", DAG_PB)])
    wrong = b"\xff\xff"
    for codec in (DAG_CBOR, DAG_PB):
        assert ask(f"{gateway}/ipfs/{Cid.of(wrong, codec)}")[0] == 502
