"""The cell magic in a real IPython shell."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from holdfast.errors import InvalidInput
from holdfast.registry import AIMLMetricsCollector, create_visualization
from holdfast.registry.measurements import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def shell(tmp_path, monkeypatch) -> Iterator[Any]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    history = shell.history_manager
    assert history is not None
    history.enabled = False
    shell.run_line_magic("load_ext", "holdfast.registry.notebook")
    yield shell
    history.end_session()
    InteractiveShell.clear_instance()


def test_a_cell_is_run_as_ever_and_measured(shell, capsys):
    done = shell.run_cell("%%holdfast_metrics net\nx = 20 + 22\nx")
    assert done.success
    assert shell.user_ns["x"] == 42
    metrics = shell.user_ns["metrics"]
    assert isinstance(metrics, AIMLMetricsCollector)
    (cell,) = metrics.measurements(Kind.CELL)
    assert cell.subject == "net"
    assert cell.values["duration_s"] > 0
    shown = capsys.readouterr().out
    assert "42" in shown
    assert "net: " in shown


def test_fits_in_a_cell_are_epochs_of_its_model(shell, capsys):
    shell.run_cell(
        "from sklearn.linear_model import LinearRegression\nfrom holdfast.registry import AIMLMetricsCollector"
    )
    shell.run_cell("mine = AIMLMetricsCollector()")
    for _ in range(2):
        cell = "%%holdfast_metrics 'my net' --into mine --no-plot\nm = LinearRegression().fit([[1.], [2.]], [1., 2.])"
        assert shell.run_cell(cell).success
    mine = shell.user_ns["mine"]
    assert [(m.subject, m.step) for m in mine.measurements(Kind.EPOCH)] == [("my net", 0), ("my net", 1)]
    assert "1 epoch recorded" in capsys.readouterr().out
    assert "metrics" not in shell.user_ns


def test_a_cell_that_fails_stops_the_notebook_shows_its_error_once_and_is_counted(shell, capsys):
    done = shell.run_cell("%%holdfast_metrics net\n1 / 0")
    assert isinstance(done.error_in_exec, ZeroDivisionError)
    assert shell.user_ns["metrics"].measurements()[-1].error.startswith("ZeroDivisionError")
    assert capsys.readouterr().out.count("Traceback") == 1


@pytest.mark.parametrize(("cell", "told"), [("x = 1\nx / 0", "x / 0"), ("x = = 1", "SyntaxError")])
def test_a_front_end_is_told_of_an_error_once(shell, cell, told):
    shown: list[Any] = []
    shell.colors = "nocolor"
    shell._showtraceback = lambda *given: shown.append(given)
    shell.run_cell(f"%%holdfast_metrics net\n{cell}")
    ((kind, error, lines),) = shown
    assert isinstance(error, kind)
    text = "\n".join(lines)
    assert told in text
    assert ("notebook.py" in text) == (kind is SyntaxError)  # which IPython shows in its own way


def test_what_a_cell_itself_imports_is_watched(tmp_path):
    program = """
        import sys
        from IPython.core.interactiveshell import InteractiveShell

        shell = InteractiveShell.instance()
        shell.history_manager.enabled = False
        shell.run_line_magic("load_ext", "holdfast.registry.notebook")
        assert not {"torch", "sklearn"} & set(sys.modules)
        shell.run_cell(sys.argv[1])
        print([(each.subject, each.step) for each in shell.user_ns["metrics"].measurements("epoch")])
        shell.history_manager.end_session()
    """
    cell = "%%holdfast_metrics net --no-plot\nfrom sklearn.dummy import DummyClassifier as D\nm = D().fit([[1.]], [1])"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), cell],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "IPYTHONDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[('net', 0)]"


@pytest.mark.parametrize(
    "line", ["", "net --into", "net --into class", "net --into a.b", "net --what", "net 'open"]
)
def test_a_line_that_can_not_be_read_runs_nothing(shell, line, capsys):
    done = shell.run_cell(f"%%holdfast_metrics {line}\nran = True")
    assert isinstance(done.error_in_exec, InvalidInput)
    assert "ran" not in shell.user_ns
    capsys.readouterr()


def test_a_variable_that_is_no_collector_is_left_alone(shell, capsys):
    shell.run_cell("metrics = [1]")
    done = shell.run_cell("%%holdfast_metrics net\nran = True")
    assert isinstance(done.error_in_exec, InvalidInput)
    assert shell.user_ns["metrics"] == [1]
    capsys.readouterr()


def test_a_figure_that_a_cell_gives_is_shown_as_a_picture(shell):
    metrics = AIMLMetricsCollector()
    metrics.record_metric("net/epoch/0/train_loss", 0.5)
    figure = create_visualization(metrics, interactive=False).plot_training_metrics("net")
    formatter = shell.display_formatter
    formatter.active_types = ["text/plain", "image/png"]
    data, about = formatter.format(figure)
    assert data["image/png"].startswith(b"\x89PNG")
    assert about["image/png"] == {"width": 576}
