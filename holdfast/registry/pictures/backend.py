"""What every way of drawing offers, and which of them there are."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from holdfast.registry.pictures.chart import Chart
    from holdfast.registry.pictures.theme import Theme

__all__ = ["Backend", "installed", "open_backend"]


class Backend(Protocol):
    """Draws charts with one library."""

    name: str
    formats: frozenset[str]
    """The file formats that it writes."""

    def figure(self, chart: Chart, theme: Theme) -> Any:
        """The chart as the library's own figure."""
        ...

    def written(self, figure: Any, file_format: str) -> bytes:
        """A figure as a file of one of ``formats``."""
        ...

    def show(self, figure: Any) -> bool:
        """Show a figure in the notebook or on the screen; False where there is neither."""
        ...


def installed(library: str) -> bool:
    """Whether a library can be imported."""
    try:
        return find_spec(library) is not None
    except (ImportError, ValueError):  # its place in sys.modules is taken by None or by half a module
        return False


def open_backend(name: str) -> Backend:
    """The backend ``matplotlib``, ``plotly`` or ``text``.

    Raises:
        Unsupported: Its library is not installed.
    """
    if name == "matplotlib":
        from holdfast.registry.pictures.matplotlib_backend import MatplotlibBackend

        return MatplotlibBackend()
    if name == "plotly":
        from holdfast.registry.pictures.plotly_backend import PlotlyBackend

        return PlotlyBackend()
    from holdfast.registry.pictures.text_backend import TextBackend

    return TextBackend()
