"""Figures show the measured numbers, by either library, and nothing on them covers anything else."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from typing import Any

import pytest

from holdfast.errors import NotFound
from holdfast.registry import AIMLMetricsCollector, create_visualization
from holdfast.registry.pictures.chart import BarPanel, HistogramPanel, LinePanel, thinned
from holdfast.registry.pictures.dashboard_chart import all_charts, dashboard_chart
from holdfast.registry.pictures.matplotlib_backend import MatplotlibBackend
from holdfast.registry.pictures.plotly_backend import PlotlyBackend
from holdfast.registry.pictures.theme import LIGHT

PLOTS = (
    "plot_training_metrics",
    "plot_inference_latency",
    "plot_throughput",
    "plot_worker_utilization",
    "plot_dataset_load_times",
    "plot_memory",
    "plot_comprehensive_dashboard",
)


def shown_by_matplotlib(figure: Any) -> list[float]:
    lines = [line.get_ydata() for axes in figure.axes for line in axes.lines]
    return [float(y) for values in lines for y in values]


def shown_by_plotly(figure: Any) -> list[float]:
    return [
        float(y) for trace in figure.data for y in (trace.y if trace.y is not None else ()) if y is not None
    ]


@pytest.mark.parametrize("interactive", [True, False])
def test_a_training_figure_shows_the_recorded_values_and_no_others(interactive):
    metrics = AIMLMetricsCollector()
    recorded = {0: 1.5, 1: 0.875, 2: 0.8125}
    for epoch, value in recorded.items():
        metrics.record_metric(f"net/epoch/{epoch}/train_loss", value)
    figure = create_visualization(metrics, interactive=interactive).plot_training_metrics("net")
    shown = (shown_by_plotly if interactive else shown_by_matplotlib)(figure)
    assert shown == list(recorded.values())


def test_both_libraries_draw_the_same_lines(run_of_20):
    static = create_visualization(run_of_20, interactive=False).plot_training_metrics()
    interactive = create_visualization(run_of_20, interactive=True).plot_training_metrics()
    assert sorted(shown_by_plotly(interactive)) == sorted(
        value
        for value in shown_by_matplotlib(static)
        if value not in (0, 1)  # the upright marks
    )


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("interactive", [True, False])
def test_every_plot_gives_a_figure_for_every_shape_of_data(measured, plot, interactive):
    figure = getattr(create_visualization(measured, interactive=interactive, theme="dark"), plot)()
    assert type(figure).__module__.startswith("plotly" if interactive else "matplotlib")


def test_no_text_on_a_picture_covers_another_one_or_is_cut_off(measured):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    backend = MatplotlibBackend()
    for chart in (dashboard_chart(measured.measurements()), *all_charts(measured.measurements())):
        figure = backend.figure(chart, LIGHT)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        undrawn = undrawn_labels(figure)
        texts = [
            t
            for t in figure.findobj(Text)
            if t.get_visible() and t.get_text().strip() and id(t) not in undrawn
        ]
        boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts]
        for text, box in boxes:
            inside = figure.bbox.x1 >= box.x1 >= box.x0 >= 0 <= box.y0 <= box.y1 <= figure.bbox.y1
            assert inside, f"{chart.key}: {text!r} is cut off"
        for (text, box), (other, its) in itertools.combinations(boxes, 2):
            assert not box.padded(-2).overlaps(its.padded(-2)), f"{chart.key}: {text!r} covers {other!r}"


@pytest.mark.parametrize("name", ["worker-{}", "WWWWWWWWWWWWWWWWWWWWWWWWWWWWWW-{}"])
def test_a_legend_is_no_wider_than_its_axes_however_many_lines_there_are(name):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for workers in range(2, 21):
        metrics = AIMLMetricsCollector()
        for worker, share in itertools.product(range(workers), (0.4, 0.5)):
            metrics.record_worker_utilization(name.format(worker), share)
        figure = MatplotlibBackend().figure(dashboard_chart(metrics.measurements()), LIGHT)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        axes, bars = figure.axes[:2]
        legend = axes.get_legend().get_window_extent(canvas.get_renderer())
        assert legend.x1 <= axes.bbox.x1 + 1, f"{workers} workers"
        assert axes.bbox.width == pytest.approx(bars.bbox.width, rel=0.1), f"{workers} workers"


def undrawn_labels(figure: Any) -> set[int]:
    """Ticks outside of the axes' limits are there, but not drawn."""
    every, drawn = set(), set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            drawn |= {id(tick.label1) for tick in axis._update_ticks()}
            every |= {
                id(label) for t in (*axis.majorTicks, *axis.minorTicks) for label in (t.label1, t.label2)
            }
    return every - drawn


def test_names_are_not_taken_for_markup(hostile):
    chart = all_charts(hostile.measurements())[1]
    figure = PlotlyBackend().figure(chart, LIGHT)
    assert "&lt;b&gt;" in figure.layout.title.text
    MatplotlibBackend().written(MatplotlibBackend().figure(chart, LIGHT), "svg")  # "$x_1$" is no formula


def test_nothing_measured_says_so_instead_of_drawing_empty_axes():
    metrics = AIMLMetricsCollector()
    figure = create_visualization(metrics, interactive=False).plot_worker_utilization()
    assert not figure.axes
    assert "No worker has reported how busy it is." in [text.get_text() for text in figure.texts]


def test_an_unknown_model_is_an_error_that_names_the_nearest(run_of_20):
    viz = create_visualization(run_of_20)
    for ask in (
        viz.plot_training_metrics,
        viz.plot_inference_latency,
        viz.plot_throughput,
        viz.get_metrics_dataframe,
    ):
        with pytest.raises(NotFound, match="did you mean 'digits-cnn'"):
            ask("digit-cnn")


def test_a_gap_in_a_line_is_told_and_not_bridged(hostile):
    chart = all_charts(hostile.measurements())[0]
    loss = chart.panels[0]
    assert isinstance(loss, LinePanel)
    training = next(line for line in loss.lines if line.name == "training")
    assert [i for i, y in enumerate(training.y) if math.isnan(y)] == [2, 3, 5, 11]
    assert "train_loss is not finite in epochs 2, 3, 5 and 1 more" in chart.subtitle


def test_a_distribution_counts_every_request_once(run_of_20):
    panel = all_charts(run_of_20.measurements())[1].panels[0]
    assert isinstance(panel, HistogramPanel)
    assert sum(panel.counts) == 300
    assert list(panel.edges) == sorted(panel.edges)
    assert len(panel.edges) == len(panel.counts) + 1


def test_the_slowest_dataset_comes_first(run_of_20):
    panel = all_charts(run_of_20.measurements())[4].panels[0]
    assert isinstance(panel, BarPanel)
    values = [bar.value for bar in panel.bars]
    assert values == sorted(values, reverse=True)
    assert panel.x_label == "mean time of a load (s)"


def test_a_long_line_keeps_its_peaks_and_its_ends_when_it_is_thinned():
    y = [math.sin(i / 500) for i in range(30_000)]
    y[12_345], y[20_001] = 9.0, math.nan
    x, kept = thinned(tuple(map(float, range(len(y)))), tuple(y))
    assert len(x) <= 2100
    assert 9.0 in kept
    assert any(math.isnan(value) for value in kept)
    assert (x[0], x[-1]) == (0.0, 29_999.0)
    assert list(x) == sorted(x)


def test_a_figure_neither_loads_pyplot_nor_leaves_settings_behind(tmp_path):
    program = """
import sys, matplotlib
from holdfast.registry import AIMLMetricsCollector, create_visualization
before = matplotlib.rcParams.copy()
metrics = AIMLMetricsCollector()
metrics.record_metric("m/epoch/0/loss", 1.0)
create_visualization(metrics, interactive=False).export_visualizations("out", formats=["png", "svg"])
assert matplotlib.rcParams.copy() == before
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "False"
