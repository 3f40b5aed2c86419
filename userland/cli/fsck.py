"""`llmasos mem fsck`: are the pages whole, and do the indexes say what they say?"""

from argparse import Namespace

from llmasos.kernel import values as v

from . import exits
from .door import connect
from .show import card, cell, document


def fsck(arguments: Namespace) -> int:
    """The exit code is 1 when something is wrong still."""
    with connect() as line:
        found = line.call("fsck", v.Fsck(arguments.rebuild), v.Checked)
        left = found.faults
        if found.faults and arguments.rebuild:  # some are of the pages: no index mends them
            again = line.call("fsck", v.Fsck(), v.Checked)
            left = [fault for fault in found.faults if fault in again.faults]
    if arguments.json:
        document(
            {
                **_figures(found),
                "faults": found.faults,
                "mended": found.mended,
                "refused": found.refused,
                "left": left,
            }
        )
    else:
        _show(found, left)
    return exits.FAILED if left else exits.OK


def _figures(found: v.Checked) -> dict[str, object]:
    return {
        "pages": found.pages, "spaces": found.spaces, "vectors": found.vectors,
        "waiting": found.waiting, "embedder": found.embedder, "chroma": found.chroma,
    }  # fmt: skip


def _show(found: v.Checked, left: list[str]) -> None:
    card({**_figures(found), "embedder": found.embedder or "none"})
    for fault in found.faults:
        print(f"{'fault' if fault in left else 'was':8}  {cell(fault)}")
    for one in found.refused:
        print(f"{'refused':8}  {cell(one)}")
    for one in found.mended:
        print(f"{'mended':8}  {cell(one)}")
    if not found.faults:
        print("no fault was found")
