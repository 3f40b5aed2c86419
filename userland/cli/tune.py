"""`llmasos models tune`: requantises a model for this machine and shows what was measured."""

from argparse import Namespace
from collections.abc import Sequence

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError

from . import exits
from .connection import connect
from .progress import follow
from .show import note, print_json, size, table

_SMALL = "Q4_K_M"
_EXACT = ("F32", "F16", "BF16")  # types that are not quantised
_ENGINES = {"llama": "llama.cpp", "openvino": "OpenVINO"}


def tune(arguments: Namespace) -> int:
    request = _request(arguments)
    with connect() as client:
        tuned = follow(client.stream("image_tune", request, v.Progress, v.Tuned))
    if arguments.json:
        print_json(tuned)
        return exits.OK
    candidates_table(tuned.candidates)
    original = tuned.candidates[0].quantisation
    if len(tuned.candidates) > 1 and original not in _EXACT:
        note(f"made from the {original} file, which is quantised itself; ratio and KL refer to it")
    note(f"{tuned.path}")
    note(
        f"takes effect at the next mount; if {tuned.image} is mounted: "
        f"`llmasos unmount {tuned.image} && llmasos mount {tuned.image}`"
    )
    return exits.OK


def _request(arguments: Namespace) -> v.ImageTune:
    if sum((arguments.small, bool(arguments.to), arguments.off)) > 1:
        raise SyscallError(Errno.EINVAL, "--small, --to and --off are mutually exclusive")
    wanted = _SMALL if arguments.small else arguments.to
    return v.ImageTune(arguments.name, wanted, not arguments.no_measure, arguments.off)


def candidates_table(rows: Sequence[v.TuneCandidate]) -> None:
    """The measured files of a model; the chosen one is marked."""
    head = ("", "TYPE", "SIZE", "ENGINE", "PROMPT", "1 STREAM", "16 STREAMS", "PPL",
            "RATIO", "KL", "WHY")  # fmt: skip
    table(head, [_row(row) for row in rows], ends_in_text=True)


def _row(row: v.TuneCandidate) -> tuple[str, ...]:
    speeds = (_figure(one, 0) for one in (row.prompt, row.single, row.full))
    kl = f"{row.kl:.4f}" if row.ratio else "-"
    return (
        "*" if row.chosen else "", row.quantisation, size(row.bytes) if row.bytes else "-",
        _ENGINES.get(row.engine, "-"), *speeds, _figure(row.perplexity, 2), _figure(row.ratio, 3),
        kl, row.why,
    )  # fmt: skip


def _figure(number: float, digits: int) -> str:
    return f"{number:.{digits}f}" if number else "-"
