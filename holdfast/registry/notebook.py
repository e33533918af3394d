"""``%load_ext holdfast.registry.notebook``: measure a notebook's cell with ``%%holdfast_metrics MODEL``."""

from __future__ import annotations

import argparse
import ast
import shlex
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from keyword import iskeyword
from typing import TYPE_CHECKING, Any, NoReturn

from holdfast.errors import InvalidInput
from holdfast.registry.measurements.autolog import FRAMEWORKS, autolog
from holdfast.registry.measurements.collector import AIMLMetricsCollector
from holdfast.registry.measurements.measurement import Kind
from holdfast.registry.pictures.units import bytes_text, seconds_text
from holdfast.registry.pictures.visualization import create_visualization

if TYPE_CHECKING:
    from holdfast.registry.measurements.measurement import Measurement

__all__ = ["load_ipython_extension"]

MAGIC = "holdfast_metrics"


def load_ipython_extension(shell: Any) -> None:
    """Have a shell know the cell magic; IPython calls this."""
    shell.register_magic_function(_Magic(shell), magic_kind="cell", magic_name=MAGIC)


class _Magic:
    """Run the cell, measure it, and draw what its model was trained to.

    %%holdfast_metrics MODEL [--into NAME] [--no-plot] [--no-autolog]

    The measurements go into the collector in the variable NAME (`metrics`, if not given), which is made where it is missing.
    PyTorch loops and scikit-learn fits in the cell are recorded under MODEL.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self.__doc__ = _Magic.__doc__

    def __call__(self, line: str, cell: str) -> None:
        options = _options(line)
        metrics = self._collector(options.into)
        before = max((m.number for m in metrics.measurements()), default=0)
        with metrics.track_cell(options.model), ExitStack() as watched:
            if not options.no_autolog and (frameworks := self._frameworks(cell)):
                watched.enter_context(autolog(metrics, model=options.model, frameworks=frameworks))
            self._run(cell)
        new = metrics.measurements(after=before)
        print(_told(options.model, new))  # noqa: T201 -- what a magic tells stands below its cell
        if not options.no_plot and any(m.step is not None and m.subject == options.model for m in new):
            create_visualization(metrics).plot_training_metrics(options.model, show_plot=True)

    def _frameworks(self, cell: str) -> list[str]:
        """Those that are imported already, and those that the cell is about to import."""
        try:
            nodes = list(ast.walk(ast.parse(self._shell.transform_cell(cell))))
        except SyntaxError:
            nodes = []  # which is for the shell to say
        named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        named |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
        packages = {name.partition(".")[0] for name in named}
        return [name for name in FRAMEWORKS if name in sys.modules or (name in packages and find_spec(name))]

    def _run(self, cell: str) -> None:
        """Run the cell; its error ends the magic, too, and is shown once, as the cell's."""
        shown: list[list[str]] = []
        show = self._shell._showtraceback  # noqa: SLF001 -- made to be replaced by who shows it elsewhere
        self._shell._showtraceback = lambda _kind, _error, lines: shown.append(lines)  # noqa: SLF001
        try:
            result = self._shell.run_cell(cell)
        finally:
            self._shell._showtraceback = show  # noqa: SLF001
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            error._render_traceback_ = lambda: shown[-1] if shown else []
            raise error

    def _collector(self, name: str) -> AIMLMetricsCollector:
        found = self._shell.user_ns.setdefault(name, AIMLMetricsCollector())
        if not isinstance(found, AIMLMetricsCollector):
            raise InvalidInput(
                f"{name!r} is no collector but {found!r:.60}; name another variable with --into"
            )
        return found


def _told(model: str, new: tuple[Measurement, ...]) -> str:
    """What a cell came to, in one line."""
    cell = next(m for m in reversed(new) if m.kind is Kind.CELL)
    epochs = sum(m.kind is Kind.EPOCH for m in new)
    parts = [seconds_text(cell.values["duration_s"]), f"{bytes_text(cell.values['memory_bytes'])} in memory"]
    parts += [f"{epochs} epoch{'s' * (epochs != 1)} recorded"] * bool(epochs)
    return f"{model}: {', '.join(parts)}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidInput(f"{message}; {self.format_usage().strip()}")


def _options(line: str) -> argparse.Namespace:
    parser = _Parser(prog=f"%%{MAGIC}", add_help=False)
    parser.add_argument("model")
    parser.add_argument("--into", default="metrics")
    parser.add_argument("--no-plot", action="store_true")
    parser.add_argument("--no-autolog", action="store_true")
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise InvalidInput(f"{line!r} can't be read: {error}") from error
    options = parser.parse_args(words)
    if not options.into.isidentifier() or iskeyword(options.into):
        raise InvalidInput(f"--into takes the name of a variable, not {options.into!r}")
    return options
