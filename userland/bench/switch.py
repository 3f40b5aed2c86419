"""A context switch: a context of 1,024 tokens that leaves its only slot and comes back.

Two processes share one slot, so each call of the other one moves the context out. A call that comes
back after this is compared with one whose context is still in the slot, and with one whose context
has to be computed. The figure is the added time of the switch over that of the computation.
"""

import time
from dataclasses import dataclass

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient

from .figures import Bar, Suite, Take
from .rig import MODEL, RigError, facts, mounted, tuned
from .texts import Writer

PROMPT_TOKENS = 1024
_MORE_TOKENS = 4  # of each following call
BARS = (
    Bar("switch.ram_vs_recompute", f"a context of {PROMPT_TOKENS:,} tokens out of its slot and "
        "back: added time of a call, over the added time when it is computed again", "x", "lower",
        0.04),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SwitchTimes:
    """Seconds of one call with a context of the same length."""

    resident_s: float  # in its slot
    switched_s: float  # saved in memory
    computed_s: float  # nowhere


def call(client: BlockingClient, pid: int, text: str) -> tuple[float, int]:
    """Seconds of a call that makes one token, and its cached tokens."""
    once = v.Sampling(max_tokens=1, temperature=0, ignore_eos=True)
    message = [v.Message(v.Role.USER, text)]
    begun = time.perf_counter()
    stream = client.stream(
        "generate", v.Generate(pid, message, sampling=once, raw=True), v.Delta, v.Generated
    )
    for _ in stream:
        pass
    took = time.perf_counter() - begun
    if stream.reply is None:
        raise RigError("a generation ended without a reply")
    return took, stream.reply.usage.cached_tokens


def spawn(client: BlockingClient) -> int:
    return client.call("spawn", v.Spawn(MODEL, app="bench", keep=False), v.Spawned).pid


def switched(client: BlockingClient, writer: Writer, repeat: int, prompt: int) -> SwitchTimes:
    """One repeat, with processes of its own."""
    first, other = spawn(client), spawn(client)
    texts = [writer.private(repeat, index, prompt) for index in range(2)]
    more = [writer.private(repeat, index, _MORE_TOKENS) for index in range(2, 6)]
    computed_s, _ = call(client, first, texts[0])
    resident_s, _ = call(client, first, more[0])
    call(client, other, texts[1])
    switched_s, cached = call(client, first, more[1])
    if cached < prompt - 1:
        raise RigError(f"{cached} of {prompt} tokens came back")
    for pid in (first, other):
        client.call("kill", v.Kill(pid), v.Nothing)
    return SwitchTimes(resident_s, switched_s, computed_s)


def take(tiny: bool) -> Take:
    repeats, prompt = (1, 200) if tiny else (9, PROMPT_TOKENS)
    shape = {"slots": 1, "window": 2048}
    with tuned() as (_, client), mounted(client, **shape):
        writer = Writer.of(client)
        rounds = [switched(client, writer, repeat, prompt) for repeat in range(repeats + 1)][1:]
        measured = facts(client)
    ratios = [
        round((one.switched_s - one.resident_s) / (one.computed_s - one.resident_s), 4)
        for one in rounds
    ]
    measured |= {
        "resident_switched_computed_s": [
            [round(one.resident_s, 4), round(one.switched_s, 4), round(one.computed_s, 4)]
            for one in rounds
        ]
    }
    return Take({"switch.ram_vs_recompute": ratios}, measured, settings={"all": shape})


SUITE = Suite("switch", BARS, take)
