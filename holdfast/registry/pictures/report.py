"""The HTML report: one file with its styles, pictures and script in it, which asks no other place for anything."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

from holdfast.errors import require
from holdfast.registry.measurements.findings import NOTHING_FOUND, NOTHING_MEASURED
from holdfast.registry.pictures.backend import installed, open_backend
from holdfast.registry.pictures.chart import shortened
from holdfast.registry.pictures.dashboard_chart import all_charts, key_facts
from holdfast.registry.pictures.report_tables import tables
from holdfast.registry.pictures.theme import DARK, LIGHT
from holdfast.registry.pictures.units import bytes_text, number_text, rounded, seconds_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.registry.measurements.collector import AIMLMetricsCollector
    from holdfast.registry.measurements.finding import Finding
    from holdfast.registry.pictures.backend import Backend
    from holdfast.registry.pictures.chart import Chart

__all__ = ["html_report"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
"""Has the reader's browser refuse whatever would come from elsewhere."""
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")


def html_report(metrics: AIMLMetricsCollector, backend: Backend, *, title: str) -> str:
    """The report as HTML: key figures, findings, pictures, tables; in the reader's choice of light and dark.

    Plotly's figures bring Plotly's script with them (5 MB); Matplotlib's are SVG, and without both they are text.
    """
    measurements = metrics.measurements()
    report = metrics.get_comprehensive_report()
    charts = all_charts(measurements)
    drawn = [chart for chart in charts if chart.panels]
    missing = [chart.title.lower() for chart in charts if not chart.panels]
    figures, scripts = _figures(drawn, backend)
    facts = "".join(
        f'<div class="card"><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>'
        for label, value in key_facts(measurements)
    )
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(_when([m.time_s for m in measurements]))}</p>',
        f'<dl class="facts">{facts}</dl>' if facts else "",
        f"<h2>Findings</h2>{_findings(report.findings, bool(measurements))}",
        f'<h2>Pictures</h2><div class="pictures">{figures}</div>' if drawn else "",
        f'<p class="soft">Not measured: {escape(", ".join(missing))}.</p>'
        if missing and measurements
        else "",
        tables(measurements, report.summary),
        _dropped(metrics.dropped),
    ]
    style, content = _file("report.css"), "\n".join(filter(None, body))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_variables()}{style}</style>\n</head>\n"
        f"<body>\n<main>\n{content}\n</main>\n{scripts}</body>\n</html>\n"
    )


def _variables() -> str:
    """The colours of both themes as CSS variables."""
    light, dark = (
        " ".join(f"--{name}: {colour};" for name, colour in theme.colours().items())
        for theme in (LIGHT, DARK)
    )
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    )


def _when(times: Sequence[float]) -> str:
    if not times:
        return "Nothing has been measured yet."
    first, last = (datetime.fromtimestamp(t, UTC) for t in (min(times), max(times)))
    begin = f"{first:%Y-%m-%d %H:%M:%S}"
    end = f"{last:%H:%M:%S}" if first.date() == last.date() else f"{last:%Y-%m-%d %H:%M:%S}"
    return f"Measured {begin} UTC" if begin.endswith(end) else f"Measured from {begin} to {end} UTC"


def _findings(findings: Sequence[Finding], measured: bool) -> str:  # noqa: FBT001 -- one caller
    if not measured:
        return f'<p class="soft">{NOTHING_MEASURED}</p>'
    if not findings:
        return f'<p class="soft">{NOTHING_FOUND}</p>'
    items = []
    for finding in findings:
        numbers = " · ".join(_told(name, value) for name, value in finding.numbers.items())
        items.append(
            f'<li class="card {finding.severity.value}"><p><span class="kind">{finding.severity.value}</span> '
            f"<b>{escape(finding.subject)}</b>: {escape(finding.text)}</p>"
            f'<p class="numbers">{escape(numbers)}</p></li>'
        )
    return f'<ul class="findings">{"".join(items)}</ul>'


def _told(name: str, value: float) -> str:
    """A finding's number in words, with its unit: ``p50_s`` is the ``median``."""
    words = name.removesuffix("_s").replace("bytes_", "").replace("_", " ").replace("p50", "median")
    if name.endswith("_s"):
        text = seconds_text(value)
    elif "bytes" in name:
        text = bytes_text(value)
    else:
        text = f"{value:.0%}" if name in ("share", "least", "mean", "most") else number_text(rounded(value))
    return f"{words} {text}"


def _dropped(dropped: dict[str, int]) -> str:
    if not dropped:
        return ""
    counts = ", ".join(f"{count:,} of kind {kind}" for kind, count in dropped.items())
    return f'<p class="soft">The oldest measurements were no longer kept: {escape(counts)}.</p>'


def _figures(charts: Sequence[Chart], backend: Backend) -> tuple[str, str]:
    """The pictures, and the scripts that they need."""
    if not charts:
        return "", ""
    if backend.name == "plotly":
        return _plotly_figures(charts, backend)
    if backend.name == "matplotlib" and installed("matplotlib"):
        figures = []
        for chart in charts:
            svg = backend.written(backend.figure(chart, LIGHT), "svg").decode()
            figures.append(_figure(chart, _inline(svg, chart)))
        return "\n".join(figures), ""
    text = open_backend("text")
    figures = [
        f'<figure class="card"><pre>{escape(text.figure(chart, LIGHT))}</pre></figure>' for chart in charts
    ]
    return "\n".join(figures), ""


def _figure(chart: Chart, drawn: str) -> str:
    """A picture in its frame, which knows how much room it needs."""
    return f'<figure class="card {"narrow" if len(chart.panels) == 1 else "wide"}">{drawn}</figure>'


def _inline(svg: str, chart: Chart) -> str:
    """An SVG file as a part of a page: it takes the page's colours, and no id is there twice."""
    names = {colour: name for name, colour in LIGHT.colours().items()}
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = _COLOUR.sub(lambda m: f"var(--{names[m[0]]})" if m[0] in names else m[0], svg)
    svg = re.sub(r'\bid="', f'id="{chart.key}-', svg)
    svg = re.sub(r'href="#', f'href="#{chart.key}-', svg)
    svg = svg.replace("url(#", f"url(#{chart.key}-")
    label = escape(f"{chart.title}. {chart.subtitle}", quote=True)
    box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg role="img" aria-label="{label}" {box[0] if box else ""}>'
    return head + svg[svg.index(">") + 1 :].strip()


def _plotly_figures(charts: Sequence[Chart], backend: Backend) -> tuple[str, str]:
    offline: Any = require("plotly.offline", extra="plots", why="a report with interactive figures")
    light, dark = LIGHT.colours(), DARK.colours()
    exchange = {light[name]: dark[name] for name in light}
    figures, scripts = [], [_json("colours", json.dumps(exchange))]
    for chart in charts:
        label = escape(shortened(chart.title, 80), quote=True)
        place = f'<div class="plot" role="img" aria-label="{label}" data-figure="figure-{chart.key}"></div>'
        figures.append(_figure(chart, place))
        scripts.append(_json(f"figure-{chart.key}", backend.figure(chart, LIGHT).to_json()))
    scripts.append(f"<script>{offline.get_plotlyjs()}</script>")
    scripts.append(f"<script>\n{_file('report.js')}</script>")
    return "\n".join(figures), "\n".join(scripts) + "\n"


def _json(name: str, text: str) -> str:
    """A JSON text as a part of a page, which it can't leave."""
    harmless = text.replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{harmless}</script>'


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
