"""The cell magic in a real IPython shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from holdfast.errors import InvalidInput
from holdfast.registry import AIMLMetricsCollector
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


@pytest.mark.parametrize("line", ["", "net --into", "net --what", "net 'open"])
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
