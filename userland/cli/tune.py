"""`llmasos models tune`: requantise a model for this machine, and show what that gained."""

from argparse import Namespace

from llmasos.kernel import values as v
from llmasos.kernel.errors import Errno, SyscallError

from . import exits
from .door import connect
from .progress import follow
from .show import document, note, size, table

_SMALL = "Q4_K_M"


def tune(arguments: Namespace) -> int:
    request = _request(arguments)
    with connect() as line:
        tuned = follow(line.stream("image_tune", request, v.Progress, v.Tuned))
    if arguments.json:
        document(tuned)
        return exits.OK
    _show(tuned)
    note(f"{tuned.path}")
    note(
        f"used from the next mount on: if {tuned.image} is mounted, "
        f"`llmasos unmount {tuned.image}`, then `llmasos mount {tuned.image}`"
    )
    return exits.OK


def _request(arguments: Namespace) -> v.ImageTune:
    if sum((arguments.small, bool(arguments.to), arguments.off)) > 1:
        raise SyscallError(Errno.EINVAL, "--small, --to and --off exclude each other")
    asked = v.ImageTune(arguments.name, measure=not arguments.no_measure, off=arguments.off)
    wanted = _SMALL if arguments.small else arguments.to or asked.quantisation
    return v.ImageTune(asked.name, wanted, asked.measure, asked.off)


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
