"""One call inside the engine: what it has been granted, fed and said.

A grant counts prompt tokens, cached or not, and answer tokens alike: nothing is computed once
`cached`, `fed` and `tokens` of a call's steps together reach what it was granted. Feeding the last
prompt token yields the first answer token; when the grant ends just there, that token is held back
until the next one. A token that ends the answer is never said and costs nothing.
"""

import time
from collections.abc import Sequence

from llmasos.drivers.pages import cut_answer
from llmasos.drivers.spelling import Spelling
from llmasos.drivers.stops import Scan
from llmasos.kernel import limits
from llmasos.kernel.driver import Admission, Step
from llmasos.kernel.errors import DeviceFault
from llmasos.kernel.values import Finish, Logprob

from .batch import Ready
from .prefix import Saved
from .sampler import Sampler
from .slots import Slot


class Call:
    """An admitted call. The engine thread alone touches it."""

    def __init__(self, admission: Admission, slot: Slot, sampler: Sampler) -> None:
        self.admission = admission
        self.slot: Slot | None = slot
        self.sampler = sampler
        self.scan = Scan(admission.sampling.stop)
        self.saved: Saved | None = None  # while it is parked
        self.dropped = False  # it is parked, and only its tokens are kept
        self.tainted = False  # then: whether what it computes again may be shared
        self._script: Sequence[int] = admission.prompt.tokens  # to be in the slot before it answers
        self.grant = 0  # tokens
        self.held: int | None = None  # chosen, not yet paid for
        self.next: int | None = None  # said, not yet in the slot
        self.finish: Finish | None = None
        self.begun = False  # it knows where it goes on from
        self.feeds = False  # its part of the last step was of its prompt
        self.fed_at = 0.0  # monotonic seconds, of its last piece of prompt
        self._cached = 0
        self._whole = 0  # tokens of the prompt that nobody had computed
        self._texts: list[str] = []  # the answer
        self._ends: list[int] = []  # characters whole after each of its tokens
        self._fresh: list[str] = []  # text since the last step
        self._logprobs: list[Logprob] = []  # since the last step
        self._spelling = Spelling()
        self._tokens = self._fed = 0  # since the last step

    @property
    def runnable(self) -> bool:
        return self.grant > 0 and self.slot is not None

    @property
    def computed(self) -> int:
        """Tokens in its slot."""
        return len(self.slot.tokens) if self.slot else 0

    @property
    def left(self) -> int:
        """Tokens that are not in the slot: of the prompt, or to be computed again."""
        return max(0, len(self._script) - self.computed)

    @property
    def answers(self) -> bool:
        """It has begun to answer."""
        return self.next is not None or self.held is not None

    @property
    def decodes(self) -> bool:
        return self.answers and not self.left

    def ready(self, now: float) -> Ready:
        """What it could do in a step."""
        most = self.admission.sampling.max_tokens or limits.MAX_TOKENS
        owes = self.left + most - len(self._ends)
        fed = 0 if self.decodes else min(self.left, self.grant)
        return Ready(fed, owes, now - self.fed_at, self._whole if self.left else 0)

    def begin(self, tokens: int) -> None:
        """So much of the prompt need not be computed; it counts as if it had been."""
        self.begun, self.fed_at = True, time.monotonic()
        self._cached = tokens
        self._whole = len(self.admission.prompt.tokens) - tokens
        self.grant -= tokens

    def drop(self, tokens: Sequence[int], *, tainted: bool) -> None:
        """What lay in its slot is gone: these tokens have to be computed again."""
        self.dropped, self.tainted = True, tainted
        if len(tokens) > len(self._script):
            self._script = tokens
        self._whole = len(self._script)

    def piece(self, most: int, pieces: int) -> tuple[Sequence[int], bool]:
        """The next tokens of the prompt, or to be computed again; whether logits are wanted.

        `pieces`: as a deterministic engine computed them the first time: the prompt in pieces of
        this size, the answer token by token.
        """
        first, prompt = self.computed, len(self.admission.prompt.tokens)
        if pieces:
            most = min(pieces - first % pieces, prompt - first) if first < prompt else 1
        tokens = self._script[first : first + most]
        return tokens, len(tokens) == self.left and not self.answers

    def feed(self, tokens: int) -> None:
        """Prompt tokens have been computed."""
        self._fed += tokens
        self.grant -= tokens

    def choose(self, token: int, piece: bytes | None, window: int) -> None:
        """The next token; `piece` None: it ends the answer."""
        self.next = None
        if piece is None:
            self.finish = Finish.STOP
        elif self.grant > 0:
            self.say(token, piece, window)
        else:
            self.held = token

    def say(self, token: int, piece: bytes, window: int) -> None:
        self.held, self.next = None, token
        self.grant -= 1
        self._tokens += 1
        if (told := self.sampler.told) is not None:
            self._spelling.add(told)
        self._show(self.scan.feed(piece))
        self._ends.append(self.scan.seen)
        count = len(self._ends)
        full = len(self.admission.prompt.tokens) + count >= window
        most = self.admission.sampling.max_tokens or limits.MAX_TOKENS
        if self.scan.stopped:
            # What a stop string cuts is not what the schema asks for.
            structured = self.admission.sampling.schema is not None
            self.finish = Finish.LENGTH if structured else Finish.STOP
        elif self.sampler.finished:
            self.finish = Finish.STOP
        elif full or count >= most:
            self.finish = Finish.LENGTH

    def _show(self, text: str) -> None:
        self._logprobs += self._spelling.show(text)
        if text:
            self._fresh.append(text)
            self._texts.append(text)

    def step(self, error: DeviceFault | None = None) -> Step | None:
        """What happened since the last step, or None."""
        ended = self.finish is not None or error is not None
        if ended:
            self._show(self.scan.flush())
            self._logprobs += self._spelling.end()
        elif not self._tokens and not self._fed and not self._cached:
            return None
        step = Step(
            self.admission.call,
            text="".join(self._fresh),
            tokens=self._tokens,
            fed=self._fed,
            cached=self._cached,
            finish=None if error else self.finish,
            error=error,
            cuts=cut_answer("".join(self._texts), self._ends) if ended else (),
            logprobs=self._logprobs,
        )
        self._fresh, self._logprobs = [], []
        self._tokens, self._fed, self._cached = 0, 0, 0
        return step
