"""Pictures and numbers as files in a folder."""

from __future__ import annotations

import difflib
import json
import secrets
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.errors import InvalidInput, disk_errors
from holdfast.registry.pictures.backend import installed, open_backend
from holdfast.registry.pictures.dashboard_chart import all_charts, dashboard_chart
from holdfast.registry.pictures.report import html_report

if TYPE_CHECKING:
    from collections.abc import Iterable

    from holdfast.registry.measurements.collector import AIMLMetricsCollector
    from holdfast.registry.pictures.backend import Backend
    from holdfast.registry.pictures.theme import Theme

__all__ = ["FORMATS", "export", "write_file"]

PICTURES = ("png", "svg")
FORMATS = (*PICTURES, "html", "json")


def export(
    metrics: AIMLMetricsCollector,
    backend: Backend,
    theme: Theme,
    folder: str | Path,
    *,
    formats: Iterable[str],
) -> list[Path]:
    """Write pictures, report and numbers; see :meth:`Visualization.export_visualizations`."""
    wanted = _known((formats,) if isinstance(formats, str) else tuple(formats))
    files: dict[str, bytes] = {}
    pictures = [name for name in wanted if name in PICTURES]
    if pictures and not installed("matplotlib"):
        warnings.warn(
            f"no {' and no '.join(pictures)} is exported: that needs Matplotlib; pip install 'holdfast[plots]'",
            stacklevel=3,
        )
        pictures = []
    if pictures:
        drawing = open_backend("matplotlib")
        measurements = metrics.measurements()
        for chart in (dashboard_chart(measurements), *all_charts(measurements)):
            if chart.panels:
                figure = drawing.figure(chart, theme)
                files |= {f"{chart.key}.{name}": drawing.written(figure, name) for name in pictures}
        if not files:
            warnings.warn("no picture is exported: nothing has been measured yet", stacklevel=3)
    if "html" in wanted:
        files["report.html"] = html_report(metrics, backend, title="Measurements").encode()
    if "json" in wanted:
        files["metrics.json"] = numbers_json(metrics).encode()
    # All is made before anything is written: a failure in between leaves the folder as it was.
    return [write_file(Path(folder) / name, data) for name, data in files.items()]


def numbers_json(metrics: AIMLMetricsCollector) -> str:
    """Summary, findings and every measurement as JSON; what is not finite is null."""
    body = metrics.get_comprehensive_report().to_json()
    return json.dumps(
        body | {"measurements": [m.to_json() for m in metrics.measurements()]}, indent=1, allow_nan=False
    )


def write_file(path: str | Path, data: bytes) -> Path:
    """Write a file, which is there as a whole or not at all; its folder is made where it is missing.

    Raises:
        Unavailable: The disk is full.
    """
    path = Path(path)
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            new.write_bytes(data)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
    return path


def _known(formats: tuple[str, ...]) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(str(name).lower().removeprefix(".") for name in formats))
    for name in wanted:
        if name not in FORMATS:
            near = difflib.get_close_matches(name, FORMATS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidInput(f"there is no export format {name!r}, but {', '.join(FORMATS)}{hint}")
    if not wanted:
        raise InvalidInput(f"no export format is given; there are {', '.join(FORMATS)}")
    return wanted
