"""A report as Markdown for papers and READMEs, as LaTeX, and as CSV for machines. Text from users is escaped."""

import csv
import io
import re

import rich.box
import rich.table
import rich.text

from experiments.report.tables import Column, Report, Table, TableRow, column_groups, origin

CSV_COLUMNS = (
    "table", "protocol", "row", "kind", "seeds", "mark", "group", "column", "unit", "value", "low", "high", "note",
)  # fmt: skip
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$",
    "[": "{[}", "*": "{*}",  # otherwise parsed as an argument of the previous line's end
}  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def markdown(report: Report) -> str:
    """The facts and all tables in GitHub's Markdown."""
    parts = [f"# {escape_markdown(report.title)}", ""]
    parts += [f"- {escape_markdown(name)}: {escape_markdown(value)}" for name, value in report.facts]
    for warning in report.warnings:
        parts += ["", f"> {escape_markdown(warning)}"]
    for table in report.tables:
        parts += ["", f"## {escape_markdown(_title(table))}", "", *_markdown_rows(table)]
        for note in table.notes:
            parts += ["", escape_markdown(note)]
    return "\n".join(parts) + "\n"


def latex(report: Report) -> str:
    """All tables, each a `table` with `booktabs` rules."""
    parts = ["% Needs \\usepackage{booktabs}."]
    parts += [f"% {_one_line(name)}: {_one_line(value)}" for name, value in report.facts]
    parts += [f"% {_one_line(warning)}" for warning in report.warnings]
    for table in report.tables:
        parts += ["", *_latex_table(table)]
    return "\n".join(parts) + "\n"


def csv_text(report: Report) -> str:
    """One line per number of each table, with its bounds, in full precision; a dash becomes an empty value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for table in report.tables:
        for row in table.rows:
            mark = "; ".join(filter(None, (row.mark, "random features" * report.random_features)))
            start = [table.name, row.protocol, row.label, row.kind, _seeds(row), mark]
            for column, cell in zip(table.columns, row.cells, strict=True):
                numbers = ["" if number is None else repr(number) for number in (cell.value, cell.low, cell.high)]
                line = [*map(_plain, (*start, column.group, column.name, column.unit)), *numbers, _plain(cell.note)]
                writer.writerow(line)
    return text.getvalue()


def escape_markdown(text: str) -> str:
    """`text` on one line, escaped so that it does not end a table cell or start a link, emphasis, HTML or heading."""
    return re.sub(r"([\\`*_{}\[\]<>|~#!$&])", r"\\\1", _one_line(text))


def escape_latex(text: str) -> str:
    """`text` on one line, escaped for LaTeX."""
    return "".join(_LATEX.get(character, character) for character in _one_line(text))


def terminal(table: Table) -> rich.table.Table:
    """A table for a terminal with two-line headings; rows of constant predictions are dim."""
    found = rich.table.Table(title=table.title, caption=" ".join(table.notes), box=rich.box.SIMPLE_HEAD,
                             title_justify="left", caption_justify="left")
    found.add_column(table.row_heading)
    groups = [name if place == 0 else "" for name, count in column_groups(table.columns) for place in range(count)]
    for group, name in [("", "seeds"), *((g, column.name) for g, column in zip(groups, table.columns, strict=True))]:
        found.add_column(rich.text.Text(f"{group}\n{name}"), justify="right", no_wrap=True)
    for row in table.rows:
        cells = (cell.text for cell in row.cells)
        found.add_row(_label(row, table), _seeds(row), *cells, style="dim" if row.kind == "control" else "")
    return found


def _plain(value: object) -> object:
    """A CSV cell that spreadsheets do not interpret as a formula."""
    if not isinstance(value, str):
        return value
    text = _one_line(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _title(table: Table) -> str:
    return f"{table.title}, protocol {table.protocol}"


def _label(row: TableRow, table: Table) -> str:
    words = origin(row, table)
    return f"{row.label} ({'; '.join(words)})" if words else row.label


def _seeds(row: TableRow) -> str:
    return "" if row.num_seeds is None else str(row.num_seeds)


def _heading(column: Column) -> str:
    unit = f" ({column.unit})" if column.unit else ""
    return f"{column.group} {column.name}{unit}".strip()


def _markdown_rows(table: Table) -> list[str]:
    headings = [table.row_heading, "seeds", *map(_heading, table.columns)]
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)]]
    escaped = [f"| {' | '.join(map(escape_markdown, headings))} |", f"| {' | '.join(lines[1])} |"]
    for row in table.rows:
        label = escape_markdown(_label(row, table))
        escaped.append(f"| {' | '.join((label, _seeds(row), *(escape_markdown(cell.text) for cell in row.cells)))} |")
    return escaped


def _latex_table(table: Table) -> list[str]:
    groups = column_groups(table.columns)
    heads = " & ".join(
        rf"\multicolumn{{{count}}}{{c}}{{{escape_latex(name)}}}" if count > 1 else escape_latex(name)
        for name, count in groups
    )
    names = " & ".join(
        escape_latex(f"{column.name} ({column.unit})" if column.unit else column.name) for column in table.columns
    )
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{escape_latex(_title(table))}. "
        rf"{escape_latex(' '.join(table.notes))}}}", rf"\label{{tab:{_plain_name(table.name)}}}",
        rf"\begin{{tabular}}{{l{'r' * (1 + len(table.columns))}}}", r"\toprule", rf" &  & {heads} \\",
        rf"{escape_latex(table.row_heading)} & seeds & {names} \\",
    ]  # fmt: skip
    kind = None
    for row in table.rows:
        lines += [r"\midrule"] if row.kind != kind else []
        kind = row.kind
        cells = (re.sub(r"-(?=\d)", "$-$", escape_latex(cell.text)) for cell in row.cells)
        lines.append(rf"{escape_latex(_label(row, table))} & {_seeds(row)} & {' & '.join(cells)} \\")
    return [*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]


def _plain_name(text: str) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", text.lower())
