"""The result of a check of `llmasos doctor`, and its output."""

import sys
from collections.abc import Mapping
from typing import NamedTuple

from .show import COLOURS, cell, paint


class Finding(NamedTuple):
    status: str  # ok, warn, fail
    what: str
    fix: str = ""


def joined(findings: list[Finding], when_ok: str) -> Finding:
    """Merge findings into one with the worst status. `when_ok`: the text if there is none."""
    if not findings:
        return Finding("ok", when_ok)
    status = "fail" if any(one.status == "fail" for one in findings) else "warn"
    fixes = dict.fromkeys(one.fix for one in findings if one.fix)
    return Finding(status, "; ".join(one.what for one in findings), "; ".join(fixes))


def show(found: Mapping[str, Finding]) -> None:
    for name, one in found.items():
        mark = paint(f"{one.status:4}", COLOURS[one.status], sys.stdout.isatty())
        print(f"{mark}  {name:11}  {cell(one.what)}")
        if one.fix:
            print(f"      {'':11}  {cell(one.fix)}")
