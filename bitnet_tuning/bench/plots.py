"""Draw the report's plot as SVG that takes its colours from the page."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

from bitnet_tuning.console import printable, times
from bitnet_tuning.errors import MissingError
from bitnet_tuning.plan.profile import Estimate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from matplotlib.axes import Axes


_NAMES = ("text", "muted", "line", "accent", "band", "page")
_VARIABLES = {f"#01020{number}": name for number, name in enumerate(_NAMES, 3)}
"""Unusual colours to draw with, and the page's CSS variables that replace them, whose colours
depend on the theme (light or dark)."""
TEXT, MUTED, LINE, ACCENT, BAND, PAGE = _VARIABLES

WIDTH = 4.7
"""Width in inches of 72 SVG units. A phone's page is about that many pixels wide, so text keeps
its size there."""

_LONGEST = 32
"""Most characters of a name that have room beside a ratio."""

_BAR, _MARGIN = 0.42, 0.75
"""Heights in inches of a bar, and of what surrounds the bars."""

_STYLE: dict[Any, Any] = {
    # Text remains text, which can be searched, copied and read aloud.
    "svg.fonttype": "none",
    "svg.hashsalt": "ratios",  # the same results make the same page
    "font.size": 9.5,
    "text.color": TEXT,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}

_POINT: dict[str, Any] = {"marker": "o", "markersize": 4.5, "capsize": 3}

Bar = tuple[str, Estimate, bool]
"""A setting's name, its ratio, and whether it is the one to use."""


def available() -> None:
    """Raise MissingError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingError(
            "a report needs matplotlib, which is not installed",
            "install it: python3 -m pip install matplotlib",
        ) from error


def ratios_svg(bars: Sequence[Bar], resolution: float, title: str, label: str) -> str:
    """Draw each setting's ratio with its interval, and what is equal as a band. ``title`` is that
    of the axis, ``label`` the text for screen readers."""
    import matplotlib  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    content = io.StringIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # matplotlib warns of letters that its font lacks; the page uses another font.
        warnings.simplefilter("ignore")
        figure = Figure(figsize=(WIDTH, len(bars) * _BAR + _MARGIN), layout="constrained")
        axes = figure.subplots()
        axes.axvspan(1 / (1 + resolution), 1 + resolution, color=BAND, linewidth=0)
        axes.axvline(1, color=MUTED, linewidth=1)
        for number, bar in enumerate(bars):
            _draw_bar(axes, -number, *bar)
        axes.set_ylim(-len(bars) + 0.6, 0.8)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(title)
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    return _inline(content.getvalue(), label)


def _draw_bar(axes: Axes, place: int, name: str, ratio: Estimate, best: bool) -> None:
    colour = ACCENT if best else TEXT
    arms = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
    axes.errorbar(ratio.median, place, xerr=arms, color=colour, **_POINT)
    above: dict[str, Any] = {
        "transform": axes.get_yaxis_transform(),
        "va": "bottom",
        "color": colour,
        "bbox": {"facecolor": PAGE, "linewidth": 0, "pad": 1},
        "weight": "bold" if best else "normal",
    }
    name = clean(name)
    name = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    axes.text(0, place + 0.2, name, **above)
    axes.text(1, place + 0.2, times(*ratio), ha="right", **above)


def _inline(svg: str, label: str) -> str:
    """Return the SVG adapted to the page: its colours and fonts, and full width."""
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", svg)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, f"var(--{variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def clean(text: str) -> str:
    """Return the text on one line, with ? for characters that cannot be printed."""
    return printable(" ".join(text.split()))


def escape(text: object) -> str:
    """Return the text escaped for HTML, in an element or in a quoted attribute."""
    return html.escape(clean(str(text)))
