"""Draw the report's plots as SVG that takes its colours from the page."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from bitnet_tuning.bench.summary import Curve
from bitnet_tuning.console import printable, times
from bitnet_tuning.errors import MissingError
from bitnet_tuning.plan.profile import PP, TG, Estimate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_NAMES = ("text", "muted", "line", "accent", "band", "roof", "page")
_VARIABLES = {f"#01020{number}": name for number, name in enumerate(_NAMES, 3)}
"""Unusual colours to draw with, and the page's CSS variables that replace them, whose colours
depend on the theme (light or dark)."""
TEXT, MUTED, LINE, ACCENT, BAND, ROOF, PAGE = _VARIABLES

WIDTH = 4.7
"""Width in inches of 72 SVG units. A phone's page is about that many pixels wide, so text keeps
its size there."""

_LONGEST = 32
"""Most characters of a name that have room beside a ratio."""

_PANEL, _BAR, _MARGIN = 2.3, 0.42, 0.75
"""Heights in inches of a panel, of a bar, and of what surrounds the bars."""

_STYLE: dict[Any, Any] = {
    # Text remains text, which can be searched, copied and read aloud.
    "svg.fonttype": "none",
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

_TITLES = {TG: "generation, tokens/s", PP: "prompt processing, tokens/s"}

_MOST_LABELS = 12
"""Most labels of thread counts that have room side by side."""

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


def curves_svg(curves: Sequence[Curve], label: str) -> str:
    """Draw speed by threads, one panel per phase. ``label`` is the text for screen readers."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(curves), squeeze=False)
        for axes, curve in zip(panels[:, 0], curves, strict=True):
            _draw_curve(axes, curve)
        panels[-1, 0].set_xlabel("threads")

    return _svg("threads", label, len(curves) * _PANEL + 0.3, draw)


def _draw_curve(axes: Axes, curve: Curve) -> None:
    counts, found = list(curve.speeds), list(curve.speeds.values())
    middles = [speed.median for speed in found]
    # Counts are evenly spaced, since those of few threads would stand too close otherwise.
    axes.errorbar(range(len(counts)), middles, _arms(found), color=ACCENT, ecolor=MUTED, **_POINT)
    every = -(-len(counts) // _MOST_LABELS)
    top = max(speed.high for speed in found)
    # A limit far above all speeds is only told in the caption.
    if curve.limit is not None and curve.limit <= 2 * top:
        top = max(top, curve.limit)
        axes.axhline(curve.limit, color=ROOF, linestyle="--", linewidth=1.2)
    axes.set_ylim(0, top * 1.1)
    axes.set_xticks(range(0, len(counts), every), [str(count) for count in counts[::every]])
    axes.margins(x=0.08)
    axes.set_title(_TITLES[curve.phase], loc="left", size="medium")
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)


def _arms(found: Sequence[Estimate]) -> list[list[float]]:
    return [
        [each.median - each.low for each in found],
        [each.high - each.median for each in found],
    ]


def ratios_svg(bars: Sequence[Bar], resolution: float, title: str, label: str) -> str:
    """Draw each setting's ratio with its interval, and what is equal as a band. ``title`` is that
    of the axis, ``label`` the text for screen readers."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvspan(1 / (1 + resolution), 1 + resolution, color=BAND, linewidth=0)
        axes.axvline(1, color=MUTED, linewidth=1)
        for number, bar in enumerate(bars):
            _draw_bar(axes, -number, *bar)
        axes.set_ylim(-len(bars) + 0.6, 0.8)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(title)

    return _svg("ratios", label, len(bars) * _BAR + _MARGIN, draw)


def _draw_bar(axes: Axes, place: int, name: str, ratio: Estimate, best: bool) -> None:
    colour = ACCENT if best else TEXT
    axes.errorbar(ratio.median, place, xerr=_arms([ratio]), color=colour, **_POINT)
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


def _svg(name: str, label: str, height: float, draw: Callable[[Figure], None]) -> str:
    import matplotlib  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    content = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # matplotlib warns of letters that its font lacks; the page uses another font.
        warnings.simplefilter("ignore")
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    return _inline(content.getvalue(), name, label)


def _inline(svg: str, name: str, label: str) -> str:
    """Return the SVG adapted to the page: its colours and fonts, full width, and unique ids."""
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
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
