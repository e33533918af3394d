"""The dashboard: who may see it, what it loads, and what a browser makes of a real master's answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import urllib.parse
from dataclasses import dataclass, field
from html.parser import HTMLParser
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from holdfast.cluster.cli import main, parser
from holdfast.cluster.membership import join_commands
from holdfast.registry import CodeRecord, IndexRecord, ModelRecord, RunSpec, RunState
from holdfast.storage import store_dataset

from .conftest import listening_master

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from holdfast.cluster.master import Master
    from holdfast.storage import Cid

ASSETS = ("/assets/app.js", "/assets/style.css", "/assets/icon.svg")
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
CHROMIUM = shutil.which("chromium")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@dataclass(frozen=True)
class Filled:
    """A master with one of everything, and the CIDs of that."""

    master: Master
    dataset: Cid
    model: Cid
    index: Cid
    done: str
    failed: str
    cached: str


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    with listening_master(tmp_path_factory.mktemp("master")) as (master, _):
        dataset = store_dataset(master.store, {"x": np.arange(12.0), "y": np.arange(12)}).cid
        master.names.register("dataset", "digits", None, dataset)
        source = master.store.add_bytes(b"def train(context): ...")
        code = CodeRecord(files=source, entry="train:train").store(master.store)
        model = ModelRecord(framework="pytorch", format="safetensors", code=code, files=source).store(
            master.store
        )
        other = ModelRecord(
            framework="pytorch", format="safetensors", code=code, config={"n": 2}, files=source
        ).store(master.store)
        master.names.register("model", "digits-cnn", "1.9.0", model)
        master.names.register("model", "digits-cnn", "1.10.0", other)
        master.names.set_alias("model", "digits-cnn", "champion", "1.9.0")
        index = IndexRecord(
            corpus=dataset,
            splits=("train",),
            model=model,
            conversion=code,
            output="embedding",
            metric="cosine",
            factory="Flat",
            dim=8,
            rows=12,
            index=source,
        ).store(master.store)
        master.names.register("index", "digits-index", None, index)

        done, failed = (
            master.runs.create(RunSpec(code=code, data=dataset, config={}, workers=2)).id for _ in range(2)
        )
        for run in (done, failed):
            master.runs.start(run)
            for epoch, loss in enumerate((2.5, 0.75, 0.03125), 1):
                metrics = {"epoch": epoch, "loss": loss, "test_accuracy": 1 - loss / 10, HOSTILE: loss}
                master.runs.add_event(run, {"type": "report", "metrics": metrics})
        master.runs.finish(done, RunState.DONE, result={"run": str(code), "model": str(model)})
        master.runs.finish(failed, RunState.FAILED, error=f"ValueError: {HOSTILE}\nmore lines")
        cached = master.runs.create(RunSpec(code=code, data=dataset, config={}, workers=2)).id
        master.runs.start(cached)
        result = {"run": str(code), "model": str(model), "cached_from": done}
        master.runs.finish(cached, RunState.DONE, result=result)

        worker = master.members.join(
            id="worker-0badcafe", url="http://127.0.0.1:9", host="127.0.0.1", num_cpus=6
        )
        master.members.heartbeat(worker.id, blocks=1234, size_bytes=3 << 20)
        yield Filled(master, dataset, model, index, done, failed, cached)


@dataclass(frozen=True)
class Answer:
    """An HTTP response, no redirect followed."""

    status: int
    headers: http.client.HTTPMessage
    body: str


def ask(
    master: Master, path: str, *, method: str = "GET", cookie: str = "", form: dict[str, str] | None = None
) -> Answer:
    host = urllib.parse.urlsplit(master.url)
    headers = (
        {"Cookie": f"holdfast_token_{urllib.parse.urlsplit(master.url).port}={cookie}"} if cookie else {}
    )
    if form is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    with contextlib.closing(http.client.HTTPConnection(host.hostname or "", host.port, timeout=10)) as wire:
        wire.request(method, path, body=urllib.parse.urlencode(form or {}) or None, headers=headers)
        response = wire.getresponse()
        return Answer(response.status, response.headers, response.read().decode())


# ------------------------------------------------------------------------------------------------- who may


def test_a_browser_without_the_token_gets_the_login_page_and_nothing_else(filled: Filled) -> None:
    page = ask(filled.master, "/")
    assert page.status == 200
    assert 'action="/login"' in page.body
    assert "app.js" not in page.body
    assert ask(filled.master, "/assets/app.js").status == 401
    assert ask(filled.master, "/api/v0/status").status == 401
    assert ask(filled.master, "/api/v0/status", cookie="0" * 64).status == 401
    for wrong in ("0" * 64, "\xff\xfe"):  # the second is not UTF-8
        assert 'action="/login"' in ask(filled.master, "/", cookie=wrong).body


@pytest.mark.parametrize(
    ("path", "method", "form"), [("/?token=wrong", "GET", None), ("/login", "POST", {"token": "wrong"})]
)
def test_a_wrong_token_is_refused_in_words(
    filled: Filled, path: str, method: str, form: dict[str, str] | None
) -> None:
    answer = ask(filled.master, path, method=method, form=form)
    assert answer.status == 401
    assert "Set-Cookie" not in answer.headers
    assert 'role="alert">' in answer.body
    assert 'role="alert">' not in ask(filled.master, "/").body  # hidden until then


@pytest.mark.parametrize("way", ["link", "form"])
def test_the_token_becomes_a_cookie_that_scripts_and_other_sites_can_not_use(
    filled: Filled, way: str
) -> None:
    token = filled.master.token
    if way == "link":
        answer = ask(filled.master, f"/?token={token}")
    else:
        answer = ask(filled.master, "/login", method="POST", form={"token": f" {token}\n"})
    assert answer.status == 303
    assert answer.headers["Location"] == "/"  # the token does not stay in the address bar
    assert token not in answer.body
    name, *flags = (part.strip().lower() for part in answer.headers["Set-Cookie"].split(";"))
    port = urllib.parse.urlsplit(filled.master.url).port  # cookies ignore ports; the name must not
    assert name == f"holdfast_token_{port}={token}"
    assert {"httponly", "samesite=strict"} <= set(flags)


def test_the_cookie_reads_but_never_changes_anything(filled: Filled) -> None:
    master = filled.master
    assert "app.js" in ask(master, "/", cookie=master.token).body
    status = json.loads(ask(master, "/api/v0/status", cookie=master.token).body)
    assert status["url"] == master.url
    nodes = len(master.members.all())
    for path in ("/api/v0/nodes", f"/api/v0/runs/{filled.done}/cancel", "/api/v0/aliases"):
        refused = ask(master, path, method="POST", cookie=master.token, form={"id": "x"})
        assert refused.status == 401
        assert json.loads(refused.body)["code"] == "denied"
    assert len(master.members.all()) == nodes


# ------------------------------------------------------------------------------------------ what it loads


def test_every_answer_forbids_foreign_and_inline_code(filled: Filled) -> None:
    token = filled.master.token
    answers = [ask(filled.master, path, cookie=token) for path in ("/", *ASSETS)]
    answers += [ask(filled.master, path) for path in ("/", "/?token=wrong", f"/?token={token}")]
    answers += [ask(filled.master, "/login", method="POST", form={"token": t}) for t in ("wrong", token)]
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_every_part_that_the_pages_name_loads(filled: Filled) -> None:
    token = filled.master.token
    for page in (ask(filled.master, "/"), ask(filled.master, "/", cookie=token)):
        cookie = token if "app.js" in page.body else ""
        parts = set(re.findall(r'(?:src|href)="(/assets/[^"]+)"', page.body))
        assert "/assets/style.css" in parts
        for part in parts:
            answer = ask(filled.master, part, cookie=cookie)
            assert (answer.status, bool(answer.body)) == (200, True), part
    assert ask(filled.master, "/assets/__init__.py", cookie=token).status == 404


@pytest.mark.parametrize("name", ["index.html", "login.html", "style.css", "app.js", "icon.svg"])
def test_no_part_reaches_out_or_makes_markup_of_data(name: str) -> None:
    text = resources.files("holdfast.cluster.dashboard").joinpath(name).read_text(encoding="utf-8")
    urls = set(re.findall(r"\w+://[^\s\"'`)]+", text))
    assert urls <= {"http://www.w3.org/2000/svg"}, "the name of the SVG vocabulary is the only one"
    assert not re.search(r"""["'(=]\s*//|@import|url\(""", text)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
    )
    assert not re.search(r"""<style|<script(?![^>]*\ssrc=)|<[^>]+\s(?:style|on\w+)\s*=""", text)


# ------------------------------------------------------------------------------------- what a browser shows


@dataclass
class Row:
    text: str = ""
    titles: list[str] = field(default_factory=list)


class Page(HTMLParser):
    """The page as a browser has it: its text, its table rows, and what stands in each section."""

    def __init__(self, dom: str) -> None:
        super().__init__()
        self.text = ""
        self.images: list[str | None] = []
        self.sparks: list[str] = []
        self.rows: dict[str, list[Row]] = {}
        self.attributes: dict[str, dict[str, str | None]] = {}
        self._section = ""
        self.feed(dom)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.attributes[str(values["id"])] = values
        if tag == "section":
            self._section = str(values["id"])
        elif tag == "img":
            self.images.append(values.get("src"))
        elif tag == "tr":
            self.rows.setdefault(self._section, []).append(Row())
        if values.get("class") == "spark":
            self.sparks.append(str(values["aria-label"]))
        if values.get("title") and self.rows.get(self._section):
            self.rows[self._section][-1].titles.append(str(values["title"]))

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.rows.get(self._section):
            self.rows[self._section][-1].text += f"{data} "

    def row(self, section: str, *words: str) -> Row:
        """The only row of a section that has all ``words``."""
        (found,) = [row for row in self.rows[section] if all(word in row.text for word in words)]
        return found


def browse(url: str, *, virtual_ms: int) -> str:
    """What a browser makes of a page, after so much of its own time. Leaves no process and no file behind."""
    scratch = tempfile.mkdtemp(prefix="holdfast-browser-")  # a short path: the browser puts a socket there
    command = [
        str(CHROMIUM),
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--disable-breakpad", "--disable-extensions", "--disable-dev-shm-usage", "--mute-audio"),
        *(f"--user-data-dir={scratch}/profile", f"--virtual-time-budget={virtual_ms}", "--dump-dom", url),
    ]
    try:
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "TMPDIR": scratch},
        ) as browser:
            try:
                dom, _ = browser.communicate(timeout=60)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(browser.pid, signal.SIGKILL)
        return dom.decode()
    finally:
        left = [process for process in psutil.process_iter(["cmdline"]) if _mentions(process, scratch)]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)
        shutil.rmtree(scratch, ignore_errors=True)


def _mentions(process: psutil.Process, text: str) -> bool:
    return any(text in part for part in process.info["cmdline"] or ())


@pytest.fixture(scope="module")
def page(filled: Filled) -> Page:
    master = filled.master
    dom = browse(f"{master.url}/?token={master.token}", virtual_ms=3000)
    assert master.token not in dom
    return Page(dom)


@needs_chromium
def test_the_page_shows_the_nodes(filled: Filled, page: Page) -> None:
    master, worker = filled.master.members.all()
    assert page.attributes["state"]["data-state"] == "live"
    assert filled.master.url in page.text
    shown = page.row("nodes", worker.id)
    for word in ("worker", "alive", worker.node_ip, " 6 ", "1,234", "3.0 MiB"):
        assert word in shown.text
    assert master.node_ip in page.row("nodes", master.node_ip).text
    assert "No workers yet" not in page.text


@needs_chromium
def test_the_page_shows_names_with_aliases_and_whole_cids_newest_first(filled: Filled, page: Page) -> None:
    champion = page.row("models", "1.9.0")
    assert "digits-cnn" in champion.text
    assert "champion" in champion.text
    assert str(filled.model) in champion.titles
    assert "champion" not in page.row("models", "1.10.0").text
    versions = [row.text for row in page.rows["models"][1:]]
    assert "1.10.0" in versions[0]  # not sorted as text
    assert "1.9.0" in versions[1]
    assert str(filled.dataset) in page.row("datasets", "digits", "1.0.0").titles
    assert str(filled.index) in page.row("indexes", "digits-index", "1.0.0").titles


@needs_chromium
def test_the_page_shows_runs_with_their_metrics(filled: Filled, page: Page) -> None:
    done = page.row("runs", filled.done, "took")
    for word in ("done", "epoch 3", "digits:1.0.0", "test_accuracy", "0.9969", "0.03125", "digits-cnn:1.9.0"):
        assert word in done.text
    assert {str(filled.dataset), str(filled.model)} <= set(done.titles)
    assert page.sparks.count("loss: 3 reports, from 2.500 to 0.03125") == 2  # of both runs
    assert "failed" in page.row("runs", filled.failed).text
    cached = page.row("runs", filled.cached, "Known already")
    assert f"cached from  {filled.done}" in cached.text  # two elements
    assert "took" not in cached.text


def test_status_tells_errors_in_one_line_and_what_the_cache_answered(
    filled: Filled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token_file = str(filled.master.settings.home / "token")
    command = ["status", "--address", filled.master.url, "--token-file", token_file, "--home", str(tmp_path)]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert f"cached from {filled.done}" in told
    assert re.search(rf"{filled.failed} +ValueError: .*{re.escape(HOSTILE)}\n", told)
    assert "more lines" not in told


def test_the_line_that_starts_a_worker_is_whole_and_uses_another_home(filled: Filled) -> None:
    home = filled.master.settings.home
    line = join_commands(filled.master.url, home)
    given = parser().parse_args(shlex.split(line["here"])[1:])
    assert (given.join, given.token_file) == (filled.master.url, str(home / "token"))
    assert given.home != str(home)
    assert "elsewhere" not in line, "no other machine reaches a master on loopback"
    reached = join_commands("http://10.0.0.5:7400", home)
    assert "--host 10.0.0.5" in reached["here"]
    assert parser().parse_args(shlex.split(reached["elsewhere"])[1:]).token_file == "token"


@needs_chromium
def test_markup_in_a_run_stays_text(page: Page) -> None:
    assert f"ValueError: {HOSTILE}" in page.text
    assert page.text.count(HOSTILE) >= 3  # the error, and a metric of each run
    assert page.images == ["/assets/icon.svg"]
    assert "owned" not in page.text.replace(HOSTILE, "")


@needs_chromium
def test_an_empty_cluster_says_what_to_do_and_a_lost_master_is_shown_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening_master(tmp_path / "home") as (master, portal):
        describe, answered = master.describe, 0

        def describe_twice() -> dict[str, Any]:
            nonlocal answered
            answered += 1
            if answered == 2:
                assert master._runner is not None
                portal.start_task_soon(master._runner.cleanup)
            return describe()

        monkeypatch.setattr(master, "describe", describe_twice)
        page = Page(browse(f"{master.url}/?token={master.token}", virtual_ms=9000))
        assert answered == 2
        assert page.attributes["state"]["data-state"] == "lost"
        assert "hidden" not in page.attributes["lost"]
        assert "The master does not answer." in page.text
        assert "What you see is from" in page.text
        assert master.describe()["join"]["here"] in page.text  # the last data stays
        for thing in ("runs", "models", "datasets", "indexes"):
            assert f"No {thing} yet" in page.text
