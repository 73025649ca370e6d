"""Plots as SVG that takes its colours from the page around it."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bitnet_tuning.bench.curves import Bar, Forest, Scaling
from bitnet_tuning.bench.markup import clean, escape
from bitnet_tuning.bench.rounds import PP, TG
from bitnet_tuning.bench.summary import digits, times
from bitnet_tuning.errors import MissingError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT, MUTED, LINE, ACCENT, BAND, ROOF, PAGE = (f"#01020{number}" for number in range(3, 10))
"""Colours that nobody would draw with: they stand for the page's, which know the theme."""

_VARIABLES = {
    TEXT: "text",
    MUTED: "muted",
    LINE: "line",
    ACCENT: "accent",
    BAND: "band",
    ROOF: "roof",
    PAGE: "page",
}
"""By placeholder, the names of the page's CSS variables."""

WIDTH = 4.7
"""Inches, of 72 units each. A phone shows about as many pixels, so that text stays as
large as it is here."""

_PANEL, _BAR, _MARGIN = 2.3, 0.42, 0.75
"""Heights in inches."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be read out, found and copied
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

_TITLES = {TG: "generation, tokens/s", PP: "prompt processing, tokens/s"}

_TICKS = (0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1, 1.2, 1.5, 2, 3, 5, 10)


def available() -> None:
    """Raises MissingError where there is nothing to plot with."""
    try:
        import matplotlib  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingError(
            "a report needs matplotlib, which is not installed",
            "pip install 'bitnet-tuning[report]', or beside a copy of it: pip install matplotlib",
        ) from error


def scaling_svg(scalings: Sequence[Scaling], label: str) -> str:
    """Speed by threads, one panel per phase. ``label`` says the same in words."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(scalings), squeeze=False)
        for axes, scaling in zip(panels[:, 0], scalings, strict=True):
            _draw_scaling(axes, scaling)
        panels[-1, 0].set_xlabel("threads")

    return _svg("threads", label, len(scalings) * _PANEL + 0.3, draw)


def _draw_scaling(axes: Axes, scaling: Scaling) -> None:
    counts = [point.threads for point in scaling.points]
    middles = [point.speed.median for point in scaling.points]
    spreads = [
        [point.speed.median - point.speed.low for point in scaling.points],
        [point.speed.high - point.speed.median for point in scaling.points],
    ]
    axes.errorbar(
        counts, middles, spreads, color=ACCENT, ecolor=MUTED, marker="o", markersize=4.5, capsize=3
    )
    for point in scaling.points:
        weight = "bold" if point.default else "normal"
        axes.annotate(
            digits(point.speed.median),
            (point.threads, point.speed.high),
            (0, 4),
            textcoords="offset points",
            ha="center",
            weight=weight,
        )
    top = max(point.speed.high for point in scaling.points)
    if scaling.roof is not None:
        _draw_roof(axes, scaling.roof, top)
        top = max(top, scaling.roof if scaling.roof <= 2 * top else top)
    axes.set_ylim(0, top * 1.2)
    axes.set_xticks(counts)
    axes.margins(x=0.08)
    axes.set_title(_TITLES[scaling.phase], loc="left", size="medium")
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_roof(axes: Axes, roof: float, top: float) -> None:
    """A limit far above all points would squeeze them: it is named instead."""
    text = f"memory allows {digits(roof)}"
    if roof > 2 * top:
        axes.annotate(
            f"{text}, beyond this plot", (0, 1), xycoords="axes fraction", va="top", color=ROOF
        )
        return
    axes.axhline(roof, color=ROOF, linestyle="--", linewidth=1.2)
    place = axes.get_yaxis_transform()
    axes.text(0.01, roof, text, transform=place, va="bottom", color=ROOF)


def forest_svg(forest: Forest, label: str) -> str:
    """Every setting's ratio to the default with its interval, and the noise floor."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        if forest.floor is not None:
            axes.axvspan(1 / forest.floor, forest.floor, color=BAND, linewidth=0)
        axes.axvline(1, color=MUTED, linewidth=1)
        for place, bar in enumerate(forest.bars):
            _draw_bar(axes, -place, bar)
        axes.set_ylim(-len(forest.bars) + 0.6, 0.8)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        _label_ratios(axes, forest)

    return _svg("ratios", label, len(forest.bars) * _BAR + _MARGIN, draw)


def _draw_bar(axes: Axes, place: int, bar: Bar) -> None:
    low, high = (abs(bar.ratio.median - end) for end in (bar.ratio.low, bar.ratio.high))
    colour = ACCENT if bar.winner else TEXT
    axes.errorbar(
        bar.ratio.median, place, xerr=[[low], [high]], color=colour, marker="o", markersize=4.5,
        capsize=3,
    )  # fmt: skip
    above: dict[str, Any] = {
        "transform": axes.get_yaxis_transform(),
        "va": "bottom",
        "color": colour,
        "bbox": {"facecolor": PAGE, "linewidth": 0, "pad": 1},
    }
    weight = "bold" if bar.winner else "normal"
    axes.text(0, place + 0.2, _shortened(clean(bar.name)), weight=weight, **above)
    axes.text(1, place + 0.2, times(bar.ratio), ha="right", weight=weight, **above)


def _shortened(name: str, most: int = 40) -> str:
    return name if len(name) <= most else f"{name[: most - 3]}..."


def _label_ratios(axes: Axes, forest: Forest) -> None:
    ends = [bar.ratio.low for bar in forest.bars] + [bar.ratio.high for bar in forest.bars]
    low, high = min(*ends, 0.9) * 0.95, max(*ends, 1.1) * 1.05
    axes.set_xlim(low, high)
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("speed as a multiple of the default's")


def _svg(name: str, label: str, height: float, draw: Any) -> str:
    available()
    import matplotlib  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    content = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its own font lacks: the page has them
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    return _inline(content.getvalue(), name, label)


def _inline(svg: str, name: str, label: str) -> str:
    """For a page: in its colours and fonts, as wide as there is place, with names of its own."""
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", svg)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, f"var(--{variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
