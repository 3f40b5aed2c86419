"""The cost of a turn by the length of its conversation: time to admission, and bytes to the engine.

A turn is a `generate` of exactly TURN_TOKENS tokens. Its time is measured by the kernel, as
`prepare_s` plus `queue_s` of the reply's usage: from the handler of the request, when the frame was
read and permitted, until the call is sent to a slot of the engine. The overhead is the median of
turns that follow at least WINDOW_TOKENS tokens, minus the median of turns of new processes; both
kinds alternate. The bytes are the growth of `sent_bytes` of the device over a turn, alone on it.

A conversation is forked from one parent, so it needs no prefill; its first turn is not measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient

from .figures import Bar, Suite, Take
from .rig import MODEL, RigError, facts, mounted, tuned
from .texts import Writer

WINDOW_TOKENS, TURN_TOKENS = 1900, 20
MESSAGE_TOKENS = 80  # of the messages of the parent
TURNS = 3  # measured of each fork: the window has no room for more
BARS = (
    Bar("turn.overhead_ms", f"generate of {TURN_TOKENS} new tokens after {WINDOW_TOKENS:,}: from "
        "the request to its admission, minus the same of an empty process, p50", "ms", "lower", 1),
    Bar("turn.bytes", "bytes from the kernel to the engine for that turn, p50", "bytes", "lower",
        2000),
)  # fmt: skip


@dataclass(slots=True)
class Turns:
    """What one repeat measured."""

    full_ms: list[float] = field(default_factory=list[float])
    empty_ms: list[float] = field(default_factory=list[float])
    sent_bytes: list[float] = field(default_factory=list[float])

    @property
    def overhead_ms(self) -> float:
        return round(median(self.full_ms) - median(self.empty_ms), 3)


def spawn(client: BlockingClient) -> int:
    return client.call("spawn", v.Spawn(MODEL, app="bench", keep=False), v.Spawned).pid


def generate(client: BlockingClient, pid: int, *messages: v.Message) -> v.Usage:
    """A turn with an answer of one token."""
    sampling = v.Sampling(max_tokens=1, temperature=0, ignore_eos=True)
    asked = v.Generate(pid, list(messages), sampling=sampling)
    stream = client.stream("generate", asked, v.Delta, v.Generated)
    for _ in stream:
        pass
    if stream.reply is None or stream.reply.evicted:
        raise RigError("a turn ended without a reply, or did not fit the window")
    return stream.reply.usage


def end(client: BlockingClient, pid: int) -> None:
    client.call("kill", v.Kill(pid), v.Nothing)
    client.call("wait", v.Wait(pid), v.Exit)


def parent(client: BlockingClient, writer: Writer, tokens: int) -> int:
    """A process with about `tokens` tokens in its window, in many messages."""
    pid, used, turn = spawn(client), 0, 0
    while used < tokens - TURN_TOKENS:
        fits = used < tokens - MESSAGE_TOKENS
        text = writer.private(0, turn, MESSAGE_TOKENS if fits else TURN_TOKENS)
        used = generate(client, pid, v.Message(v.Role.USER, text)).prompt_tokens
        turn += 1
    return pid


def sent(client: BlockingClient) -> int:
    """Bytes that the engine has got."""
    (device,) = client.call("devices", v.Nothing(), v.Devices).devices
    return device.sent_bytes


def turn_ms(client: BlockingClient, pid: int, text: str, least: int = 0) -> float:
    """Milliseconds of a turn. RigError when its prompt is shorter than `least` tokens."""
    usage = generate(client, pid, v.Message(v.Role.USER, text))
    if usage.prompt_tokens < least:
        raise RigError(f"a turn has a prompt of {usage.prompt_tokens} tokens, not {least}")
    return 1000 * (usage.prepare_s + usage.queue_s)


def measured(client: BlockingClient, writer: Writer, root: int, forks: int, window: int) -> Turns:
    found = Turns()
    for index in range(forks):
        texts = [writer.private(turn, index, TURN_TOKENS) for turn in range(TURNS + 1)]
        (pid,) = client.call("fork", v.Fork(root, keep=False), v.Forked).pids
        turn_ms(client, pid, texts.pop())
        for text in texts:
            before = sent(client)
            found.full_ms.append(turn_ms(client, pid, text, window + TURN_TOKENS))
            found.sent_bytes.append(sent(client) - before)
            empty = spawn(client)
            found.empty_ms.append(turn_ms(client, empty, text))
            end(client, empty)
        end(client, pid)
    return found


def take(tiny: bool) -> Take:
    repeats, forks, window = (1, 2, 300) if tiny else (3, 20, WINDOW_TOKENS)
    with tuned() as (_, client), mounted(client, slots=4):
        writer = Writer.of(client)
        root = parent(client, writer, window)
        turns = [measured(client, writer, root, forks, window) for _ in range(repeats)]
        described = facts(client)
    described |= {
        "turns": forks * TURNS,
        "full_p50_ms": _medians([one.full_ms for one in turns]),
        "empty_p50_ms": _medians([one.empty_ms for one in turns]),
    }
    values = {
        "turn.overhead_ms": [one.overhead_ms for one in turns],
        "turn.bytes": _medians([one.sent_bytes for one in turns]),
    }
    return Take(values, described, settings={"both": {"slots": 4}})


def _medians(repeats: Sequence[Sequence[float]]) -> list[float]:
    return [round(median(one), 3) for one in repeats]


SUITE = Suite("turn", BARS, take)
