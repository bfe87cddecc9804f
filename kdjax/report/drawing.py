"""What the figures of a report have in common: colours, style, and files."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLORS = {"teacher": "#009e73", "student": "#0072b2", "baseline": "#d55e00"}
INK, MUTED, GRID, FAINT = "#1b1f24", "#5b6570", "#dfe3e8", "#b9c1ca"
DASHES = {"teacher": ":", "student": "-", "baseline": "--"}
MARKERS = {"teacher": "D", "student": "o", "baseline": "s"}

# Not the backend: a context that sets it does not put the user's own back.
_DEFAULTS: dict[Any, Any] = {
    key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"
}
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "lines.linewidth": 1.8,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
    "svg.fonttype": "none",  # Text stays text: searchable, and of the page's font.
}


class Drawing(NamedTuple):
    """A figure to be made.

    Attributes:
      name: of its file.
      caption: what it shows, for the page and for those who cannot see it.
      draw: makes it.
    """

    name: str
    caption: str
    draw: Callable[[], Figure]


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws with the style of the report, whatever the user's own is."""

    def with_style(*args: Any) -> Figure:
        with matplotlib.rc_context({**_DEFAULTS, **_STYLE}):
            return draw(*args)

    return with_style


def png(figure: Figure) -> bytes:
    """`figure` as a PNG file on white, at twice the resolution of a common screen."""
    buffer = io.BytesIO()
    with _saving():
        figure.savefig(buffer, format="png", dpi=200, facecolor="white")
    return buffer.getvalue()


def svg(figure: Figure, name: str) -> str:
    """`figure` as SVG text; `name` keeps its ids apart from those of others."""
    buffer = io.StringIO()
    with _saving({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True)
    return buffer.getvalue()


@contextlib.contextmanager
def _saving(options: dict[Any, Any] | None = None) -> Iterator[None]:
    with (
        matplotlib.rc_context({**_STYLE, **(options or {})}),
        warnings.catch_warnings(),
    ):
        # A class name may be in a script that the font of the PNG has no letters of.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
