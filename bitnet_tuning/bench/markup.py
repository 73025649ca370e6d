"""HTML from texts that nobody has looked at: names in it come from files; pure."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


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
