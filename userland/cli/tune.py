"""`llmasos models tune`: requantises a model for this machine and compares both files."""

from argparse import Namespace

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError

from . import exits
from .connection import connect
from .progress import follow
from .show import note, print_json, size, table

_SMALL = "Q4_K_M"


def tune(arguments: Namespace) -> int:
    request = _request(arguments)
    with connect() as client:
        tuned = follow(client.stream("image_tune", request, v.Progress, v.Tuned))
    if arguments.json:
        print_json(tuned)
        return exits.OK
    _show(tuned)
    note(f"{tuned.path}")
    note(
        f"takes effect at the next mount; if {tuned.image} is mounted: "
        f"`llmasos unmount {tuned.image} && llmasos mount {tuned.image}`"
    )
    return exits.OK


def _request(arguments: Namespace) -> v.ImageTune:
    if sum((arguments.small, bool(arguments.to), arguments.off)) > 1:
        raise SyscallError(Errno.EINVAL, "--small, --to and --off are mutually exclusive")
    base = v.ImageTune(arguments.name, measure=not arguments.no_measure, off=arguments.off)
    wanted = _SMALL if arguments.small else arguments.to or base.quantisation
    return v.ImageTune(base.name, wanted, base.measure, base.off)


def _show(tuned: v.Tuned) -> None:
    before, after = tuned.before, tuned.after
    head = ("", "FILE", "SIZE", "PERPLEXITY", "PREFILL TOK/S", "DECODE TOK/S")
    names = ("bytes", "perplexity", "prefill", "decode")
    table(head, [
        ("before", *_row(before)),
        ("after", *_row(after)),
        ("after/before", "", *(_ratio(getattr(after, n), getattr(before, n)) for n in names)),
    ])  # fmt: skip


def _row(quality: v.Quality) -> tuple[str, ...]:
    figures = ((quality.perplexity, 2), (quality.prefill, 1), (quality.decode, 1))
    shown = (f"{figure:.{digits}f}" if figure else "-" for figure, digits in figures)
    return quality.quantisation, size(quality.bytes), *shown


def _ratio(after: float, before: float) -> str:
    return f"{after / before:.2f}" if after and before else "-"
