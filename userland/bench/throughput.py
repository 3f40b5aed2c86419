"""Throughput of many agents on one model, compared with the bare loop and with other servers.

All sides do the same work on the same file, one after the other, repeatedly: sixteen prompts at
once, greedy, ignoring the end of an answer, so that each makes the same number of tokens. LLMasOS
is called through SDK and socket and timed from the first call (the spawns) to the last answer. The
bare loop of each engine and openvino-genai get raw prompts; servers get streaming chats, and so
does LLMasOS beside them. A second daemon has the file on llama.cpp, and gets the same.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from . import bare
from .answers import Crowded, crowded
from .engine import EngineSide, side
from .figures import Bar, MissingFigure, Suite, Take
from .peers import (
    GENAI,
    LLAMA,
    PYTHON,
    Absent,
    PeerPipeline,
    PeerServer,
    llama_server,
    pipeline,
    python_server,
)
from .rig import ENGINES, engine_of, facts, image, mounted, tuned
from .streams import Ask, greedy, in_turn, together
from .texts import Chat, Writer, tokens

SEQUENCES, PROMPT_TOKENS, NEW_TOKENS = 16, 88, 48
COMMON_TOKENS, OWN_TOKENS = 288, 22
MANY = 2 * SEQUENCES  # prompts at once, beside openvino-genai
RAW, PIPELINE, PIPELINE_MANY, SINGLE, CHAT, COLD, WARM = (
    f"{PROMPT_TOKENS} private tokens, raw prompt",
    f"the same, beside {GENAI}",
    f"{MANY} such prompts",
    "one such prompt",
    f"{PROMPT_TOKENS} private tokens, chat",
    f"{COMMON_TOKENS} common and {OWN_TOKENS} private tokens, chat, first round",
    f"{COMMON_TOKENS} common and {OWN_TOKENS} private tokens, chat, second round",
)
BARS = (
    Bar("throughput.vs_bare", f"{SEQUENCES} private prompts of {PROMPT_TOKENS} tokens, "
        f"{NEW_TOKENS} new ones: rate of the whole path over the bare loop of the engine, the "
        "lower one of both engines", "x", "higher", 0.90),
    Bar("throughput.vs_openvino_genai", "the same over openvino-genai's continuous batching in one "
        f"process, {SEQUENCES} and {MANY} prompts, the lower one", "x", "higher", 0.92),
    Bar("throughput.single_vs_llama", "one prompt, over the same on llama.cpp", "x", "higher",
        0.85),
    Bar("throughput.vs_llama_server", "the same as streaming chats, over a llama.cpp server with "
        f"{SEQUENCES} slots", "x", "higher", 2.8),
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

    engine: str  # of the daemon that is compared with servers
    rounds: defaultdict[tuple[str, str], list[Crowded]] = field(
        default_factory=lambda: defaultdict[tuple[str, str], list[Crowded]](list)
    )
    missing: list[MissingFigure] = field(default_factory=list[MissingFigure])

    def absent(self, error: Absent) -> None:
        if not any(gap.peer == str(error) for gap in self.missing):
            self.missing.append(MissingFigure(str(error), "make peers"))

    def add(self, load: str, name: str, found: Crowded) -> None:
        self.rounds[load, name].append(found)

    def ratios(self, load: str, other: str, engine: str = "") -> list[float]:
        """Our rate over theirs, repeat by repeat."""
        pairs = self.pairs(load, other, engine)
        return [round(one.rate / theirs.rate, 4) for one, theirs in pairs]

    def pairs(self, load: str, other: str, engine: str = "") -> list[tuple[Crowded, Crowded]]:
        own = self.rounds[load, ours(engine or self.engine)]
        return list(zip(own, self.rounds[load, other], strict=False))

    def values(self) -> dict[str, list[float]]:
        waits = [round(a.ttft_p95_s / b.ttft_p95_s, 4) for a, b in self.pairs(CHAT, LLAMA)]
        loops = [self.ratios(RAW, bare.name(engine), engine) for engine in ENGINES]
        genai = [self.ratios(load, GENAI, "openvino") for load in (PIPELINE, PIPELINE_MANY)]
        single = self.ratios(SINGLE, ours("llama")) if self.engine != "llama" else []
        return {
            "throughput.vs_bare": lowest([one for one in loops if one]),
            "throughput.vs_openvino_genai": lowest(genai),
            "throughput.single_vs_llama": single,
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


def ours(engine: str) -> str:
    """The name of our side."""
    return f"LLMasOS on {ENGINES[engine]}"


def lowest(rounds: Sequence[Sequence[float]]) -> list[float]:
    """The lowest value of each repeat."""
    return [min(values) for values in zip(*rounds, strict=True)]


@dataclass(frozen=True, slots=True)
class Contest:
    """Our sides, the servers, and the work for all of them."""

    sides: Sequence[EngineSide]
    path: str
    servers: Sequence[PeerServer]
    size: ThroughputSize
    board: Board

    @property
    def writer(self) -> Writer:
        return self.sides[0].writer

    def warm(self) -> None:
        """Run everything once, to exclude first-time costs."""
        count, prompt = range(self.size.sequences), self.size.prompt
        chats = [self.writer.private_chat(9, index, prompt) for index in count]
        for one in self.sides:
            together(one.rig.socket, _asks(chats, 1))
        for server in self.servers:
            server.together(chats, 1)

    def raw(self, repeat: int) -> None:
        """Compare each engine with its bare loop, and one prompt on both engines."""
        new, prompt = self.size.new, self.size.prompt
        texts = private(self.writer, repeat, self.size.sequences, prompt)
        prompts = [tokens(self.writer.client, text) for text in texts]

        for one in in_turn(repeat, self.sides):
            self.board.add(RAW, ours(one.engine), one.rate(texts, prompt, new))
        for one in in_turn(repeat, self.sides):
            self._bare(one.engine, prompts)
        text = self.writer.private(repeat, self.size.sequences, prompt)
        for one in in_turn(repeat, self.sides):
            self.board.add(SINGLE, ours(one.engine), one.rate([text], prompt, new))

    def _bare(self, engine: str, prompts: Sequence[Sequence[int]]) -> None:
        try:
            found = bare.answered(self.path, prompts, self.size.new, engine)
        except Absent as error:
            self.board.absent(error)
        else:
            self.board.add(RAW, bare.name(engine), found)

    def chats(
        self, repeat: int, load: str, chats: Sequence[Chat], prompt: int, others: Sequence[str]
    ) -> None:
        """Compare with servers."""
        new = self.size.new

        def path(one: EngineSide) -> None:
            found = crowded(together(one.rig.socket, _asks(chats, new)), new, prompt)
            self.board.add(load, ours(one.engine), found)

        def theirs(server: PeerServer) -> None:
            found = crowded(server.together(chats, new), new, prompt)
            self.board.add(load, server.name, found)

        runs: list[Callable[[], None]] = [partial(path, one) for one in self.sides]
        runs += [partial(theirs, server) for server in self.servers if server.name in others]
        for run in in_turn(repeat, runs):
            run()

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


def private(writer: Writer, repeat: int, count: int, prompt: int) -> list[str]:
    """Prompts of so many tokens that share no prefix."""
    return [writer.private(repeat, index, prompt) for index in range(count)]


def beside_genai(rival: PeerPipeline, size: ThroughputSize, board: Board) -> None:
    """Compare OpenVINO under the whole path with openvino-genai. Absent without OpenVINO."""
    many = 2 * size.sequences
    with side("openvino", slots=many, window=size.window) as one:
        for repeat in range(-1, size.repeats):  # the first round only warms
            for load, count in ((PIPELINE, size.sequences), (PIPELINE_MANY, many)):
                texts = private(one.writer, repeat + 1, count, size.prompt)
                prompts = [tokens(one.writer.client, text) for text in texts]
                rates: list[tuple[str, Callable[[], Crowded]]] = [
                    (ours("openvino"), partial(one.rate, texts, size.prompt, size.new)),
                    (GENAI, partial(rival.answered, prompts, size.new)),
                ]
                for name, rate in in_turn(repeat, rates):
                    found = rate()
                    if repeat >= 0:
                        board.add(load, name, found)


def chosen_engine() -> str:
    """The engine that the machine, or the caller of this suite, chooses."""
    with tuned() as (_, client), mounted(client, slots=1) as device:
        return engine_of(device)


def peers(board: Board, path: str, size: ThroughputSize, stack: ExitStack) -> list[PeerServer]:
    """The servers that are installed."""
    sides: list[AbstractContextManager[PeerServer]] = [
        llama_server(path, size.sequences, size.window), python_server(path),
    ]  # fmt: skip
    found = list[PeerServer]()
    for one in sides:
        try:
            found.append(stack.enter_context(one))
        except Absent as error:
            board.absent(error)
    return found


def take(tiny: bool) -> Take:
    size = (
        ThroughputSize(1, 2, 4, 256, 44, 64)
        if tiny
        else ThroughputSize(5, SEQUENCES, NEW_TOKENS, 2048)
    )
    board = Board(chosen_engine())
    engines = [board.engine, *(["llama"] if board.engine != "llama" else [])]
    shape = {"slots": size.sequences, "window": size.window}
    with ExitStack() as stack:
        sides = [stack.enter_context(side(engine, **shape)) for engine in engines]
        found = image(sides[0].writer.client)
        path = found.tuned or found.path
        servers = peers(board, path, size, stack)
        contest = Contest(sides, path, servers, size, board)
        contest.warm()
        for repeat in range(size.repeats):
            contest.raw(repeat)
            contest.private(repeat)
            contest.shared(repeat)
        measured = facts(sides[0].writer.client)
    settings: dict[str, Mapping[str, object]] = {ours(engine): shape for engine in engines}
    settings |= {server.name: server.settings for server in servers}
    measured["same_text_as_bare"] = {
        engine: [
            one.digest == other.digest for one, other in board.pairs(RAW, bare.name(engine), engine)
        ]
        for engine in engines
    }
    try:
        with pipeline(path) as rival:
            settings[rival.name] = rival.settings
            beside_genai(rival, size, board)
    except Absent as error:
        board.absent(error)
    measured["beside"] = board.beside()
    return Take(board.values(), measured, board.missing, settings)


SUITE = Suite("throughput", BARS, take)
