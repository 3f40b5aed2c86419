"""The generated parts of the pages: the table of syscalls, the figures, the table beside peers.

`make readme` writes them; test_rules.py asserts that they are current. The syscalls come from
kernel/abi.py, the figures from benchmarks/results/.
"""

import json
import sys
from pathlib import Path
from typing import Any

from llmasos.kernel.abi import TABLE
from llmasos.userland.bench.figures import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def syscalls() -> str:
    lines = ["| syscall | what it does | the gate checks | class | its own errors |",
             "| --- | --- | --- | --- | --- |"]  # fmt: skip
    for row in TABLE.values():
        errnos = " ".join(errno.name for errno in row.errnos)
        checked = " or ".join(f"`{path}`" for path in (row.object, row.own) if path)
        checked += f" and `{row.second}`" if row.second else ""
        lines.append(f"| `{row.name}` | {row.summary} | {checked} | {row.durability} | {errnos} |")
    return "\n".join(lines)


def results() -> list[dict[str, Any]]:
    paths = sorted(RESULTS.glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def reached() -> str:
    """Figures that have a bar."""
    found = results()
    if not found:
        return "Not measured yet: `make bench` does it."
    lines = ["| figure | what | measured | bar |", "| --- | --- | ---: | ---: |"]
    for document, figure in _figures(found):
        if figure["bar"] is not None:
            judged = Figure(**figure)
            wanted = judged.wanted.replace(">=", "≥").replace("<=", "≤")
            missed = "" if judged.good else ", missed"
            lines.append(f"{_cells(document, figure)} {wanted}{missed} |")
    return "\n".join([*lines, "", _measured(found)])


def told() -> str:
    """Figures that have none."""
    lines = ["| figure | what | measured |", "| --- | --- | ---: |"]
    lines += [_cells(*one) for one in _figures(results()) if one[1]["bar"] is None]
    return "\n".join([*lines, "", _measured(results())])


def _figures(found: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(document, figure) for document in found for figure in document["figures"]]


def _cells(document: dict[str, Any], figure: dict[str, Any]) -> str:
    value = "missing" if figure["value"] is None else f"{figure['value']:g}"
    noisy = " (noisy)" if document["noisy"] else ""
    measured = f"{value} {figure['unit']}".strip() + noisy
    return f"| `{figure['id']}` | {figure['what']} | {measured} |"


def _measured(found: list[dict[str, Any]]) -> str:
    machines = sorted({_machine(document) for document in found})
    dates = sorted({document["date"][:10] for document in found})
    return (
        f"Measured on {'; '.join(machines)}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}."
    )


def peers() -> str:
    """Each side's medians, from the throughput suite."""
    rows = [row for take in _throughput() for row in take["facts"].get("beside", [])]
    if not rows:
        return "Not measured yet: `make peers` and `llmasos bench throughput` do it."
    lines = ["| load | side | tokens a second | first token p50 | p95 |",
             "| --- | --- | ---: | ---: | ---: |"]  # fmt: skip
    for row in rows:
        waits = (f"{row[name]:.2f} s" if row[name] else "" for name in ("ttft_p50_s", "ttft_p95_s"))
        cells = (row["load"], row["side"], f"{row['rate']:.0f}", *waits)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def settings() -> str:
    """What each side of the throughput suite was told."""
    lines = list[str]()
    for side, said in (pair for take in _throughput() for pair in take["settings"].items()):
        words = ", ".join(f"{name} {value}" for name, value in said.items())
        lines.append(f"- {side}: {words}.")
    return "\n".join(lines)


def layout() -> str:
    """What each layout of a window costs, from the layout suite."""
    figures = {f["id"]: f for d in results() if d["name"] == "layout" for f in d["figures"]}
    if not figures:
        return "Not measured yet: `llmasos bench layout` does it."
    lines = ["| layout | loss on the right answer | tokens computed |", "| --- | ---: | ---: |"]
    for name, figure in figures.items():
        if name.startswith("layout.loss_"):
            computed = figures[name.replace("loss_", "computed_")]["value"]
            what = figure["what"].partition(": ")[2]
            lines.append(f"| {what} | {figure['value']:.2f} | {computed:.0f} |")
    return "\n".join(lines)


def recall() -> str:
    """Shares of the evidence by way and budget, from the recall suite."""
    takes = [_quietest(document)["take"] for document in results() if document["name"] == "recall"]
    if not takes:
        return "Not measured yet: `llmasos bench recall` does it."
    facts = takes[0]["facts"]
    rows = {WAYS[way]: row for way, row in facts["tables"]["all"].items()}
    head = [name for name in next(iter(rows.values())) if name != "p50 ms"]
    lines = [f"| {facts['questions']:,} questions | {' | '.join(head)} |",
             f"| --- |{' ---: |' * len(head)}"]  # fmt: skip
    for way, row in rows.items():
        cells = " | ".join(f"{100 * row[name]:.1f}" for name in head)
        lines.append(f"| {way} | {cells} |")
    return "\n".join(lines)


def story() -> str:
    """A transcript, from benchmarks/story.py."""
    path = RESULTS / "story.txt"
    if not path.exists():
        return "Not told yet: `python benchmarks/story.py` does it."
    return f"```\n{path.read_text(encoding='utf-8').strip()}\n```"


WAYS = {
    "both": "what we do", "words": "BM25 of single pages", "dense": "meaning alone",
    "recency": "the newest pages", "rrf": "reciprocal ranks of the two",
}  # fmt: skip


def _throughput() -> list[dict[str, Any]]:
    found = [document for document in results() if document["name"] == "throughput"]
    return [_quietest(document)["take"] for document in found]


def _quietest(document: dict[str, Any]) -> dict[str, Any]:
    return min(document["raw"], key=lambda attempt: attempt["foreign_share"] or 0.0)


def _machine(document: dict[str, Any]) -> str:
    machine = document["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"


PAGES = {
    "README.md": {"story": story, "syscalls": syscalls, "figures": reached, "peers": peers},
    "benchmarks/README.md": {"settings": settings, "told": told},
    "kernel/memory/README.md": {"layout": layout, "recall": recall},
}


def current(page: str) -> str:
    """A page with its generated parts as they have to be."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, body in PAGES[page].items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, old = text.split(begin)
        text = f"{before}{begin}{body()}\n{end}{old.split(end)[1]}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(current(page), encoding="utf-8")
    sys.exit(0)
