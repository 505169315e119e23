"""The table of kernels and tools, as Markdown that is also readable in a terminal."""

import re

# The place of the table in the page.
MARKED = re.compile(r"(<!-- kernels: make vm-table -->\n).*(<!-- /kernels -->)", re.S)


def update(page, results):
    """Inserts the table into the page."""
    text, places = MARKED.subn(lambda place: f"{place[1]}\n{table(results)}\n\n{place[2]}", page.read_text())
    if places != 1:
        raise LookupError(f"{page} has {places} places for the table and not one")
    page.write_text(text)


def table(results):
    notes = []
    tools = list(dict.fromkeys(tool for result in results for tool in result["tools"]))
    rows = [[f"`{tool}`", *(cell(result["tools"].get(tool), notes) for result in results)] for tool in tools]
    rows.append(["*held while serving*", *(held(result) for result in results)])
    header = ["", *(result["release"] for result in results)]
    text = "\n".join([line(header), line(["---"] * len(header)), *map(line, pad(rows))])
    return text + "".join(f"\n\n{number}. {note}" for number, note in enumerate(notes, 1))


def cell(tool, notes):
    """One tool on one kernel; each gap is a numbered note."""
    if tool is None:
        return "not tested"
    if tool["failed"]:
        return "FAILED"
    if not tool["available"]:
        return f"not available {number(tool['reason'], notes)}"
    if tool["limits"]:
        return "reduced " + " ".join(number(limit, notes) for limit in tool["limits"])
    return "works"


def number(note, notes):
    if note not in notes:
        notes.append(note)
    return f"({notes.index(note) + 1})"


def held(result):
    """The capabilities that the daemon holds while it serves, each with its tools."""
    keeping = lambda capability: [name for name, tool in result["tools"].items() if capability in tool["keeps"]]
    return ", ".join(f"{capability} for {' '.join(keeping(capability))}" for capability in result["held"]) or "nothing"


def pad(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [[text.ljust(width) for text, width in zip(row, widths)] for row in rows]


def line(cells):
    return f"| {' | '.join(cells)} |"
