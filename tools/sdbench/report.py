# SPDX-License-Identifier: Apache-2.0
"""`sdbench report`: one HTML page with plots, and the tables of docs/performance.md."""

from __future__ import annotations

import re
import sys
from html import escape
from pathlib import Path

from tools.sdbench import plots, tables
from tools.sdbench.results import Results
from tools.sdbench.tables import Table

BEGIN, END = "<!-- FIGURES: begin; from `sdbench report --docs` -->", "<!-- FIGURES: end -->"

PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>sdbench</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 110em; padding: 0 1em; }}
table {{ border-collapse: collapse; margin: .5em 0 1.5em; font-size: 13px; }}
th, td {{ border: 1px solid #ccc; padding: .25em .5em; text-align: left; vertical-align: top; }}
th {{ background: #f2f2f2; }}
.better {{ background: #e6f5e6; }} .worse {{ background: #fbe6e6; }}
img {{ max-width: 100%; display: block; }}
</style>
<h1>sdbench</h1>
<p>Every figure was measured in turn with the native kernel in the same run: median (least-greatest), then how many
times better than native by rounds: <b>median</b> (least-greatest); above 1 is better. CPU is that of both ends per
operation.</p>
{body}
</html>
"""


def bold(text: str) -> str:
    """HTML of a cell."""
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(text))


def table_html(table: Table) -> str:
    """One table."""
    lines = ["<table><tr>", *(f"<th>{escape(text)}</th>" for text in table.headings), "</tr>"]
    for number, row in enumerate(table.rows):
        lines.append("<tr>")
        for column, text in enumerate(row):
            good = table.good.get((number, column))
            kind = "" if good is None else ' class="better"' if good else ' class="worse"'
            lines.append(f"<td{kind}>{bold(text)}</td>")
        lines.append("</tr>")
    return "".join([*lines, "</table>"])


def page(results: list[Results], pictures: dict[str, str]) -> str:
    """The whole document."""
    body = [f"<p>{escape(tables.machine_line(result))}</p>" for result in results]
    for table in tables.every(results):
        body.append(f"<h2>{escape(table.title)}</h2>")
        if table.note:
            body.append(f"<p>{escape(table.note)}</p>")
        if table.title in pictures:
            body.append(f'<img src="{escape(pictures[table.title])}" alt="{escape(table.title)}">')
        body.append(table_html(table))
    return PAGE.format(body="\n".join(body))


def docs_text(results: list[Results]) -> str:
    """What goes between the marks of docs/performance.md."""
    head = "\n".join(f"* {tables.machine_line(result)}" for result in results)
    return "\n".join([head, "", *(tables.markdown(table) for table in tables.every(results, brief=True))])


def main(files: list[Path], folder: Path, docs: Path | None) -> int:
    """Exit status 0 if a page was written."""
    try:
        results = [Results.load(path) for path in files]
        if not results:
            raise ValueError("nothing has been measured yet; run sdbench micro or sdbench apps first")
        folder.mkdir(parents=True, exist_ok=True)
        rows = [row for result in results for row in result.rows]
        pictures = plots.draw(rows, folder) if plots.possible() else {}
        (folder / "index.html").write_text(page(results, pictures))
        if docs:
            tables.write_between(docs, BEGIN, END, docs_text(results))
    except (OSError, ValueError) as error:
        print(f"sdbench: {error}", file=sys.stderr)
        return 1
    if not pictures:
        print("sdbench: no plots: matplotlib is not installed; `make bench` installs it", file=sys.stderr)
    print(folder / "index.html")
    return 0
