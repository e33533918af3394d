"""The HTML report: complete in itself, true to the numbers, safe with any name, and really drawn by a browser."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import psutil
import pytest

from holdfast.registry import AIMLMetricsCollector, create_visualization
from holdfast.registry.measurements import Kind
from holdfast.registry.pictures.backend import open_backend
from holdfast.registry.pictures.report import html_report
from holdfast.registry.pictures.text_backend import TextBackend
from holdfast.registry.pictures.theme import LIGHT

if TYPE_CHECKING:
    from pathlib import Path

CHROMIUM = shutil.which("chromium")
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"> & ${x} %{y} $\\frac{1}$"


class Page(HTMLParser):
    """What a page shows, and what it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag in ("script", "style"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data):
        if not self._open:
            self.text += data


@pytest.mark.parametrize("library", ["matplotlib", "plotly", "text"])
def test_a_report_of_every_shape_of_data_is_one_file_that_asks_nobody(measured, library):
    html = html_report(measured, open_backend(library), title="Run 1")
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed"), tag
        assert not attributes.get("src"), attributes
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), attributes
    assert "default-src 'none'" in html
    styles = re.findall(r"<style[^>]*>(.*?)</style>", html, re.DOTALL)
    assert not any("@import" in style or re.search(r"url\((?!#)", style) for style in styles)
    assert len(set(page.ids)) == len(page.ids)
    if library == "matplotlib":
        assert "http://" not in html
        assert "https://" not in html


def test_a_report_shows_every_recorded_value(tmp_path):
    metrics = AIMLMetricsCollector()
    for epoch, value in enumerate((2.34567, 0.875, 0.0001234)):
        metrics.record_metric(f"net/epoch/{epoch}/train_loss", value)
    page = Page(create_visualization(metrics).generate_html_report(tmp_path / "r.html").read_text())
    for shown in ("2.35", "0.875", "0.000123", "train_loss", "net"):
        assert shown in page.text
    exact = [attributes["title"] for tag, attributes in page.tags if tag == "td" and "title" in attributes]
    assert exact == ["2.34567", "0.875", "0.0001234"]


def test_findings_stand_in_the_report_with_their_numbers(tmp_path):
    metrics = AIMLMetricsCollector()
    metrics.add(Kind.EPOCH, "net", {"duration_s": 10, "data_loading_s": 8}, step=0)
    text = Page(create_visualization(metrics).generate_html_report(tmp_path / "r.html").read_text()).text
    assert "80% of the epochs' time is waiting for data" in text
    assert "data loading 8 s · duration 10 s · share 80% · epochs 1" in text


@pytest.mark.parametrize("library", ["matplotlib", "plotly", "text"])
def test_a_name_can_not_become_markup(library):
    metrics = AIMLMetricsCollector()
    metrics.add(Kind.METRIC, HOSTILE, {HOSTILE.replace("/", "\\"): 1.0}, step=0)
    metrics.add(Kind.INFERENCE, HOSTILE, {"duration_s": 1.0, "batch_size": 1}, error=HOSTILE)
    metrics.add(Kind.DATASET_LOAD, HOSTILE, {"duration_s": 1.0})
    metrics.record_worker_utilization(HOSTILE, 0.5)
    html = html_report(metrics, open_backend(library), title=HOSTILE)
    page = Page(html)
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert HOSTILE in page.text
    assert html.count("</script>") == sum(tag == "script" for tag, _ in page.tags)


def test_a_report_without_data_says_so():
    text = Page(html_report(AIMLMetricsCollector(), TextBackend(), title="Run 1")).text
    assert "Nothing has been measured yet." in text
    assert "There is nothing to conclude from." in text


def test_svg_pictures_of_a_report_take_the_readers_colours(run_of_20):
    html = html_report(run_of_20, open_backend("matplotlib"), title="Run 1")
    pictures = "".join(re.findall(r"<figure.*?</figure>", html, re.DOTALL))
    assert "var(--line-0)" in pictures
    assert "var(--text)" in pictures
    assert not set(re.findall(r"#[0-9a-f]{6}\b", pictures)) & set(LIGHT.colours().values())


def test_equal_measurements_give_equal_reports(run_of_20):
    backend = open_backend("matplotlib")
    assert html_report(run_of_20, backend, title="a") == html_report(run_of_20, backend, title="a")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_without_a_network_draws_the_interactive_report(run_of_20, tmp_path, dark):
    viz = create_visualization(run_of_20, interactive=True)
    dom = browse(viz.generate_html_report(tmp_path / "report.html", title="Run 1"), dark=dark)
    drawn = re.findall(r'class="plot js-plotly-plot"', dom)
    assert len(drawn) == 6  # training, latency, throughput, workers, loads, memory
    ground = "rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)"
    assert f"background: {ground}" in dom
    assert "best validation" in dom


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_on_a_phone_interactive_pictures_keep_their_width_and_scroll_in_their_frames(run_of_20, tmp_path):
    viz = create_visualization(run_of_20, interactive=True)
    dom = browse(viz.generate_html_report(tmp_path / "report.html"), dark=False, width=390)
    figures = re.findall(
        r'<figure class="card (\w+)">.*?<svg class="main-svg"[^>]* width="(\d+)"', dom, re.DOTALL
    )
    assert set(figures) == {("wide", "820"), ("narrow", "560")}


def browse(path: Path, *, dark: bool, width: int = 1200) -> str:
    """What a browser, which can resolve no name, makes of a page."""
    scratch = tempfile.mkdtemp(prefix="holdfast-browser-")  # a short path: the browser puts a socket there
    command = [
        str(CHROMIUM),
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--disable-breakpad", "--disable-extensions", "--disable-dev-shm-usage", "--mute-audio"),
        "--host-resolver-rules=MAP * ~NOTFOUND",
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
        *(
            f"--window-size={width},900",
            f"--user-data-dir={scratch}/profile",
            "--virtual-time-budget=4000",
            "--dump-dom",
            path.as_uri(),
        ),
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
                dom, _ = browser.communicate(timeout=90)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(browser.pid, signal.SIGKILL)
        return dom.decode()
    finally:
        left = [
            p
            for p in psutil.process_iter(["cmdline"])
            if any(scratch in part for part in p.info["cmdline"] or ())
        ]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)
        shutil.rmtree(scratch, ignore_errors=True)
