"""`llmasos mem fsck`: checks that pages are intact and that indexes agree with them."""

from argparse import Namespace

from llmasos.kernel.abi import values as v

from . import exits
from .connection import connect
from .show import cell, key_values, print_json


def fsck(arguments: Namespace) -> int:
    """Check and optionally rebuild. The exit code is 1 if faults remain."""
    with connect() as client:
        found = client.call("fsck", v.Fsck(arguments.rebuild), v.Checked)
        left = found.faults
        if found.faults and arguments.rebuild:  # a rebuild repairs indexes, not pages
            second = client.call("fsck", v.Fsck(), v.Checked)
            left = [fault for fault in found.faults if fault in second.faults]
    if arguments.json:
        print_json(
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
    key_values({**_figures(found), "embedder": found.embedder or "none"})
    for fault in found.faults:
        print(f"{'fault' if fault in left else 'was':8}  {cell(fault)}")
    for one in found.refused:
        print(f"{'refused':8}  {cell(one)}")
    for one in found.mended:
        print(f"{'mended':8}  {cell(one)}")
    if not found.faults:
        print("no faults found")
