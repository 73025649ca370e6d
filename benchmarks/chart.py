"""Draw ratios as a bar chart: one SVG file that GitHub shows in its light and its dark theme.

The picture has its own background and takes its colours from the reader's theme, so that text is
readable in both. Fonts are the reader's; the file is the same for the same figures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from math import log
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bitnet_tuning.bench.report import escape
from bitnet_tuning.bench.summary import digits
from bitnet_tuning.plan.profile import Estimate

WIDTH, SHOWN = 440, 540
"""Width of the drawing in its own units, and in pixels where the page has the room. On a phone of
390 pixels, a page is about 358 wide, so that a text of 14 units is 11 pixels high."""

LEFT, RIGHT = 148, 300
"""Ends of the longest possible bar; names stand before it, figures behind it."""

HEAD, GROUP, BAR, THICK, FOOT, STEP = 34, 32, 23, 11, 46, 18
"""Heights of the title, of a group's name, of a row and its bar, of the axis, and of a note."""

LINE = 56
"""Characters of a line of notes, which fit even in a wide font."""

LOW, HIGH = 0.7, 4.0
"""Ratios at the ends of the axis, at least and at most. A longer bar ends in an arrow."""

TICKS = (0.25, 0.5, 0.7, 1, 1.5, 2, 3, 4)

STYLE = """\
svg { --page: #ffffff; --text: #1f2328; --muted: #59636e; --line: #d1d9e0;
  --more: #0969da; --less: #bc4c00; --same: #818b98; }
@media (prefers-color-scheme: dark) {
  svg { --page: #0d1117; --text: #f0f6fc; --muted: #9198a1; --line: #3d444d;
    --more: #4493f8; --less: #db6d28; --same: #656c76; } }
text { font: 14px -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  fill: var(--text); }
.b { font-weight: 600; } .m { font-size: 13px; fill: var(--muted); } .r { text-anchor: end; }
.c { text-anchor: middle; } .page { fill: var(--page); } .line { stroke: var(--line); }
.one { stroke: var(--muted); } .arm { stroke: var(--text); stroke-width: 1.5; }
.more { fill: var(--more); } .less { fill: var(--less); } .same { fill: var(--same); }"""


class Bar(NamedTuple):
    """One row of the chart."""

    name: str
    ratio: Estimate


class Group(NamedTuple):
    """Rows with a heading."""

    name: str
    bars: Sequence[Bar]


def chart(title: str, groups: Sequence[Group], notes: Sequence[str]) -> str:
    """Return the chart as SVG, with notes at its foot."""
    rows = [bar for group in groups for bar in group.bars]
    low = min([LOW, *(bar.ratio.low * 0.95 for bar in rows)])
    bottom = HEAD + len(groups) * GROUP + len(rows) * BAR
    foot = [line for note in notes for line in wrap(note, LINE)]
    height = bottom + FOOT + len(foot) * STEP
    spoken = "; ".join(
        f"{group.name}: " + ", ".join(f"{bar.name} {_times(bar.ratio)}" for bar in group.bars)
        for group in groups
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{SHOWN}" '
        f'height="{height * SHOWN / WIDTH:.0f}" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(spoken)}</desc>",
        f"<style>\n{STYLE}\n</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>',
        _text(10, 24, title, "b"),
        *_axis(low, bottom),
    ]
    top = HEAD
    for group in groups:
        lines.append(_text(10, top + GROUP - 9, group.name, "b"))
        top += GROUP
        for bar in group.bars:
            lines += _bar(bar, top, low)
            top += BAR
    for number, line in enumerate(foot):
        lines.append(_text(10, bottom + FOOT + number * STEP, line, "m"))
    return "\n".join([*lines, "</svg>", ""])


def _axis(low: float, bottom: int) -> Iterator[str]:
    for tick in TICKS:
        if tick >= low:
            x, kind = _place(tick, low), "one" if tick == 1 else "line"
            yield f'<path class="{kind}" d="M{x:.1f} {HEAD + 6}V{bottom + 4}"/>'
            yield _text(x, bottom + 20, f"{tick:g}", "m c")


def _bar(bar: Bar, top: int, low: float) -> Iterator[str]:
    """Yield a bar from 1 to the ratio, its interval as a line, its name and its figures."""
    ratio, middle = bar.ratio, top + BAR / 2
    one, end = _place(1, low), _place(ratio.median, low)
    is_sure = ratio.count > 1 and not ratio.low <= 1 <= ratio.high
    kind = ("more" if ratio.median > 1 else "less") if is_sure else "same"
    begin, upper, lower = min(one, end), middle - THICK / 2, middle + THICK / 2
    yield _text(10, middle + 5, bar.name)
    if ratio.median > HIGH:
        tip = f"H{RIGHT - 7}L{RIGHT} {middle:g}L{RIGHT - 7} {lower:g}H{one:.1f}Z"
        yield f'<path class="{kind}" d="M{one:.1f} {upper:g}{tip}"/>'
    else:
        wide = max(1.0, abs(end - one))
        yield (
            f'<rect class="{kind}" x="{begin:.1f}" y="{upper:g}" width="{wide:.1f}" '
            f'height="{THICK}"/>'
        )
        if ratio.count > 1:
            arm = f"M{_place(ratio.low, low):.1f} {middle:g}H{_place(ratio.high, low):.1f}"
            yield f'<path class="arm" d="{arm}"/>'
    median, _, interval = _times(ratio).partition(" ")
    figures = f'<tspan class="b">{median}</tspan> <tspan class="m">{interval}</tspan>'
    yield f'<text class="r" x="{WIDTH - 10}" y="{middle + 5:g}">{figures}</text>'


def _place(ratio: float, low: float) -> float:
    """Return where a ratio lies on the axis, which is logarithmic."""
    share = log(min(ratio, HIGH) / low) / log(HIGH / low)
    return LEFT + share * (RIGHT - LEFT)


def _times(ratio: Estimate) -> str:
    if ratio.count < 2:
        return f"×{digits(ratio.median)} (1 round)"
    return f"×{digits(ratio.median)} ({digits(ratio.low)}–{digits(ratio.high)})"


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:g}" y="{y:g}">{escape(text)}</text>'
