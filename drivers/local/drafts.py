"""Which calls of a step get drafted tokens, and how many."""

from collections.abc import Sequence

from llmasos.kernel.abi.values import Sampling

from . import exact
from .calls import EngineCall
from .context import Context, Run
from .lookup import CALLS, ROWS, Lookup, StepTimes, draft_lengths


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
        if min(context.batch_tokens, self._window) < exact.RUN_TOKENS:
            return
        context.decode([Run(0, 0, [0, 0], asks=0)])
        self.enabled = context.keep(0, 1) == 1
        context.keep(0, 0)
        self._exact = self.enabled and exact.runs_are_exact(context)

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
        # What a request gets does not depend on the load of the machine, unless others share it.
        lone = len(decoding) == 1 and any(lookup.requested for lookup in lookups)
        times = StepTimes() if lone else self._times
        lengths = draft_lengths(lookups, len(decoding), most, times)
        for (call, lookup), length in zip(able, lengths, strict=True):
            room = min(length, call.room(self._window))
            if not lookup.requested:
                limit = self._context.exact_runs if self._exact else 0
                room = min(room, limit - call.computed - 1)
            if room > 0:
                call.draft = lookup.draft(room)

    def learn(self, rows: int, took_s: float) -> None:
        """Record the duration of a step without prompts."""
        self._times.learn(rows, took_s)
