"""The HTML of a page: one self-contained file with its text, tables, figures, style and plotly.js.

Names and reasons that users wrote are escaped when they are put into HTML. Figures are JSON in a
script element, encoded so that no character can end the element. A content security policy forbids
every request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from tuner.report.charts import plotly_backend

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table."""

    text: str
    number: float | None = None  # the sort key; the cell is aligned right
    link: str | None = None
    kind: str = ""  # CSS class


def page(title: str, body: Sequence[str], figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the HTML of a page; the keys of `figures` are the names passed to `figure`."""
    stored = {"figures": figures, "dark": dict(plotly_backend.DARK)}
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            '<link rel="icon" href="data:,">',
            f"<style>{_read_resource('page.css')}</style>",
            f"<script>{plotly_backend.library()}</script></head><body>",
            *body,
            f'<script id="figures" type="application/json">{in_script(stored)}</script>',
            f"<script>{_read_resource('page.js')}</script></body></html>",
        ]
    )


def in_script(value: object) -> str:
    """Return JSON that is safe inside a script element: no `</script>`, no start of a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def paragraphs(lines: Sequence[str]) -> str:
    """Return each line as a paragraph."""
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def answer(lines: Sequence[str], advice: Sequence[str]) -> str:
    """Return the section at the top of a report: the answer and the advice."""
    following = "".join(f"<li>{escape(line)}</li>" for line in advice)
    return (
        f'<section class="answer">{paragraphs(lines)}<h2>What to try next</h2>'
        f"<ul>{following}</ul></section>"
    )


def figure(name: str, title: str, text: str, *, kind: str = "", tools: str = "") -> str:
    """Return the section of a figure: title, text and placeholder; `kind` is a CSS class."""
    return (
        f'<section><div class="head"><h2>{escape(title)}</h2><div class="tools">{tools}</div></div>'
        f'<p class="soft">{escape(text)}</p><div class="frame">'
        f'<div class="figure {kind}" data-figure="{escape(name)}" role="img" '
        f'aria-label="{escape(f"{title}. {text}")}"></div></div></section>'
    )


def log_switch(name: str, *, log: bool) -> str:
    """Return a button that switches the y axis between logarithmic and linear."""
    pressed = str(log).lower()
    return f'<button data-log="{escape(name)}" aria-pressed="{pressed}">log</button>'


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return a table; a click on a column header sorts it."""
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


def _read_resource(name: str) -> str:
    return files("tuner.report").joinpath(name).read_text(encoding="utf-8")
