"""An engine on a bench: what a test admits to it, grants it and hears from it."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.values import Message, Role, Sampling
from llmasos.kernel.driver import (
    Admission,
    ContextSaved,
    Death,
    Engine,
    Facts,
    Keep,
    Option,
    Prompt,
    Step,
)

DEADLINE_S = 90.0  # a guard against hangs, never a timing
PLENTY = 100_000  # tokens
QUESTION = "What is the capital of France? Answer in one sentence, please."
STORY = "You are a careful assistant. Answer in one short sentence. " * 6


@dataclass
class Ear:
    """A listener that keeps everything it hears."""

    facts: Facts | None = None
    ups: int = 0
    frames: list[list[Step]] = field(default_factory=list[list[Step]])
    downs: list[Death] = field(default_factory=list[Death])
    news: anyio.Event | None = None

    def loading(self, done: float, stage: str = "load") -> None:
        self._tell()

    def up(self, facts: Facts) -> None:
        self.facts = facts
        self.ups += 1
        self._tell()

    def stepped(self, steps: Sequence[Step]) -> None:
        self.frames.append(list(steps))
        self._tell()

    def down(self, death: Death) -> None:
        self.downs.append(death)
        self._tell()

    def _tell(self) -> None:
        if self.news is not None:
            self.news.set()

    async def until(self, true: Callable[[], object]) -> None:
        with anyio.fail_after(DEADLINE_S):
            while not true():
                self.news = anyio.Event()
                await self.news.wait()

    def steps(self, call: int) -> list[Step]:
        return [step for frame in self.frames for step in frame if step.call == call]


@dataclass
class Outcome:
    """A call that ended."""

    steps: list[Step]

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)

    @property
    def last(self) -> Step:
        return self.steps[-1]

    @property
    def tokens(self) -> int:
        return sum(step.tokens for step in self.steps)

    @property
    def fed(self) -> int:
        return sum(step.fed for step in self.steps)

    @property
    def recomputed(self) -> int:
        """Tokens that were to be computed again."""
        return sum(step.recompute for step in self.steps)

    @property
    def saved(self) -> dict[int, ContextSaved]:
        """By number."""
        return {saved.number: saved for step in self.steps for saved in step.saved}


class Rig:
    """A mounted engine, and short words to use it."""

    numbers = itertools.count(1)

    def __init__(self, driver: ModuleType, image: Path, log: Path, **options: Option) -> None:
        self.ear = Ear()
        self.log = log
        if driver.__name__.endswith((".llama.mount", ".openvino.mount")):
            # Beside the other worker's tests, two threads that wait for each other only spin.
            options.setdefault("threads", 1)
        self.engine: Engine = driver.engine(image, options, log)

    async def __aenter__(self) -> "Rig":
        with anyio.fail_after(DEADLINE_S):
            await self.engine.start(self.ear)
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.fail_after(DEADLINE_S):
            await self.engine.stop()

    @property
    def facts(self) -> Facts:
        assert self.ear.facts is not None
        return self.ear.facts

    async def ask(self, text: str = QUESTION, *, raw: bool = False) -> Prompt:
        return await self.engine.compose([Message(Role.USER, text)], raw=raw, fresh=0)

    async def prompt(self, text: str = QUESTION, *, raw: bool = False) -> Sequence[int]:
        """The tokens of a prompt, of an engine that tells them."""
        return (await self.ask(text, raw=raw)).tokens

    def keep(self, history: int, domain: str = "") -> Keep:
        """To keep a prompt for this process, in the domain in which `admit` admits its calls."""
        return Keep(next(self.numbers), history, domain or f"history {history}")

    def admit(
        self, prompt: Prompt | Sequence[int], slot: int = 0, history: int | None = None,
        domain: str = "", **sampling: Any,
    ) -> int:  # fmt: skip
        """`save` and `share` are as in Admission: new numbers, unless a test sets them."""
        number = next(self.numbers)
        save = sampling.pop("save", next(self.numbers))
        share = sampling.pop("share", next(self.numbers))
        values: dict[str, Any] = {"max_tokens": 16, "temperature": 0.0, "seed": 1, **sampling}
        own = number if history is None else history
        domain = domain or f"history {own}"  # nobody shares, unless a test says so
        prompt = prompt if isinstance(prompt, Prompt) else Prompt(prompt, ())
        sampled = Sampling(**values)
        self.engine.admit(Admission(number, slot, own, domain, prompt, sampled, save, share))
        return number

    async def end(self, number: int) -> Outcome:
        def ended() -> bool:
            steps = self.ear.steps(number)
            return bool(steps) and (steps[-1].finish or steps[-1].error) is not None

        await self.ear.until(ended)
        return Outcome(self.ear.steps(number))

    async def run(
        self, prompt: Prompt | Sequence[int], slot: int = 0, history: int | None = None,
        **sampling: Any,
    ) -> Outcome:  # fmt: skip
        number = self.admit(prompt, slot, history, **sampling)
        self.engine.grant(number, PLENTY)
        return await self.end(number)

    async def say(self, number: int, tokens: int) -> None:
        """Wait until the call has said so many tokens."""
        await self.ear.until(lambda: Outcome(self.ear.steps(number)).tokens >= tokens)


def check_end(outcome: Outcome, *, exact: bool = True) -> None:
    """It ended once, and its pages are what was said. `exact`: their tokens are counted."""
    ends = [step for step in outcome.steps if step.finish or step.error]
    assert ends == [outcome.last]
    assert "".join(cut.text for cut in outcome.last.cuts) == outcome.text
    assert all(0 < cut.tokens <= limits.PAGE_TOKENS for cut in outcome.last.cuts)
    assert not exact or sum(cut.tokens for cut in outcome.last.cuts) <= outcome.tokens
    assert not any(step.cuts for step in outcome.steps[:-1])
