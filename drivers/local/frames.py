"""The frames between the kernel's side of the engine and its child process.

    to the child     LOAD first, then requests with an answer (TOKENIZE CUT COMPOSE EXTEND CHECK
                     EMBED) and commands without one (ADMIT ORDER GRANT CANCEL PARK UNPARK DROP
                     CLEAR FORGET PURGE RESTORE)
    to the kernel    LOADING while it loads, STEPS: one frame a step, PARKED and SHARED: what a new
                     process needs to continue a parked call, which it gets with RESTORE

Tokens are sent as bytes and pages as one flat list: both stay below the limits on items. A text
that the kernel has is not sent back: its pages are lengths. Imported by both sides, so it must not
load the library of an engine.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from llmasos.drivers.frames import DRIVER_BASE, Frame
from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.abi.values import Finish, Hardware, Logprob
from llmasos.kernel.abi.wire import build
from llmasos.kernel.driver import ContextSaved, Cut, Facts, Step

NAME = "the engine"  # in messages
_USUAL_FIELDS = 3  # of a step: call, text, tokens
(
    LOAD, TOKENIZE, CUT, COMPOSE, EXTEND, CHECK, EMBED, ADMIT, GRANT, CANCEL, PARK, UNPARK,
    FORGET, PURGE, ORDER, DROP, CLEAR, RESTORE,
    LOADING, STEPS, PARKED, SHARED,
) = range(DRIVER_BASE, DRIVER_BASE + 22)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What a child loads, and how. Each engine adds its own fields."""

    path: str
    slots: int
    width: int
    window: int  # tokens a slot
    threads: int  # maximum
    adaptive: bool  # fewer threads while other programs use the cores
    deterministic: bool
    chunk_s: float  # time limit of a step with decoding calls; 0: none
    batch: int  # maximum tokens of a step
    hang_s: float  # a step that takes longer: the child is killed
    parked_bytes: int  # limit of the saved contexts of parked calls
    nice: int  # of the computing threads; that of the text thread is unchanged


def tokens_out(tokens: Sequence[int]) -> bytes:
    """The tokens as 32-bit integers. Raises OverflowError for a larger number."""
    return array("i", tokens).tobytes()


def tokens_in(data: bytes) -> list[int]:
    tokens = array("i")
    tokens.frombytes(data)
    return tokens.tolist()


def cuts_out(cuts: Sequence[Cut]) -> list[str | int]:
    return [part for cut in cuts for part in (cut.text, cut.tokens)]


def cuts_in(flat: list[Any]) -> list[Cut]:
    return [Cut(text, tokens) for text, tokens in zip(flat[::2], flat[1::2], strict=True)]


def lengths_out(cuts: Sequence[Cut]) -> list[int]:
    """The cuts of a text that the receiver has: characters and tokens of each."""
    return [number for cut in cuts for number in (len(cut.text), cut.tokens)]


def lengths_in(text: str, flat: Sequence[int]) -> list[Cut]:
    ends = list(accumulate(flat[::2], initial=0))
    return [
        Cut(text[begin:end], tokens)
        for begin, end, tokens in zip(ends, ends[1:], flat[1::2], strict=False)
    ]


def step_out(step: Step) -> Frame:
    """The usual step has only its first fields: it generated tokens."""
    if not any(step[_USUAL_FIELDS:]):
        return list(step[:_USUAL_FIELDS])
    error = None if step.error is None else [step.error.message, step.error.hint]
    return [
        step.call, step.text, step.tokens, step.fed, step.cached, step.finish, error,
        cuts_out(step.cuts), list(step.logprobs), step.lost, step.recompute, step.source,
        [[saved.number, saved.bytes, *saved.beginnings] for saved in step.saved],
        step.drafted, step.accepted,
    ]  # fmt: skip


def step_in(frame: Frame) -> Step:
    if len(frame) == _USUAL_FIELDS:
        return Step(*frame)
    call, text, tokens, fed, cached, finish, error, cuts, logprobs, lost, *rest = frame
    recompute, source, saved, drafted, accepted = rest
    return Step(
        call, text, tokens, fed, cached,
        finish=Finish(finish) if finish else None,
        error=DeviceFault(*error) if error else None,
        cuts=cuts_in(cuts) if cuts else (),
        logprobs=[build(Logprob, one) for one in logprobs],
        lost=lost, recompute=recompute, source=source,
        saved=[ContextSaved(number, size, others) for number, size, *others in saved],
        drafted=drafted, accepted=accepted,
    )  # fmt: skip


def facts_in(values: dict[str, Any]) -> Facts:
    """The facts of UP."""
    built = {
        "capabilities": frozenset(values["capabilities"]),
        "hardware": [build(Hardware, one) for one in values["hardware"]],
    }
    return build(Facts, {**values, **built})
