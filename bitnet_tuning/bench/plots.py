"""Plots as SVG that takes its colours from the page around it."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bitnet_tuning.bench import statistics
from bitnet_tuning.bench.comparison import DEFAULT
from bitnet_tuning.bench.results import Results
from bitnet_tuning.bench.summary import Row, digits, noise_floor, problem_of, times
from bitnet_tuning.errors import MissingError
from bitnet_tuning.plan.openmp import THREAD_COUNTS
from bitnet_tuning.plan.profile import PP, TG, Estimate
from bitnet_tuning.plan.setting import Setting

TYPE_CHECKING = False
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


MOST_BARS = 24
"""Of the plot of ratios; more would be no overview."""


class Point(NamedTuple):
    """Speed in tokens/s with so many threads."""

    threads: int
    speed: Estimate
    default: bool
    """Whether the default uses so many."""


class Scaling(NamedTuple):
    """One phase's speed by threads, all else as in the default."""

    phase: str
    points: tuple[Point, ...]
    """Ascending by threads."""
    roof: float | None
    """tokens/s that the memory's bandwidth allows; only generation is bound by it."""


class Bar(NamedTuple):
    """A setting's ratio to the default."""

    name: str
    ratio: Estimate
    winner: bool


class Forest(NamedTuple):
    """Ratios to the default, and how far the default strays from itself."""

    bars: tuple[Bar, ...]
    floor: float | None
    left_out: int
    """Settings for which there was no place: the slowest."""


def scalings(results: Results) -> tuple[Scaling, ...]:
    """Generation, then prompts; only those with a curve: two counts of threads or more."""
    found = (
        Scaling(TG, _points(results, TG), roof_speed(results)),
        Scaling(PP, _points(results, PP), None),
    )
    return tuple(each for each in found if len(each.points) > 1)


def roof_speed(results: Results) -> float | None:
    """tokens/s of generation that the memory allows, where its bandwidth is known."""
    limit = (results.roof.facts or {}).get("limit_tokens_per_second")
    known = isinstance(limit, (int, float)) and not isinstance(limit, bool) and limit > 0
    return float(limit) if known and limit is not None else None


def _points(results: Results, phase: str) -> tuple[Point, ...]:
    """Settings that use the same number of threads in this phase count as one."""
    default, measured = results.settings.get(DEFAULT), results.measured
    speeds: dict[int, list[float]] = {}
    for name, setting in results.settings.items():
        alike = default is not None and _but_threads(setting) == _but_threads(default)
        if alike and problem_of(measured, name) is None:
            found = measured.speeds(name)[phase]
            if found:
                speeds.setdefault(_threads(setting, phase), []).extend(found)
    return tuple(
        Point(count, statistics.estimate(speeds[count]), count == _threads(default, phase))
        for count in sorted(speeds)
        if default is not None
    )


def _threads(setting: Setting, phase: str) -> int:
    return setting.threads if phase == TG else setting.threads_batch


def _but_threads(setting: Setting) -> Setting:
    env = tuple(pair for pair in setting.env if pair[0] not in THREAD_COUNTS)
    return setting._replace(threads=1, threads_batch=1, env=env)


def forest(results: Results, rows: Sequence[Row]) -> Forest:
    """In the order of ``rows``; settings that failed or write wrong words are not there."""
    measured = results.measured
    bars = [
        Bar(row.name, row.to_default, row.winner)
        for row in rows
        if row.to_default is not None and problem_of(measured, row.name) is None
    ]
    return Forest(tuple(bars[:MOST_BARS]), noise_floor(results), len(bars[MOST_BARS:]))


def clean(text: str) -> str:
    """In one line, without what cannot be printed, such as control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def escape(text: object) -> str:
    """As text, in an element or within quotes."""
    return html.escape(clean(str(text)))


def paragraph(text: str, style: str = "") -> str:
    return element("p", escape(text), style)


def element(name: str, content: str, style: str = "") -> str:
    """``content`` is HTML; ``style`` a class."""
    return f"<{name}{_class(style)}>{content}</{name}>"


def _class(style: str) -> str:
    return f' class="{escape(style)}"' if style else ""


def section(title: str, parts: Iterable[str], style: str = "") -> str:
    """A part of the page under a heading; nothing at all without content."""
    content = "\n".join(part for part in parts if part)
    if not content:
        return ""
    return element("section", f"\n<h2>{escape(title)}</h2>\n{content}\n", style)


def items(texts: Iterable[str], style: str = "") -> str:
    found = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return element("ul", found, style) if found else ""


def definitions(pairs: Iterable[tuple[str, object]]) -> str:
    """Names and values; those without a value are left out."""
    shown = [(name, value) for name, value in pairs if value not in (None, "")]
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in shown
    )
    return element("dl", rows) if rows else ""


def figure(drawing: str, caption: str) -> str:
    """``drawing`` is SVG."""
    return f"<figure>\n{drawing}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def table(caption: str, heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """``rows`` are a class and cells of HTML, of which the first names the row. It scrolls by
    itself where it is wider than the page."""
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "\n".join(f"<tr{_class(style)}>{_cells(cells)}</tr>" for style, cells in rows)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption)}">\n<table>\n'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{top}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _cells(cells: Sequence[str]) -> str:
    first, *rest = cells
    return f'<th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest)
