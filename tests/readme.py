"""The generated parts of README.md: the table of syscalls, the figures, the table beside peers.

`make readme` writes them; test_rules.py asserts that they are current. The syscalls come from
kernel/abi.py, the figures from benchmarks/results/.
"""

import json
import sys
from pathlib import Path
from typing import Any

from llmasos.kernel.abi import TABLE

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"


def syscalls() -> str:
    lines = ["| syscall | what it does | the gate checks | class | its own errors |",
             "| --- | --- | --- | --- | --- |"]  # fmt: skip
    for row in TABLE.values():
        errnos = " ".join(errno.name for errno in row.errnos)
        lines.append(
            f"| `{row.name}` | {row.summary} | `{row.object}` | {row.durability} | {errnos} |"
        )
    return "\n".join(lines)


def results() -> list[dict[str, Any]]:
    paths = sorted(RESULTS.glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def figures() -> str:
    found = results()
    if not found:
        return "Not measured yet: `make bench` does it."
    lines = ["| figure | what | measured | bar |", "| --- | --- | ---: | ---: |"]
    for document in found:
        for figure in document["figures"]:
            sign = "≥" if figure["better"] == "higher" else "≤"
            value = "missing" if figure["value"] is None else f"{figure['value']:g}"
            noisy = " (noisy)" if document["noisy"] else ""
            bar = "" if figure["bar"] is None else f"{sign} {figure['bar']:g}"
            measured = f"{value} {figure['unit']}".strip() + noisy
            lines.append(f"| `{figure['id']}` | {figure['what']} | {measured} | {bar} |")
    machines = {_machine(document) for document in found}
    dates = sorted({document["date"][:10] for document in found})
    return "\n".join([*lines, "", f"Measured on {'; '.join(sorted(machines))}; {dates[-1]}."])


def peers() -> str:
    """Each side's medians, from the throughput suite."""
    found = [document for document in results() if document["name"] == "throughput"]
    takes = [_quietest(document)["take"] for document in found]
    rows = [row for take in takes for row in take["facts"].get("beside", [])]
    if not rows:
        return "Not measured yet: `make peers` and `llmasos bench throughput` do it."
    lines = ["| load | side | tokens a second | first token p50 | p95 |",
             "| --- | --- | ---: | ---: | ---: |"]  # fmt: skip
    for row in rows:
        waits = (f"{row[name]:.2f} s" if row[name] else "" for name in ("ttft_p50_s", "ttft_p95_s"))
        cells = (row["load"], row["side"], f"{row['rate']:.0f}", *waits)
        lines.append(f"| {' | '.join(cells)} |")
    settings = [(side, said) for take in takes for side, said in take["settings"].items()]
    lines += ["", "Settings:", ""]
    for side, said in settings:
        words = ", ".join(f"{name} {value}" for name, value in said.items())
        lines.append(f"- {side}: {words}.")
    return "\n".join(lines)


def _quietest(document: dict[str, Any]) -> dict[str, Any]:
    return min(document["raw"], key=lambda attempt: attempt["foreign_share"] or 0.0)


def _machine(document: dict[str, Any]) -> str:
    machine = document["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"


def current(text: str) -> str:
    """The README with its generated parts as they have to be."""
    for name, body in (("syscalls", syscalls()), ("figures", figures()), ("peers", peers())):
        begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        before, old = text.split(begin)
        after = old.split(end)[1]
        text = before + begin + body + end + after
    return text


if __name__ == "__main__":
    README.write_text(current(README.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
