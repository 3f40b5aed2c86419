"""Generates the tables of README.md and docs/ between their markers: `make docs`.

Sources: the syscall table, the settings, the module docstrings and benchmarks/results/.
tests/test_rules.py fails while a generated part is out of date.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llmasos.kernel.abi.table import TABLE
from llmasos.kernel.config import Config
from llmasos.userland.bench import SUITES, throughput
from llmasos.userland.bench.figures import Figure
from llmasos.userland.bench.peers import GENAI, LLAMA, PYTHON
from llmasos.userland.bench.rig import ENGINES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
STORY = RESULTS / "story.txt"
PACKAGES = ("kernel", "drivers", "userland", "policies")
DESCRIPTIONS = {bar.id: bar.what for suite in SUITES.values() for bar in suite.bars}
PEERS = (*map(throughput.ours, ENGINES), GENAI, LLAMA, PYTHON)
PEERS_COMMAND = """\
```
make peers && llmasos bench throughput --out benchmarks/results && make docs
```"""
DEMO = ("< hundred.txt", "mem map", "$ HOW=", "--no-recall", "--pid 1 $HOW", "mem why")
RECALL_METHODS = {
    "both": "lexical and vector search, fused (the default)",
    "words": "BM25 over single pages",
    "dense": "vector search alone",
    "recency": "the newest pages",
    "rrf": "reciprocal rank fusion of BM25 and vector search",
}


# --- syscalls and settings --------------------------------------------------------------------
def syscalls() -> str:
    rows: list[Sequence[str]] = []
    for row in TABLE.values():
        errnos = " ".join(errno.name for errno in row.errnos)
        checked = " or ".join(f"`{path}`" for path in (row.object, row.own_object) if path)
        checked += f" and `{row.second}`" if row.second else ""
        rows.append((f"`{row.name}`", row.summary, checked, row.durability, errnos))
    head = ("syscall", "what it does", "objects checked by the policy", "class", "errors")
    return _table(head, rows)


def settings() -> str:
    rows = [
        (f"`{name}`", f"`{json.dumps(field.default)}`", field.description or "")
        for name, field in Config.model_fields.items()
    ]
    return _table(("setting", "default", "meaning"), rows)


# --- the map of files -------------------------------------------------------------------------
def files() -> str:
    """Every Python file of the packages, with the first sentence of its docstring."""
    return "\n\n".join(_folder(folder) for package in PACKAGES for folder in _folders(package))


def _folders(package: str) -> Iterator[Path]:
    top = ROOT / package
    below = (path for path in top.rglob("*") if path.is_dir() and any(path.glob("*.py")))
    yield from (top, *sorted(below))


def _folder(folder: Path) -> str:
    lines = [f"### {folder.relative_to(ROOT)}/"]
    package = folder / "__init__.py"
    if package.exists():
        lines += ["", _summary(package)]
    others = sorted(path for path in folder.glob("*.py") if path != package)
    rows = [(f"`{path.name}`", _summary(path)) for path in others]
    return "\n".join([*lines, *(["", _table(("file", "contents"), rows)] if rows else [])])


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    sentence = re.match(r".*?[.!?](?=\s|$)", paragraph)
    return (sentence[0] if sentence else paragraph).replace("|", "\\|")


# --- figures ----------------------------------------------------------------------------------
def figures() -> str:
    """Figures with a target."""
    rows: list[Sequence[str]] = []
    for document, figure in _figures():
        if figure["bar"] is not None:
            judged = Figure(**figure)
            target = judged.wanted.replace(">=", "≥").replace("<=", "≤")
            missed = "" if judged.good else ", missed"
            rows.append((*_cells(document, figure), f"{target}{missed}"))
    head = ("figure", "engine", "what", "measured", "target")
    return f"{_table(head, rows, right=2)}\n\n{_measured()}"


def unjudged() -> str:
    """Figures without a target."""
    rows = [_cells(*one) for one in _figures() if one[1]["bar"] is None]
    return f"{_table(('figure', 'engine', 'what', 'measured'), rows, right=1)}\n\n{_measured()}"


def peers() -> str:
    """Each side's medians, from the throughput suite."""
    rows: list[Sequence[str]] = []
    for row in (row for take in _takes("throughput") for row in take["facts"].get("beside", [])):
        waits = (f"{row[name]:.2f} s" if row[name] else "" for name in ("ttft_p50_s", "ttft_p95_s"))
        rows.append((row["load"], row["side"], f"{row['rate']:.0f}", *waits))
    head = ("load", "side", "tokens per second", "time to first token, p50", "p95")
    shown = [_table(head, rows, right=3)] if rows else []
    absent = [side for side in PEERS if side not in {row[1] for row in rows}]
    missing = [f"Not measured yet: {', '.join(absent)}."] if absent else []
    return "\n\n".join([*shown, *missing, PEERS_COMMAND])


def peer_settings() -> str:
    """The settings of each side of the throughput suite."""
    lines = list[str]()
    for take in _takes("throughput"):
        for side, options in take["settings"].items():
            listed = ", ".join(f"{name} {value}" for name, value in options.items())
            lines.append(f"- {side}: {listed}.")
    return "\n".join(lines)


def layout() -> str:
    """The cost of each layout of a window, from the layout suite."""
    found = {f["id"]: f for document, f in _figures() if document["name"] == "layout"}
    if not found:
        return "Not measured yet: run `llmasos bench layout`."
    rows: list[Sequence[str]] = []
    for name, figure in found.items():
        if name.startswith("layout.loss_"):
            computed = found[name.replace("loss_", "computed_")]["value"]
            what = str(DESCRIPTIONS.get(name) or figure["what"]).partition(": ")[2]
            rows.append((what, f"{figure['value']:.2f}", f"{computed:.0f}"))
    return _table(("layout", "loss on the correct answer", "tokens computed"), rows, right=2)


def recall() -> str:
    """Shares of the evidence by method and budget, from the recall suite."""
    takes = _takes("recall")
    if not takes:
        return "Not measured yet: run `llmasos bench recall`."
    facts = takes[0]["facts"]
    found = {RECALL_METHODS[way]: row for way, row in facts["tables"]["all"].items()}
    names = [name for name in next(iter(found.values())) if name != "p50 ms"]
    rows = [
        (method, *(f"{100 * row[name]:.1f}" for name in names)) for method, row in found.items()
    ]
    return _table((f"{facts['questions']:,} questions", *names), rows, right=len(names))


def _results() -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]


def _figures() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(document, figure) for document in _results() for figure in document["figures"]]


def _cells(document: dict[str, Any], figure: dict[str, Any]) -> tuple[str, str, str, str]:
    value = "missing" if figure["value"] is None else f"{figure['value']:g}"
    noisy = " (noisy)" if document["noisy"] else ""
    what = str(DESCRIPTIONS.get(figure["id"]) or figure["what"])
    engine = ENGINES.get(document.get("engine", ""), "")
    return f"`{figure['id']}`", engine, what, f"{value} {figure['unit']}".strip() + noisy


def _measured() -> str:
    found = _results()
    machines = sorted({_machine(document) for document in found})
    dates = sorted({document["date"][:10] for document in found})
    period = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return f"Measured on {'; '.join(machines)}; {period}."


def _machine(document: dict[str, Any]) -> str:
    machine = document["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"


def _takes(suite: str) -> list[dict[str, Any]]:
    """Of a suite's result, the attempt with the least load by other programs."""
    found = [document for document in _results() if document["name"] == suite]
    return [
        min(document["raw"], key=lambda attempt: attempt["foreign_share"] or 0.0)["take"]
        for document in found
    ]


# --- the story --------------------------------------------------------------------------------
def story() -> str:
    """The transcript that benchmarks/story.py wrote."""
    return f"```\n{STORY.read_text(encoding='utf-8').strip()}\n```"


def demo() -> str:
    """The commands of the story that show recall, with their output."""
    steps = re.split(r"(?m)^(?=[$#] )", STORY.read_text(encoding="utf-8"))
    shown = [step for step in steps if any(word in step.partition("\n")[0] for word in DEMO)]
    return f"```\n{''.join(shown).strip()}\n```"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], right: int = 0) -> str:
    """A table in Markdown; the last `right` columns are numbers."""
    rule = [*["---"] * (len(head) - right), *["---:"] * right]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


PAGES = {
    "README.md": {"demo": demo},
    "docs/configuration.md": {"settings": settings},
    "docs/figures.md": {
        "figures": figures, "peers": peers, "peer settings": peer_settings, "unjudged": unjudged,
    },
    "docs/layout.md": {"files": files},
    "docs/story.md": {"story": story},
    "docs/syscalls.md": {"syscalls": syscalls},
    "kernel/memory/README.md": {"layout": layout, "recall": recall},
}  # fmt: skip


def current(page: str) -> str:
    """A page with its generated parts up to date."""
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
