"""What a check of `llmasos doctor` found, and how it is shown."""

import sys
from collections.abc import Mapping
from typing import NamedTuple

from .show import COLOURS, cell, paint


class Finding(NamedTuple):
    status: str  # ok, warn, fail
    what: str
    fix: str = ""


def joined(some: list[Finding], good: str) -> Finding:
    """Several as one: the worst decides. `good`: what is said when there is none."""
    if not some:
        return Finding("ok", good)
    status = "fail" if any(one.status == "fail" for one in some) else "warn"
    fixes = dict.fromkeys(one.fix for one in some if one.fix)
    return Finding(status, "; ".join(one.what for one in some), "; ".join(fixes))


def show(found: Mapping[str, Finding]) -> None:
    for name, one in found.items():
        mark = paint(f"{one.status:4}", COLOURS[one.status], sys.stdout.isatty())
        print(f"{mark}  {name:11}  {cell(one.what)}")
        if one.fix:
            print(f"      {'':11}  {cell(one.fix)}")
