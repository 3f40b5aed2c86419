"""Throughput of many agents on one model, compared with the bare loop and with other servers.

All sides do the same work on the same file, one after the other, repeatedly: sixteen prompts at
once, greedy, ignoring the end of an answer, so that each makes the same number of tokens. LLMasOS
is called through SDK and socket and timed from the first call (the spawns) to the last answer. The
bare loop gets raw prompts; servers get streaming chats, and so does LLMasOS beside them.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from . import bare
from .answers import Crowded, crowded
from .figures import Bar, MissingFigure, Suite, Take
from .peers import LLAMA, PYTHON, Absent, PeerServer, llama_server, python_server
from .rig import Rig, facts, image, mounted, tuned
from .streams import Ask, greedy, in_turn, raw, together
from .texts import Chat, Writer, tokens

SEQUENCES, PROMPT_TOKENS, NEW_TOKENS = 16, 88, 48
COMMON_TOKENS, OWN_TOKENS = 288, 22
OURS = "LLMasOS"
RAW, CHAT, COLD, WARM = (
    f"{PROMPT_TOKENS} private tokens, raw prompt",
    f"{PROMPT_TOKENS} private tokens, chat",
    f"{COMMON_TOKENS} common and {OWN_TOKENS} private tokens, chat, first round",
    f"{COMMON_TOKENS} common and {OWN_TOKENS} private tokens, chat, second round",
)
BARS = (
    Bar("throughput.vs_bare", f"{SEQUENCES} private prompts of {PROMPT_TOKENS} tokens, "
        f"{NEW_TOKENS} new ones: rate of the whole path over the bare loop", "x", "higher", 0.90),
    Bar("throughput.vs_llama_server", "the same as streaming chats, over a llama.cpp server with "
        f"{SEQUENCES} slots", "x", "higher", 1.10),
    Bar("throughput.ttft_p95_vs_llama_server", "p95 time to first token, over theirs",
        "x", "lower", 1.0),
    Bar("throughput.shared_vs_llama_server_cold", f"{SEQUENCES} agents with a common "
        f"{COMMON_TOKENS}-token system prompt and {OWN_TOKENS} private tokens: first round",
        "x", "higher", 2.5),
    Bar("throughput.shared_vs_llama_server_warm", "the same: second round", "x", "higher", 1.0),
    Bar("throughput.vs_llama_cpp_server", "private prompts as streaming chats, over "
        f"llama-cpp-python's server with {SEQUENCES} clients", "x", "higher", 3),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ThroughputSize:
    repeats: int
    sequences: int
    new: int
    window: int  # tokens a slot, on our side and theirs
    prompt: int = PROMPT_TOKENS
    common: int = COMMON_TOKENS


@dataclass(frozen=True, slots=True)
class Board:
    """Every repeat of every side, by load."""

    rounds: defaultdict[tuple[str, str], list[Crowded]] = field(
        default_factory=lambda: defaultdict[tuple[str, str], list[Crowded]](list)
    )
    missing: list[MissingFigure] = field(default_factory=list[MissingFigure])

    def absent(self, error: Absent) -> None:
        if not any(gap.peer == str(error) for gap in self.missing):
            self.missing.append(MissingFigure(str(error), "make peers"))

    def ratios(self, load: str, other: str) -> list[float]:
        """Our rate over theirs, repeat by repeat."""
        return [round(one.rate / theirs.rate, 4) for one, theirs in self.pairs(load, other)]

    def pairs(self, load: str, other: str) -> list[tuple[Crowded, Crowded]]:
        return list(zip(self.rounds[load, OURS], self.rounds[load, other], strict=False))

    def values(self) -> dict[str, list[float]]:
        waits = [round(a.ttft_p95_s / b.ttft_p95_s, 4) for a, b in self.pairs(CHAT, LLAMA)]
        return {
            "throughput.vs_bare": self.ratios(RAW, bare.NAME),
            "throughput.vs_llama_server": self.ratios(CHAT, LLAMA),
            "throughput.ttft_p95_vs_llama_server": waits,
            "throughput.shared_vs_llama_server_cold": self.ratios(COLD, LLAMA),
            "throughput.shared_vs_llama_server_warm": self.ratios(WARM, LLAMA),
            "throughput.vs_llama_cpp_server": self.ratios(CHAT, PYTHON),
        }

    def beside(self) -> list[dict[str, object]]:
        """The medians and repeats of each side, for docs/figures.md."""
        return [
            {
                "load": load,
                "side": side,
                "rate": round(median(one.rate for one in found), 1),
                "ttft_p50_s": round(median(one.ttft_p50_s for one in found), 3),
                "ttft_p95_s": round(median(one.ttft_p95_s for one in found), 3),
                "rates": [round(one.rate, 2) for one in found],
                "ttfts_p95_s": [round(one.ttft_p95_s, 3) for one in found],
            }
            for (load, side), found in self.rounds.items()
            if found
        ]


@dataclass(frozen=True, slots=True)
class Contest:
    """The rig, the other servers, and the work for all of them."""

    rig: Rig
    path: str
    writer: Writer
    servers: Sequence[PeerServer]
    size: ThroughputSize
    board: Board

    def warm(self) -> None:
        """Run everything once, to exclude first-time costs."""
        count, prompt = range(self.size.sequences), self.size.prompt
        chats = [self.writer.private_chat(9, index, prompt) for index in count]
        together(self.rig.socket, _asks(chats, 1))
        for server in self.servers:
            server.together(chats, 1)

    def raw(self, repeat: int) -> None:
        """Compare with the bare loop."""
        new = self.size.new
        texts = [
            self.writer.private(repeat, index, self.size.prompt)
            for index in range(self.size.sequences)
        ]
        prompts = [tokens(self.writer.client, text) for text in texts]

        def ours() -> None:
            self.ours(RAW, [raw(text, greedy(new)) for text in texts], self.size.prompt)

        def theirs() -> None:
            try:
                self.board.rounds[RAW, bare.NAME].append(bare.answered(self.path, prompts, new))
            except Absent as error:
                self.board.absent(error)

        for side in in_turn(repeat, [ours, theirs]):
            side()

    def chats(
        self, repeat: int, load: str, chats: Sequence[Chat], prompt: int, others: Sequence[str]
    ) -> None:
        """Compare with servers."""
        new = self.size.new

        def ours() -> None:
            self.ours(load, _asks(chats, new), prompt)

        def theirs(server: PeerServer) -> None:
            found = crowded(server.together(chats, new), new, prompt)
            self.board.rounds[load, server.name].append(found)

        rivals: list[Callable[[], None]] = [
            partial(theirs, server) for server in self.servers if server.name in others
        ]
        for side in in_turn(repeat, [ours, *rivals]):
            side()

    def ours(self, load: str, asks: Sequence[Ask], prompt: int) -> None:
        found = crowded(together(self.rig.socket, asks), self.size.new, prompt)
        self.board.rounds[load, OURS].append(found)

    def private(self, repeat: int) -> None:
        count, prompt = range(self.size.sequences), self.size.prompt
        chats = [self.writer.private_chat(repeat, index, prompt) for index in count]
        self.chats(repeat, CHAT, chats, prompt, (LLAMA, PYTHON))

    def shared(self, repeat: int) -> None:
        """A new system prompt, then the same one with other questions."""
        count, common = self.size.sequences, self.size.common
        for turn, load in enumerate((COLD, WARM)):
            chats = [
                self.writer.shared_chat(f"S{repeat}", index, common, OWN_TOKENS)
                for index in range(turn * count, turn * count + count)
            ]
            self.chats(repeat, load, chats, common + OWN_TOKENS, (LLAMA,))


def _asks(chats: Sequence[Chat], new: int) -> list[Ask]:
    return [Ask(chat.user, greedy(new), system=chat.system) for chat in chats]


def take(tiny: bool) -> Take:
    size = (
        ThroughputSize(1, 2, 4, 256, 44, 64)
        if tiny
        else ThroughputSize(5, SEQUENCES, NEW_TOKENS, 2048)
    )
    board = Board()
    shape = {"slots": size.sequences, "window": size.window}
    with tuned() as (rig, client), mounted(client, **shape) as device, ExitStack() as stack:
        found = image(client)
        path = found.tuned or found.path
        sides: list[AbstractContextManager[PeerServer]] = [
            llama_server(path, size.sequences, size.window), python_server(path),
        ]  # fmt: skip
        servers = list[PeerServer]()
        for side in sides:
            try:
                servers.append(stack.enter_context(side))
            except Absent as error:
                board.absent(error)
        contest = Contest(rig, path, Writer.of(client), servers, size, board)
        contest.warm()
        for repeat in range(size.repeats):
            contest.raw(repeat)
            contest.private(repeat)
            contest.shared(repeat)
        measured = {**facts(client), "beside": board.beside()}
    same = [one.digest == other.digest for one, other in board.pairs(RAW, bare.NAME)]
    settings: dict[str, Mapping[str, object]] = {OURS: {**shape, "placement": device.placement}}
    settings |= {server.name: server.settings for server in servers}
    measured |= {"same_text_as_bare": same}
    return Take(board.values(), measured, board.missing, settings)


SUITE = Suite("throughput", BARS, take)
