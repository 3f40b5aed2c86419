"""Which calls of a step get drafted tokens, and how many."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmasos.kernel.abi.values import Sampling

from .calls import EngineCall
from .context import Context, Run
from .lookup import CALLS, ROWS, Lookup, StepTimes, draft_lengths

_TRIAL = (1, 3, 2, 5, 4, 7, 6, 9)  # tokens


class Drafts:
    """Prompt lookup of one engine. `enabled`: see `enable`."""

    def __init__(self, context: Context, window: int) -> None:
        self._context, self._window = context, window
        self._times = StepTimes()
        self.enabled = False
        self._exact = False  # in a trial, the context had the results that it claims to have

    def enable(self) -> None:
        """Enable it if wrong tokens can be removed: not with a recurrent model. Uses slot 0."""
        context = self._context
        if context.batch_tokens < len(_TRIAL) or self._window < len(_TRIAL):
            return
        asked = context.decode([Run(0, 0, _TRIAL, asks=2)])[0]
        together = [context.logits(asked + at).copy() for at in range(2)]
        kept = len(_TRIAL) - 2
        self.enabled = context.keep(0, kept) == kept
        if self.enabled:
            alone = [self._alone(at) for at in range(kept, len(_TRIAL))]
            self._exact = all(map(np.array_equal, together, alone))
        context.keep(0, 0)

    def _alone(self, at: int) -> NDArray[np.float32]:
        asked = self._context.decode([Run(0, at, _TRIAL[at : at + 1], asks=1)])
        return self._context.logits(asked[0]).copy()

    def lookup(self, prompt: Sequence[int], sampling: Sampling) -> Lookup | None:
        """The lookup of a new call; None: nothing is drafted for it."""
        if not self.enabled or sampling.lookup is False:
            return None
        return Lookup(prompt, requested=bool(sampling.lookup))

    def choose(self, decoding: Sequence[EngineCall], *, feeding: bool) -> None:
        """Set the drafts of the decoding calls. `feeding`: the step computes prompts, too."""
        for call in decoding:
            call.draft = ()
        if feeding or len(decoding) > CALLS:
            return
        able = [(call, call.lookup) for call in decoding if call.lookup is not None]
        most = min(ROWS, self._context.batch_tokens)
        lookups = [lookup for _, lookup in able]
        # What a request gets does not depend on the load of the machine.
        times = StepTimes() if any(one.requested for one in lookups) else self._times
        lengths = draft_lengths(lookups, len(decoding), most, times)
        for (call, lookup), length in zip(able, lengths, strict=True):
            room = min(length, call.room(self._window))
            if not lookup.requested:
                exact = self._context.exact_runs if self._exact else 0
                room = min(room, exact - call.computed - 1)
            if room > 0:
                call.draft = lookup.draft(room)

    def learn(self, rows: int, took_s: float) -> None:
        """Record the duration of a step without prompts."""
        self._times.learn(rows, took_s)
