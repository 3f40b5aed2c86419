"""The two engines of this machine compared: OpenVINO's rate divided by llama.cpp's.

Two daemons have the same model file, one on each engine. Sixteen, then thirty-two prompts at once,
through SDK, socket and kernel, on one daemon and on the other, with the order changing.
"""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from llmasos.kernel.abi.errors import Errno, SyscallError

from .answers import Crowded, crowded
from .figures import Bar, MissingFigure, Suite, Take
from .peers import Absent
from .rig import ENGINES, Rig, facts, mounted, tuned
from .streams import greedy, in_turn, raw, together
from .texts import Writer

_MODULES = {"openvino": "openvino", "llama": "llama_cpp"}  # what each engine imports
COUNTS = (16, 32)
PROMPT_TOKENS, NEW_TOKENS = 88, 48
_WHAT = (
    "{} private prompts of {} tokens, {} new ones, with SDK, socket and kernel: rate on OpenVINO "
    "divided by that on llama.cpp"
)
BARS = (
    Bar("engine.vs_llama_16", _WHAT.format(16, PROMPT_TOKENS, NEW_TOKENS), "x", "higher", 2.3),
    Bar("engine.vs_llama_32", _WHAT.format(32, PROMPT_TOKENS, NEW_TOKENS), "x", "higher", 2.5),
)


@dataclass(frozen=True, slots=True)
class EngineSize:
    repeats: int
    counts: Sequence[int]  # concurrent calls, for each figure
    prompt: int
    new: int
    window: int


@dataclass(frozen=True, slots=True)
class EngineSide:
    """A daemon whose model is mounted on one engine."""

    engine: str
    rig: Rig
    writer: Writer

    def rate(self, texts: Sequence[str], prompt: int, new: int) -> Crowded:
        """Answer all of these prompts, which have `prompt` tokens each, at once."""
        asks = [raw(text, greedy(new)) for text in texts]
        return crowded(together(self.rig.socket, asks), new, prompt)


@contextmanager
def side(engine: str, **shape: int) -> Generator[EngineSide]:
    """A daemon with the tuned model on this engine.

    Absent when the engine is not installed. Other errors of a mount are failures of ours.
    """
    with tuned() as (rig, client), ExitStack() as stack:
        try:
            stack.enter_context(mounted(client, engine=engine, **shape))
        except SyscallError as error:
            if error.errno is not Errno.ENOTSUP and find_spec(_MODULES[engine]) is not None:
                raise
            raise Absent(ENGINES[engine], error.message) from error
        yield EngineSide(engine, rig, Writer.of(client))


def compared(size: EngineSize, count: int) -> dict[str, list[Crowded]]:
    """Each repeat on both engines."""
    found: dict[str, list[Crowded]] = {engine: [] for engine in ENGINES}
    shape = {"slots": count, "window": size.window}
    with ExitStack() as stack:
        sides = [stack.enter_context(side(engine, **shape)) for engine in ENGINES]
        for repeat in range(-1, size.repeats):  # the first round is a warm-up, not counted
            writer = sides[0].writer
            texts = [writer.private(repeat + 1, index, size.prompt) for index in range(count)]
            for one in in_turn(repeat, sides):
                rate = one.rate(texts, size.prompt, size.new)
                if repeat >= 0:
                    found[one.engine].append(rate)
    return found


def take(tiny: bool) -> Take:
    size = (
        EngineSize(1, (2, 3), 44, 4, 256)
        if tiny
        else EngineSize(5, COUNTS, PROMPT_TOKENS, NEW_TOKENS, 512)
    )
    values, rates = dict[str, list[float]](), dict[str, object]()
    missing: list[MissingFigure] = []
    try:
        for bar, count in zip(BARS, size.counts, strict=True):
            found = compared(size, count)
            pairs = zip(found["openvino"], found["llama"], strict=True)
            values[bar.id] = [round(one.rate / other.rate, 4) for one, other in pairs]
            rates[bar.id] = {
                engine: [round(one.rate, 2) for one in rounds] for engine, rounds in found.items()
            }
    except Absent as error:
        missing.append(MissingFigure(str(error), "make peers"))
    with tuned() as (_, client):
        measured = {**facts(client), "rates": rates}
    return Take(values, measured, missing)


SUITE = Suite("engine", BARS, take)
