"""Our servers and our client, over real sockets on loopback."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading

import pytest
from aiohttp import web
from anyio.from_thread import start_blocking_portal

from holdfast import telemetry
from holdfast.errors import Denied, HoldfastError, InvalidInput, NotFound, Unavailable
from holdfast.http_client import HttpClient
from holdfast.web import bearer_token, errors_as_json, listen, metrics, stream_reader

TOKEN = "a-token-of-the-tests"
CLASSES: dict[str, type[HoldfastError]] = {"internal": HoldfastError}
CLASSES |= {cls.code.value: cls for cls in HoldfastError.__subclasses__()}


def make_app() -> web.Application:  # noqa: C901 -- one handler for each thing that a server can do
    async def echo(request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        return web.json_response({"method": request.method, "query": dict(request.query), "body": body})

    async def fail(request: web.Request) -> web.Response:
        code = request.match_info["code"]
        raise CLASSES[code](f"no luck: {code} ✓ bafkqaaa")

    async def crash(_: web.Request) -> web.Response:
        raise ZeroDivisionError("secret of the server")

    async def upload(request: web.Request) -> web.Response:
        read, sizes = stream_reader(request.content), []
        while piece := await read(1000):
            sizes.append(len(piece))
        return web.json_response({"sizes": sizes, "length": request.headers.get("Content-Length")})

    async def refuse(_: web.Request) -> web.Response:
        raise NotFound("not what was asked for")

    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"x" * 10)
        raise CLASSES[request.query["code"]]("the disk broke")

    async def text(_: web.Request) -> web.Response:
        return web.Response(text="<html>hello</html>")

    async def empty(_: web.Request) -> web.Response:
        return web.Response(status=204)

    app = web.Application(middlewares=[errors_as_json, bearer_token(TOKEN, free=("/free",))])
    app.router.add_get("/fail/{code}", fail)
    app.router.add_post("/upload", upload)
    app.router.add_post("/refuse", refuse)
    for path, handler in {
        "/crash": crash,
        "/half": half,
        "/text": text,
        "/empty": empty,
        "/free": text,
    }.items():
        app.router.add_get(path, handler)
    app.router.add_get("/metrics", metrics)
    for method in ("GET", "POST", "DELETE"):
        app.router.add_route(method, "/echo", echo)
    return app


@pytest.fixture(scope="module")
def portal():
    with start_blocking_portal() as started:
        yield started


@pytest.fixture
def url(portal):
    runner, address = portal.call(listen, make_app(), "127.0.0.1", 0)
    yield address
    portal.call(runner.cleanup)


@pytest.fixture
def client(url):
    return HttpClient(url, TOKEN, timeout_s=10.0)


def raw(url, method, path, headers=None, body=None):
    """Status, headers and body of one request, with nothing of ours in between."""
    with contextlib.closing(
        http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    ) as connection:
        connection.putrequest(method, path)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()


# --------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("code", CLASSES)
def test_an_error_is_raised_again_as_what_it_was(url, client, code):
    cls = CLASSES[code]
    with pytest.raises(HoldfastError) as caught:
        client.get(f"/fail/{code}")
    assert type(caught.value) is cls
    assert str(caught.value) == f"no luck: {code} ✓ bafkqaaa"
    status, headers, body = raw(url, "GET", f"/fail/{code}", {"Authorization": f"Bearer {TOKEN}"})
    assert status == cls.http_status
    assert headers["Content-Type"].startswith("application/json")
    assert json.loads(body) == {"error": f"no luck: {code} ✓ bafkqaaa", "code": code}


def test_an_unforeseen_failure_tells_strangers_nothing(url, client, caplog):
    with pytest.raises(HoldfastError, match="the server's log") as caught:
        client.get("/crash")
    assert type(caught.value) is HoldfastError
    status, _, body = raw(url, "GET", "/crash", {"Authorization": f"Bearer {TOKEN}"})
    assert status == 500
    assert b"secret" not in body
    assert b"Zero" not in body
    assert "secret of the server" in caplog.text, "whoever runs the server must find it"


@pytest.mark.parametrize("code", ["unavailable", "internal"])
def test_an_error_in_the_middle_of_an_answer_is_not_taken_for_its_rest(url, code):
    """The headers are gone: anything sent now would be part of the content."""
    with contextlib.closing(
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])))
    ) as connection:
        connection.settimeout(10)
        connection.sendall(
            f"GET /half?code={code} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        )
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert received.startswith(b"HTTP/1.1 200")
    assert received.partition(b"\r\n\r\n")[2] == b"x" * 10


def test_an_unknown_path_or_method_is_an_error_of_ours(client):
    with pytest.raises(HoldfastError, match="GET /nowhere: Not Found"):
        client.get("/nowhere")
    with pytest.raises(HoldfastError, match="Method Not Allowed"):
        client.delete("/upload")


# ---------------------------------------------------------------------------------------------------- token


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer wrong",
        f"Basic {TOKEN}".encode(),
        TOKEN.encode(),
        f"Bearer {TOKEN}x".encode(),
        f"Bearer {TOKEN[:-1]}".encode(),
        f"Bearer {TOKEN.upper()}".encode(),
        b"Bearer \xff\xfe\x80",
        "Bearer schlüssel".encode(),
    ],
)
def test_no_other_token_opens_the_door(url, value):
    status, _, body = raw(url, "GET", "/echo", {"Authorization": value})
    assert status == 401
    assert json.loads(body)["code"] == "denied"
    assert TOKEN.encode() not in body


def test_without_a_token_nothing_but_the_free_paths_is_answered(url):
    assert raw(url, "GET", "/echo")[0] == 401
    assert raw(url, "GET", "/nowhere")[0] == 401, "strangers don't learn which paths there are"
    assert raw(url, "GET", "/metrics")[0] == 401
    assert raw(url, "GET", "/free")[0] == 200
    assert raw(url, "GET", "/free/")[0] == 401
    assert raw(url, "GET", "//free")[0] == 401


def test_the_scheme_is_read_as_http_wants_it(url):
    assert raw(url, "GET", "/echo", {"Authorization": f"bEARER   {TOKEN} "})[0] == 200


def test_a_cookie_can_read_and_never_change_anything(url):
    name = f"holdfast_token_{url.rpartition(':')[2]}"
    cookie = {"Cookie": f"{name}={TOKEN}"}
    assert raw(url, "GET", "/echo", cookie)[0] == 200
    for method in ("POST", "DELETE"):
        assert raw(url, method, "/echo", cookie)[0] == 401
    for other in (f"{name}=wrong", f"holdfast_token_1={TOKEN}", f"holdfast_token={TOKEN}"):
        assert raw(url, "GET", "/echo", {"Cookie": other})[0] == 401
    both = {**cookie, "Authorization": "Bearer wrong"}
    assert raw(url, "GET", "/echo", both)[0] == 401, "a wrong header is not mended by a cookie"


def test_the_client_s_own_denial_is_a_denial(url):
    with pytest.raises(Denied, match="token"):
        HttpClient(url, "wrong").get("/echo")
    with pytest.raises(Denied, match="token"):
        HttpClient(url).post("/echo", {"a": 1})


@pytest.mark.parametrize("token", ["two\r\nEvil: yes", "schlüssel", "\x00"])
def test_a_token_that_can_not_be_sent_is_refused_and_not_shown(token):
    with pytest.raises(InvalidInput, match="token") as caught:
        HttpClient("http://127.0.0.1:1", token)
    assert token not in str(caught.value)


# --------------------------------------------------------------------------------------------------- client


def test_arguments_arrive_as_they_were_given(client):
    assert client.get("/echo", kind=None, ref="a b&c=d/é") == {
        "method": "GET",
        "query": {"ref": "a b&c=d/é"},
        "body": None,
    }
    body = {"list": [1, 2.5, None, "é"], "nested": {"a": True}}
    assert client.post("/echo", body)["body"] == body
    assert client.post("/echo")["body"] == {}
    assert client.delete("/echo")["method"] == "DELETE"
    assert client.get("/empty") is None


def test_a_large_upload_is_streamed_and_arrives_whole(client):
    pieces = [b"a" * 999, b"", b"b" * 70_000, b"c"]
    answer = client.post("/upload", iter(pieces))
    assert answer["length"] is None
    assert answer["sizes"] == [1000] * 71


def test_an_upload_that_is_refused_says_why_and_not_that_the_pipe_broke(url):
    """The server answers before it has read everything."""
    with pytest.raises(Denied):
        HttpClient(url, "wrong", timeout_s=20).post("/upload", (b"x" * 65536 for _ in range(400)))
    with pytest.raises(NotFound, match="not what was asked for"):
        HttpClient(url, TOKEN, timeout_s=20).post("/refuse", (b"x" * 65536 for _ in range(400)))


@pytest.mark.parametrize("cls", [Denied, Unavailable, NotFound])
def test_an_error_of_the_uploader_is_not_blamed_on_the_server(client, cls):
    def pieces():
        yield b"x"
        raise cls("the local disk lacks a block")

    with pytest.raises(cls, match=r"^the local disk lacks a block$"):
        client.post("/upload", pieces())
    assert client.get("/echo")["method"] == "GET", "the server must have survived it"


def test_a_path_that_is_none_is_not_called_a_network_failure(client):
    for path in ("/a b", "/a\nb", "/a\r\nEvil: 1"):
        with pytest.raises(InvalidInput, match="not a path"):
            client.get(path)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://127.0.0.1:1",
        "ftp://127.0.0.1",
        "http://",
        "http://127.0.0.1:1/path",
        "http://127.0.0.1:1?x=1",
        "http://127.0.0.1:port",
        "http://127.0.0.1:99999",
    ],
)
def test_an_address_that_is_none_is_refused_at_once(url):
    with pytest.raises(InvalidInput):
        HttpClient(url)


def test_an_address_may_be_written_short():
    assert HttpClient("127.0.0.1:7400").url == "http://127.0.0.1:7400"
    assert HttpClient("http://127.0.0.1/").url == "http://127.0.0.1:80"
    assert HttpClient("http://[::1]:7400").url == "http://[::1]:7400"


def test_nobody_there_is_said_so():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    with pytest.raises(Unavailable, match=rf"nothing listens at http://127\.0\.0\.1:{port}"):
        HttpClient(f"http://127.0.0.1:{port}").get("/")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "broke off"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "not a holdfast server"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 6\r\n\r\n<html>", "HTTP 503.*not holdfast's"),
        (b'HTTP/1.1 404 No\r\nContent-Length: 14\r\n\r\n{"detail": "x"}'[:-1], "HTTP 404.*not holdfast's"),
    ],
)
def test_a_server_that_is_not_ours_is_one_clear_error(answer, message):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(Unavailable, match=message):
            HttpClient(url, timeout_s=10).get("/x")
        thread.join(10)


def test_a_server_that_never_answers_does_not_hold_the_caller_forever():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(Unavailable, match=r"did not answer in time \(GET /x\)"):
            HttpClient(url, timeout_s=0.2).get("/x?secret=1")


def test_the_token_never_goes_through_a_proxy(client, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert client.get("/echo")["method"] == "GET"


# --------------------------------------------------------------------------------------------------- server


def test_a_port_in_use_is_one_clear_error(portal, url):
    port = int(url.rsplit(":", 1)[1])
    with pytest.raises(
        Unavailable, match=rf"can't listen on 127\.0\.0\.1:{port}: another program uses the port"
    ):
        portal.call(listen, make_app(), "127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port"), [("203.0.113.1", 0), ("no-such-host.invalid", 0), ("127.0.0.1", 99999)]
)
def test_an_impossible_address_is_one_clear_error(portal, host, port):
    with pytest.raises(Unavailable, match="choose an address of this machine"):
        portal.call(listen, make_app(), host, port)


def test_the_url_of_an_ipv6_server_can_be_used(portal):
    try:
        runner, address = portal.call(listen, make_app(), "::1", 0)
    except Unavailable:
        pytest.skip("this machine has no IPv6 loopback")
    try:
        assert HttpClient(address, TOKEN).get("/echo")["method"] == "GET"
    finally:
        portal.call(runner.cleanup)


def test_requests_are_counted_by_route_and_not_by_what_strangers_ask_for(url, client):
    with contextlib.suppress(NotFound):
        client.get("/fail/not_found")
    for number in range(3):
        raw(url, "GET", f"/no/such/{number}", {"Authorization": f"Bearer {TOKEN}"})
    status, headers, body = raw(url, "GET", "/metrics", {"Authorization": f"Bearer {TOKEN}"})
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    lines = [line for line in body.decode().splitlines() if line.startswith("holdfast_http_requests_total")]
    assert any('route="/fail/{code}",status="404"' in line for line in lines)
    assert not any("/no/such" in line for line in lines)


def test_a_metric_is_made_once_however_often_it_is_asked_for():
    first = telemetry.counter("holdfast_test_total", "Counts.", ("a",))
    assert telemetry.counter("holdfast_test_total", "Counts.", ("a",)) is first
    assert telemetry.histogram("holdfast_test_seconds", "Takes.") is telemetry.histogram(
        "holdfast_test_seconds", "Takes."
    )
