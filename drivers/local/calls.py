"""One call inside the engine: its grant, its prompt and its answer.

A grant counts prompt tokens, cached or not, and answer tokens alike: a call computes nothing once
the sum of `cached`, `fed` and `tokens` of its steps reaches its grants. Feeding the last prompt
token yields the first answer token; if the grant is used up by then, that token stays pending until
the next grant. A token that ends the answer is not emitted and not counted.
"""

from collections.abc import Sequence

from llmasos.drivers.logprobs import LogprobStream
from llmasos.drivers.pages import cut_answer
from llmasos.drivers.stops import Scan
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.abi.values import Finish, Logprob
from llmasos.kernel.driver import Admission, ContextSaved, Step

from .call_state import CallState
from .context import Exactness, Vocab
from .lookup import Lookup
from .prefix import Saved
from .sampler import Sampler
from .slots import ContextSlot, Reuse


class EngineCall:
    """An admitted call. Used by the engine thread only."""

    def __init__(self, admission: Admission, slot: ContextSlot | None, sampler: Sampler) -> None:
        self.admission = admission
        self.slot = slot
        self.sampler = sampler
        self.scan = Scan(admission.sampling.stop)
        self.saved: Saved | None = None  # while it is parked
        # If another process has parked it: the tokens of its context, and so many exact ones.
        self.parked_tokens: list[int] = []
        self.exact = 0  # see Saved
        self.dropped = False  # it is parked, and only its tokens are kept
        self.tainted = False  # if dropped: its recomputed context must not be shared
        self._script: Sequence[int] = admission.prompt.tokens  # to compute before it decodes
        self.grant = 0  # tokens
        self.pending: int | None = None  # chosen, not covered by the grant yet
        self.next: int | None = None  # emitted, not yet in the slot
        self.finish: Finish | None = None
        self.begun = False  # its reused prefix is in the slot
        self.feeds = False  # it fed prompt tokens in the last step
        self.lookup: Lookup | None = None
        self.draft: Sequence[int] = ()  # computed after `next` in this step
        self.drafted = self.accepted = 0  # tokens since the last step
        self.saves: list[ContextSaved] = []  # not yet reported
        self.recompute = 0  # tokens of a lost context, not yet reported
        self._reuse: Reuse | None = None  # not yet reported
        self._whole = 0  # prompt tokens to compute when it began
        self._answer: list[int] = []  # its tokens
        self._texts: list[str] = []  # the answer
        self._ends: list[int] = []  # complete characters after each of its tokens
        self._new_texts: list[str] = []  # text since the last step
        self._logprobs: list[Logprob] = []  # since the last step
        self._logprob_stream = LogprobStream()
        self._tokens = self._fed = 0  # since the last step
        self._most = admission.sampling.max_tokens or limits.MAX_TOKENS

    @property
    def runnable(self) -> bool:
        return self.grant > 0 and self.slot is not None

    @property
    def computed(self) -> int:
        """Tokens in its slot."""
        return len(self.slot.tokens) if self.slot else 0

    @property
    def left(self) -> int:
        """Tokens still to be computed: of the prompt, or recomputed after parking."""
        slot = self.slot
        return max(0, len(self._script) - (len(slot.tokens) if slot is not None else 0))

    @property
    def answer(self) -> str:
        """The text of its answer so far."""
        return "".join(self._texts)

    @property
    def answers(self) -> bool:
        """Whether its first answer token is chosen."""
        return self.next is not None or self.pending is not None

    @property
    def decodes(self) -> bool:
        """Whether its next token is an answer token."""
        return (self.next is not None or self.pending is not None) and not self.left

    @property
    def long(self) -> bool:
        """Whether its prompt stalls others step after step. It stays long to its end."""
        return bool(self.left) and self._whole > limits.LONG_TOKENS

    def begin(self, reuse: Reuse) -> None:
        """Start after a reused prefix, which counts against the grant."""
        self.begun = True
        self._reuse = reuse
        self.saves += reuse.saved
        self._whole = len(self.admission.prompt.tokens) - reuse.tokens
        self.grant -= reuse.tokens

    def drop(self, tokens: Sequence[int], *, tainted: bool) -> None:
        """Its context was dropped: recompute `tokens`."""
        self.dropped, self.tainted = True, tainted
        if len(tokens) > len(self._script):
            self._script = tokens
        self._whole = len(self._script)

    def piece(self, most: int, exactness: Exactness) -> tuple[Sequence[int], bool]:
        """The next tokens to feed, at most `most`; whether logits are needed after them.

        A deterministic engine recomputes tokens as it computed them first: the prompt in pieces,
        the answer token by token.
        """
        first, prompt = self.computed, len(self.admission.prompt.tokens)
        if exactness.piece_tokens:
            most = exactness.piece(first, prompt, most) if first < prompt else 1
        tokens = self._script[first : first + most]
        return tokens, len(tokens) == self.left and not self.answers

    # --- parked by one process, continued by another one ------------------------------------------
    def state(self) -> CallState:
        """Its state while it is parked. All its steps are reported before it is used."""
        saved = self.saved
        pending = [self.sampler.logprob] if self.pending is not None else []
        logprobs = [*self._logprob_stream.waiting, *pending]
        return CallState(
            self._answer,
            self.pending,
            self.sampler.draws,
            self.begun,
            computed=len(saved.tokens if saved is not None else self._script),
            script=len(self._script),
            whole=self._whole,
            exact=saved.exact if saved is not None else 0,
            tainted=saved.tainted if saved is not None else self.tainted,
            bytes=saved.nbytes if saved is not None else 0,
            logprobs=[one for one in logprobs if one is not None],
        )

    def resume(self, state: CallState, vocab: Vocab, window: int) -> None:
        """Take the state of a call that another process had parked. DeviceFault if it cannot be."""
        chosen = [*state.answer, *([] if state.pending is None else [state.pending])]
        unreported = len(chosen) - len(state.logprobs)
        for at, token in enumerate(chosen):
            known = state.logprobs[at - unreported] if at >= unreported else None
            self.sampler.repeat(token, known)
            if at < len(state.answer):
                self.emit(token, vocab.piece(token), window)
        self.sampler.skip(state.draws)
        self.pending = state.pending
        self.next = state.answer[-1] if state.answer and state.pending is None else None
        self._new_texts, self._logprobs, self._tokens = [], [], 0
        self._script = [*self.admission.prompt.tokens, *state.answer][: state.script]
        self.parked_tokens = [*self.admission.prompt.tokens, *state.answer][: state.computed]
        self.begun, self._whole = state.begun, state.whole
        self.exact, self.tainted = state.exact, state.tainted

    def feed(self, tokens: int) -> None:
        """Count computed prompt tokens."""
        self._fed += tokens
        self.grant -= tokens

    def room(self, window: int) -> int:
        """Tokens that may be drafted: its grant, its limit and the window allow one more."""
        count = len(self._ends)
        left = window - len(self.admission.prompt.tokens) - count
        return max(0, min(self.grant, left, self._most - count) - 1)

    def take_draft(self) -> Sequence[int]:
        """Its draft, which is computed."""
        draft, self.draft = self.draft, ()
        self.drafted += len(draft)
        return draft

    def choose(self, token: int, piece: bytes | None, window: int) -> None:
        """Add the next token; `piece` None: it ends the answer."""
        self.next = None
        if piece is None:
            self.finish = Finish.STOP
        elif self.grant > 0:
            self.emit(token, piece, window)
        else:
            self.pending = token

    def emit(self, token: int, piece: bytes, window: int) -> None:
        """Append a token to the answer; sets `finish` at its end."""
        self.pending, self.next = None, token
        self.grant -= 1
        self._tokens += 1
        self._answer.append(token)
        if self.lookup is not None:
            self.lookup.add(token)
        if (logprob := self.sampler.logprob) is not None:
            self._logprob_stream.add(logprob)
        self._append(self.scan.feed(piece))
        self._ends.append(self.scan.seen)
        count = len(self._ends)
        full = len(self.admission.prompt.tokens) + count >= window
        if self.scan.stopped:
            # A stop string truncates the answer, so it need not satisfy the schema.
            structured = self.admission.sampling.schema is not None
            self.finish = Finish.LENGTH if structured else Finish.STOP
        elif self.sampler.finished:
            self.finish = Finish.STOP
        elif full or count >= self._most:
            self.finish = Finish.LENGTH

    def _append(self, text: str) -> None:
        self._logprobs += self._logprob_stream.show(text)
        if text:
            self._new_texts.append(text)
            self._texts.append(text)

    def step(self, error: DeviceFault | None = None) -> Step | None:
        """The step to report: what happened since the last one; None: nothing."""
        ended = self.finish is not None or error is not None
        if ended:
            self._append(self.scan.flush())
            self._logprobs += self._logprob_stream.end()
        elif not any((self._tokens, self._fed, self._reuse, self.recompute, self.saves)):
            return None
        reuse = self._reuse or Reuse(0)
        step = Step(
            self.admission.call,
            text="".join(self._new_texts),
            tokens=self._tokens,
            fed=self._fed,
            cached=reuse.tokens,
            finish=None if error else self.finish,
            error=error,
            cuts=cut_answer(self.answer, self._ends) if ended else (),
            logprobs=self._logprobs,
            recompute=self.recompute,
            source=reuse.source,
            saved=self.saves,
            drafted=self.drafted,
            accepted=self.accepted,
        )
        self._new_texts, self._logprobs = [], []
        self._tokens, self._fed, self.recompute = 0, 0, 0
        self.drafted, self.accepted = 0, 0
        self._reuse, self.saves = None, []
        return step
