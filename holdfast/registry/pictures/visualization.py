"""Pictures of what a collector measured: one method for each, with the best library that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast.errors import InvalidInput
from holdfast.registry.measurements.measurement import Kind
from holdfast.registry.measurements.views import known_model
from holdfast.registry.pictures import screen
from holdfast.registry.pictures.backend import installed, open_backend
from holdfast.registry.pictures.theme import theme_named
from holdfast.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from holdfast.registry.measurements.collector import AIMLMetricsCollector
    from holdfast.registry.measurements.measurement import Measurement
    from holdfast.registry.pictures.backend import Backend
    from holdfast.registry.pictures.chart import Chart
    from holdfast.registry.pictures.theme import Theme

__all__ = ["Visualization", "create_visualization"]

log = get_logger(__name__)

_TRAINED = (Kind.METRIC, Kind.EPOCH)


def create_visualization(
    metrics: AIMLMetricsCollector, *, interactive: bool | None = None, theme: str = "light"
) -> Visualization:
    """Pictures of a collector's measurements, which are read anew for each picture.

    Args:
        metrics: The collector; it may still be recording.
        interactive: True draws with Plotly and False with Matplotlib. None takes Plotly in a notebook and Matplotlib
            elsewhere, the other one where that is missing, and plain text where both are.
        theme: ``light`` or ``dark``. HTML reports have both, and follow their reader's setting.

    Raises:
        InvalidInput: The theme is unknown, or ``metrics`` is no collector.
        Unsupported: The library that ``interactive`` asks for is not installed.
    """
    if not hasattr(metrics, "measurements"):
        raise InvalidInput(f"pictures are made of an AIMLMetricsCollector, not of {metrics!r:.100}")
    if interactive is None:
        liked = ("plotly", "matplotlib") if screen.notebook() else ("matplotlib", "plotly")
        name = next((library for library in liked if installed(library)), "text")
        if name == "text":
            log.warning(
                "neither Matplotlib nor Plotly is installed: pictures become text; pip install 'holdfast[plots]'"
            )
    else:
        name = "plotly" if interactive else "matplotlib"
    return Visualization(metrics, backend=open_backend(name), theme=theme_named(theme))


class Visualization:
    """Draws measurements. Each ``plot_...`` gives the library's figure, or a text where there is no library.

    With ``show_plot``, a figure is also shown in the notebook or on the screen; without either, the log says that it was not.
    """

    def __init__(self, metrics: AIMLMetricsCollector, *, backend: Backend, theme: Theme) -> None:
        self._metrics = metrics
        self._backend = backend
        self._theme = theme

    @property
    def library(self) -> str:
        """What draws: ``matplotlib``, ``plotly`` or ``text``."""
        return self._backend.name

    def plot_training_metrics(self, model_id: str | None = None, *, show_plot: bool = False) -> Any:
        """Every metric by epoch, training and validation together, of one model or of all.

        Raises:
            NotFound: Nothing was measured of the model; the message names the nearest.
        """
        from holdfast.registry.pictures.training_chart import training_chart

        measurements = self._of(model_id, _TRAINED)
        return self._drawn(training_chart(measurements, model_id), show_plot=show_plot)

    def plot_inference_latency(self, model_id: str | None = None, *, show_plot: bool = False) -> Any:
        """How the latencies of requests are distributed, with median, p95 and p99, for each model.

        Raises:
            NotFound: Nothing was measured of the model.
        """
        from holdfast.registry.pictures.serving_charts import latency_chart

        measurements = self._of(model_id, (Kind.INFERENCE,))
        return self._drawn(latency_chart(measurements, model_id), show_plot=show_plot)

    def plot_throughput(self, model_id: str | None = None, *, show_plot: bool = False) -> Any:
        """Samples a second, of training by epoch and of inference by model.

        Raises:
            NotFound: Nothing was measured of the model.
        """
        from holdfast.registry.pictures.serving_charts import throughput_chart

        measurements = self._of(model_id, (*_TRAINED, Kind.INFERENCE))
        return self._drawn(throughput_chart(measurements, model_id), show_plot=show_plot)

    def plot_worker_utilization(self, *, show_plot: bool = False) -> Any:
        """How busy each worker is, over time and in the mean."""
        from holdfast.registry.pictures.resource_charts import workers_chart

        return self._drawn(workers_chart(self._metrics.measurements()), show_plot=show_plot)

    def plot_dataset_load_times(self, *, show_plot: bool = False) -> Any:
        """How long datasets take to load, the slowest first."""
        from holdfast.registry.pictures.resource_charts import loads_chart

        return self._drawn(loads_chart(self._metrics.measurements()), show_plot=show_plot)

    def plot_memory(self, *, show_plot: bool = False) -> Any:
        """What this process, and the workers that told, had in memory over time."""
        from holdfast.registry.pictures.resource_charts import memory_chart

        return self._drawn(memory_chart(self._metrics.measurements()), show_plot=show_plot)

    def plot_comprehensive_dashboard(self, *, show_plot: bool = False) -> Any:
        """Everything that there is data for in one figure."""
        from holdfast.registry.pictures.dashboard_chart import dashboard_chart

        return self._drawn(dashboard_chart(self._metrics.measurements()), show_plot=show_plot)

    def get_metrics_dataframe(self, model_id: str | None = None) -> Any:
        """The epochs as a pandas table: columns like ``train_loss``, index ``epoch`` (``model`` and ``epoch`` without a model).

        Raises:
            NotFound: The model has no epochs.
            Unsupported: pandas is not installed.
        """
        from holdfast.registry.pictures.frame import epochs_frame

        return epochs_frame(self._metrics.measurements(), model_id)

    def generate_html_report(self, path: str | Path, *, title: str = "Measurements") -> Path:
        """Write a report as one HTML file that needs nothing else, offline, in light and dark; gives its path.

        It has the key figures, the findings, every picture and a table of the epochs.

        Raises:
            Unavailable: The disk is full.
        """
        from holdfast.registry.pictures.export import write_file
        from holdfast.registry.pictures.report import html_report

        return write_file(path, html_report(self._metrics, self._backend, title=title).encode())

    def export_visualizations(
        self, export_dir: str | Path, *, formats: Iterable[str] = ("png", "svg", "html", "json")
    ) -> list[Path]:
        """Write every picture that has data to a folder; gives the files.

        ``png`` and ``svg`` are a file for each picture, drawn by Matplotlib also where figures are Plotly's; ``html`` is
        the report; ``json`` has the summary, the findings and all measurements. Without Matplotlib, pictures are left
        out with a warning.

        Raises:
            InvalidInput: A format is unknown; nothing is written then.
            Unavailable: The disk is full.
        """
        from holdfast.registry.pictures.export import export

        return export(self._metrics, self._backend, self._theme, export_dir, formats=formats)

    def _of(self, model: str | None, kinds: tuple[Kind, ...]) -> tuple[Measurement, ...]:
        measurements = self._metrics.measurements()
        if model is not None:
            known_model(measurements, model, kinds=kinds)
        return measurements

    def _drawn(self, chart: Chart, *, show_plot: bool) -> Any:
        figure = self._backend.figure(chart, self._theme)
        if show_plot and not self._backend.show(figure):
            log.info("%r is not shown: there is neither a notebook nor a screen", chart.title)
        return figure
