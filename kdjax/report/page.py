"""The report as one HTML page that needs nothing but itself."""

import html
import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdjax.report import drawing, figures, soft_labels, table
from kdjax.report.page_style import STYLE, TEMPLATE
from kdjax.report.quantities import METRICS, ROLE_NAMES, duration, number, si, spread
from kdjax.report.table import Cell, Table

# The colours of figures become those of the page, which knows light and dark.
_VARIABLES = {
    drawing.INK: "ink",
    drawing.MUTED: "muted",
    drawing.GRID: "grid",
    drawing.FAINT: "faint",
    **{color: role for role, color in drawing.COLORS.items()},
}


def render(report: Mapping[str, Any]) -> str:
    """The page: no script, no request to anywhere, light or dark as the reader likes.

    Everything that came from outside (names, notes, commands, the config) is escaped.
    """
    return fill(
        report,
        tables=table.tables(report),
        drawings=figures.drawings(report),
        details=_details(report),
        footer=footer(report),
        tiles=_tiles(report),
        soft_labels=_soft_labels(report),
    )


def fill(
    report: Mapping[str, Any],
    *,
    tables: Iterable[Table],
    drawings: Iterable[drawing.Drawing],
    details: Iterable[str],
    footer: Iterable[str],
    tiles: Iterable[str] = (),
    soft_labels: str = "",
) -> str:
    """The page of any report: its name, headline and findings, and these parts of it.

    Everything but tables and drawings is given as markup.
    """
    fields = {
        "title": escape(report["name"]),
        "style": STYLE,
        "headline": headline(report["headline"]),
        "tiles": "".join(tiles),
        "findings": "".join(finding(found) for found in report["findings"]),
        "tables": "".join(table_section(entry) for entry in tables),
        "figures": "".join(figure(entry) for entry in drawings),
        "soft_labels": soft_labels,
        "details": "".join(details),
        "footer": "".join(footer),
    }
    return string.Template(TEMPLATE).substitute(fields)


def escape(text: Any) -> str:
    return html.escape(str(text))


def _prose(text: str) -> str:
    """Escaped text whose lines never break inside a quantity."""
    space = "\N{NO-BREAK SPACE}"
    text = re.sub(r"(?<=\d) %", f"{space}%", text.replace("± ", f"±{space}"))
    return escape(text.replace(" = ", f"{space}={space}"))


def _linked(text: str) -> str:
    """Escaped text, in which web addresses are links: followed only when clicked."""
    parts = re.split(r"(https?://[^\s<>\"']*[^\s<>\"'.,;:)])", text)
    for i, part in enumerate(parts):
        address = escape(part)
        link = f'<a href="{address}" rel="noreferrer">{address}</a>'
        parts[i] = link if i % 2 else _prose(part)
    return "".join(parts)


def headline(text: str) -> str:
    """The claim large, the evidence in brackets after it small."""
    claim, bracket, evidence = text.partition(" (")
    return f"{_prose(claim)} <small>{_prose((bracket + evidence).strip())}</small>"


def _tiles(report: Mapping[str, Any]) -> Iterable[str]:
    """The few numbers that one looks for first."""
    metric = METRICS[report["unit"]]
    unit = "&nbsp;%" if metric.unit == "%" else ""
    for role, entry in report["roles"].items():
        result = entry["last"][metric.key]
        mean, *rest = spread(result, metric).partition(" ±")
        value = _data(Cell(mean, result["mean"]))
        count = f"n = {result['n']}"
        if result["n"] > 1:
            count = f"{''.join(rest).strip()} sd, {count}"
        cost = entry["cost"]
        size = f"{si(cost['parameters'])} parameters" if cost else ""
        yield (
            f'<div class="tile {role}"><span class="name">{ROLE_NAMES[role]}</span>'
            f'<span class="value">{value}{unit}</span>'
            f'<span class="sub">{_prose(count)}</span>'
            f'<span class="sub">{escape(size)}</span></div>'
        )


def finding(found: Mapping[str, str]) -> str:
    return f'<li class="{escape(found["kind"])}">{_linked(found["text"])}</li>'


def _data(cell: Cell) -> str:
    """A cell, the number behind it machine-readable."""
    if cell.value is None:
        return escape(cell.text)
    quantity, bracket, interval = _prose(cell.text).partition(" (")
    if bracket:
        quantity += f' <span class="interval">({interval}</span>'
    return f'<data value="{cell.value!r}">{quantity}</data>'


def table_section(entry: Table) -> str:
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in entry.columns)
    body = "".join(
        f'<tr><th scope="row">{_data(row[0])}</th>'
        + "".join(f"<td>{_data(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in entry.rows
    )
    note = f'<p class="note">{_linked(entry.note)}</p>' if entry.note else ""
    return (
        f"<section><h2>{escape(entry.title)}</h2>"
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{note}</section>"
    )


def figure(drawn: drawing.Drawing) -> str:
    """A figure with its caption; it takes the colours of the page."""
    caption = escape(drawn.caption)
    picture = _inline_svg(drawing.svg(drawn.draw(), drawn.name), drawn)
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _inline_svg(text: str, figure: drawing.Drawing) -> str:
    """An SVG file as an element of the page: its own ids, the page's colours."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # An inline element needs no namespaces, and a page without addresses asks nobody.
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    for before, after in (
        (' id="', f' id="{figure.name}-'),
        ("url(#", f"url(#{figure.name}-"),
        ('href="#', f'href="#{figure.name}-'),
    ):
        text = text.replace(before, after)
    for color, variable in _VARIABLES.items():
        text = text.replace(f": {color}", f": var(--{variable})")
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--font)", text)
    label = escape(figure.caption)
    # The size in points gives way to the width of the column.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _soft_labels(report: Mapping[str, Any]) -> str:
    cards = "".join(figure(d) for d in soft_labels.drawings(report))
    if not cards:
        return ""
    temperature = f"{report['temperature']:g}"
    return (
        "<section><h2>Dark knowledge</h2>"
        "<p>What the teacher thinks of a few images, as it answers (T = 1) and as the "
        f"student sees it (T = {temperature}). The labelled class is coloured; how the "
        "rest is shared out among the other classes is what labels alone do not "
        f'teach.</p><div class="figures cards">{cards}</div></section>'
    )


def _details(report: Mapping[str, Any]) -> Iterable[str]:
    best = table.best_table(report)
    if best is not None:
        yield folded("All metrics at the epoch best by validation", table_section(best))
    yield folded("Every training", table_section(table.per_seed(report)))
    if report["stage_seconds"]:
        rows = [
            [Cell(stage), Cell(duration(seconds), seconds)]
            for stage, seconds in report["stage_seconds"].items()
        ]
        total = sum(report["stage_seconds"].values())
        rows.append([Cell("all"), Cell(duration(total), total)])
        stages = Table("Wall time", ["Stage", "Time"], rows)
        yield folded("Wall time by stage", table_section(stages))
    yield folded("What the metrics mean", _definitions(report))
    config = json.dumps(report["config"], indent=2, ensure_ascii=False)
    yield folded("The whole config", f"<pre>{escape(config)}</pre>")


def folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _definitions(report: Mapping[str, Any]) -> str:
    entries = "".join(
        f"<dt>{escape(m.title)}</dt><dd>{escape(m.meaning)} {m.better.capitalize()} "
        "is better.</dd>"
        for m in METRICS.values()
    )
    return f"<dl>{entries}</dl>"


def footer(report: Mapping[str, Any]) -> Iterable[str]:
    yield f"<p>Run again with</p><pre>{escape(report['command'])}</pre><dl>"
    seeds = ", ".join(str(seed) for seed in report["seeds"])
    facts = {
        "Seeds": seeds,
        "Test examples": number(report["num_examples"], 0),
        "Versions": _pairs(report["versions"]),
        "Hardware": _pairs(report["hardware"]),
        "Commit": report["commit"] or "not known",
        "Made": report["created"],
    }
    for name, value in facts.items():
        yield f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>"
    yield "</dl>"


def _pairs(mapping: Mapping[str, Any]) -> str:
    names: Sequence[str] = list(mapping)
    return ", ".join(f"{name.replace('_', ' ')} {mapping[name]}" for name in names)
