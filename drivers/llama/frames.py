"""The words between the kernel's side of the engine and its child process.

    to the child     LOAD first, then TOKENIZE COMPOSE CHECK EMBED (answered by their id) and ADMIT
                     GRANT CANCEL PARK UNPARK FORGET PURGE (answered by later steps, if at all)
    to the kernel    LOADING while it loads, STEPS: one frame a step

Tokens travel as bytes and pages as one flat list: both stay under the caps on items. Imported by
both sides, so it must not import llama_cpp.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmasos.drivers.frames import OWN, Frame
from llmasos.kernel.driver import Cut, Facts, Option, Step
from llmasos.kernel.errors import DeviceFault
from llmasos.kernel.values import Finish, Hardware, Logprob
from llmasos.kernel.wire import build

NAME = "the engine"  # in what people read
(
    LOAD, TOKENIZE, COMPOSE, CHECK, EMBED, ADMIT, GRANT, CANCEL, PARK, UNPARK, FORGET,
    PURGE,
    LOADING, STEPS,
) = range(OWN, OWN + 14)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """What the child loads, and how."""

    path: str
    slots: int
    width: int
    window: int  # tokens a slot
    threads: int  # at most
    adaptive: bool  # fewer while others want the cores
    flash: bool
    unified: bool  # one pool of cells for all slots
    deterministic: bool
    chunk_s: float  # a step with answers takes no longer; 0: no limit
    batch: int  # tokens of one step when nobody decodes
    gpu_layers: int
    hang_s: float
    parked_bytes: int  # saved contexts of stopped calls
    nice: int  # of the computing threads; the text thread stays as it is


Options = dict[str, Option]


def tokens_out(tokens: Sequence[int]) -> bytes:
    """Raises OverflowError for what is no token id of any vocabulary."""
    return array("i", tokens).tobytes()


def tokens_in(data: bytes) -> list[int]:
    tokens = array("i")
    tokens.frombytes(data)
    return tokens.tolist()


def cuts_out(cuts: Sequence[Cut]) -> list[str | int]:
    return [part for cut in cuts for part in (cut.text, cut.tokens)]


def cuts_in(flat: list[Any]) -> list[Cut]:
    return [Cut(text, tokens) for text, tokens in zip(flat[::2], flat[1::2], strict=True)]


def step_out(step: Step) -> Frame:
    error = None if step.error is None else [step.error.message, step.error.hint]
    return [
        step.call, step.text, step.tokens, step.fed, step.cached, step.finish, error,
        cuts_out(step.cuts), list(step.logprobs),
    ]  # fmt: skip


def step_in(frame: Frame) -> Step:
    call, text, tokens, fed, cached, finish, error, cuts, logprobs = frame
    return Step(
        call, text, tokens, fed, cached,
        finish=Finish(finish) if finish else None,
        error=DeviceFault(*error) if error else None,
        cuts=cuts_in(cuts) if cuts else (),
        logprobs=[build(Logprob, one) for one in logprobs],
    )  # fmt: skip


def facts_in(values: dict[str, Any]) -> Facts:
    """The facts of UP."""
    told = {
        "capabilities": frozenset(values["capabilities"]),
        "hardware": [build(Hardware, one) for one in values["hardware"]],
    }
    return build(Facts, {**values, **told})
