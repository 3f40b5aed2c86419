"""Prints how much of the branches of the kernel the tests take, and fails when it is too little.

    python tests/branches.py REPORT PERCENT

REPORT is what `coverage json` has written. The total of `coverage report` counts lines, too.
"""

import json
import sys
from pathlib import Path


def main(report: str, least: str) -> int:
    totals = json.loads(Path(report).read_text(encoding="utf-8"))["totals"]
    covered, branches = totals["covered_branches"], totals["num_branches"]
    percent = 100 * covered / branches
    print(f"branches: {percent:.1f} % ({covered:,} of {branches:,}; at least {least} %)")
    return int(percent < float(least))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
