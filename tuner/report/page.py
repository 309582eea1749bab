"""A page of HTML that needs nothing else: text, tables, figures, style and plotly.js in one file.

Whatever comes from people (names, reasons) is escaped where it is put into HTML; figures are JSON
in a script element, where no character can end the element. A content security policy forbids the
page every request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from tuner.report.charts import web

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table."""

    text: str
    number: float | None = None  # to sort by; it stands on the right
    link: str | None = None
    kind: str = ""  # of CSS


def page(title: str, body: Sequence[str], figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Put a page together; `figures` by the names that `figure` was given."""
    stored = {"figures": figures, "dark": dict(web.DARK)}
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            '<link rel="icon" href="data:,">',
            f"<style>{_own('page.css')}</style>",
            f"<script>{web.library()}</script></head><body>",
            *body,
            f'<script id="figures" type="application/json">{in_script(stored)}</script>',
            f"<script>{_own('page.js')}</script></body></html>",
        ]
    )


def in_script(value: object) -> str:
    """Write JSON that can stand in a script element: no `</script>` and no comment begins in it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def paragraphs(lines: Sequence[str]) -> str:
    """Give lines of text as paragraphs."""
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def answer(lines: Sequence[str], advice: Sequence[str]) -> str:
    """Give the answer that a report begins with."""
    following = "".join(f"<li>{escape(line)}</li>" for line in advice)
    return (
        f'<section class="answer">{paragraphs(lines)}<h2>What to try next</h2>'
        f"<ul>{following}</ul></section>"
    )


def figure(name: str, title: str, text: str, *, kind: str = "", tools: str = "") -> str:
    """Give the place of a figure, its title and what to see in it; `kind` is a class of CSS."""
    return (
        f'<section><div class="head"><h2>{escape(title)}</h2><div class="tools">{tools}</div></div>'
        f'<p class="soft">{escape(text)}</p><div class="frame">'
        f'<div class="figure {kind}" data-figure="{escape(name)}" role="img" '
        f'aria-label="{escape(f"{title}. {text}")}"></div></div></section>'
    )


def log_switch(name: str, *, log: bool) -> str:
    """Give a button that makes a figure's vertical axis logarithmic or linear."""
    pressed = str(log).lower()
    return f'<button data-log="{escape(name)}" aria-pressed="{pressed}">log</button>'


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Give a table that is sorted by a click on a column's head."""
    numeric = [any(row[k].number is not None for row in rows) for k in range(len(head))]
    heads = "".join(
        f"<th{' class=number' if right else ''}><button>{escape(name)}</button></th>"
        for name, right in zip(head, numeric, strict=True)
    )
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.link:
        text = f'<a href="{escape(cell.link)}">{text}</a>'
    kind = " ".join(filter(None, (cell.kind, "number" if cell.number is not None else "")))
    key = "" if cell.number is None else f' data-key="{cell.number!r}"'
    return f"<td{f' class={chr(34)}{escape(kind)}{chr(34)}' if kind else ''}{key}>{text}</td>"


def _own(name: str) -> str:
    return files("tuner.report").joinpath(name).read_text(encoding="utf-8")
