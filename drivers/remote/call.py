"""One call: its request, its stream, its token count.

Tokens are reported as far as they were granted. Without a grant the call stops reading, so a slow
reader slows the endpoint down. The token count is the endpoint's where it reports one per event;
else each piece of text counts as one token until the usage arrives at the end. A reported count is
capped by the bytes received and by the requested maximum.
"""

import asyncio
import codecs
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from llmasos.drivers.logprobs import LogprobStream
from llmasos.drivers.pages import cut_answer, cut_text
from llmasos.drivers.stops import Scan
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, SyscallError
from llmasos.kernel.abi.values import Finish
from llmasos.kernel.driver import Admission, Cut, Step

from . import structure
from .events import EventStream
from .failure import EndpointFailure
from .http import EndpointClient, with_retries
from .options import LLAMA
from .parsing import Chunk, chunk
from .payload import estimate, request

log = logging.getLogger(__name__)
_DONE = b"[DONE]"


class RemoteCall:
    """An admitted call. It passes its steps to `report`."""

    def __init__(
        self,
        admission: Admission,
        max_tokens: int,
        endpoint: EndpointClient,
        report: Callable[[Step], None],
    ) -> None:
        self.slot = admission.slot
        self.task: asyncio.Task[None] | None = None
        self._admission, self._max_tokens = admission, max_tokens
        self._endpoint, self._settings, self._report = endpoint, endpoint.settings, report
        self._granted = 0  # tokens that may be reported
        self._grant_arrived = asyncio.Event()
        self._timeout = asyncio.timeout(None)
        self._scan = Scan(admission.sampling.stop)
        self._logprob_stream = LogprobStream()
        # An endpoint may split a surrogate pair across two pieces.
        self._surrogates = codecs.getincrementaldecoder("utf-16-le")("replace")
        self._left = admission.prompt.size  # tokens of the prompt that are not reported yet
        self._generated = 0  # tokens
        self._bytes = 0  # of text
        self._texts: list[str] = []
        self._ends: list[int] = []  # complete characters after each token
        self._finish: Finish | None = None  # as reported by the endpoint
        self._usage: int | None = None  # tokens, as reported by the endpoint
        self._ended = False

    def grant(self, tokens: int) -> None:
        """Allow more tokens. The first grant sends the request."""
        self._granted += max(0, tokens)
        if self._granted > 0:
            self._grant_arrived.set()
            self.task = self.task or asyncio.create_task(self._run())

    def cancel(self) -> None:
        self._end(finish=Finish.CANCELLED)
        if self.task is not None:
            self.task.cancel()

    async def _run(self) -> None:
        try:
            await self._finish_with(await with_retries(self._attempt, self._settings.retries))
        except SyscallError as error:
            fault = error if isinstance(error, DeviceFault) else None
            self._end(error=fault or DeviceFault(error.message, error.hint))
        except Exception as error:  # a defect of this driver: the call must end in any case
            log.exception("call to %s failed", self._settings.origin)
            self._end(error=DeviceFault(f"the remote driver failed: {type(error).__name__}"))

    async def _finish_with(self, finish: Finish) -> None:
        """End the call. Checks the answer first when the call has a schema."""
        schema = self._admission.sampling.schema
        if self._ended or schema is None or finish is not Finish.STOP:
            self._end(finish=finish)
        elif self._scan.stopped:
            self._end(finish=Finish.LENGTH)  # a stop string cut the answer: it does not match
        else:
            self._emit(self._scan.flush())
            problem = await asyncio.to_thread(structure.problem, schema, "".join(self._texts))
            if problem:
                message = f"the answer does not match the schema: {problem}"
                hint = "try again, or use a model that supports schemas"
                self._end(error=self._endpoint.refusal(message, hint))
            else:
                self._end(finish=finish)

    def _emit(self, text: str) -> None:
        """Report text that was withheld for a stop string."""
        if text:
            self._texts.append(text)
            self._report(Step(self._admission.call, text, logprobs=self._logprob_stream.show(text)))

    async def _attempt(self) -> Finish:
        settings, admission = self._settings, self._admission
        url, body = request(settings, admission.prompt, admission.sampling, self._max_tokens)
        try:
            async with asyncio.timeout(settings.first_s) as self._timeout:
                async with self._endpoint.open(url, body) as pieces:
                    return await self._read(pieces)
        except TimeoutError:
            hint = "mount it with a longer `--set first_s=` or `--set stall_s=`"
            fault: DeviceFault = self._endpoint.refusal(self._timeout_message(), hint)
        except EndpointFailure as failure:
            fault = self._endpoint.refusal(str(failure))
        except DeviceFault as error:
            if self._finish is None:
                raise
            fault = error
        if self._finish is None:
            raise fault
        return self._finish  # only the usage is missing

    def _timeout_message(self) -> str:
        if not self._generated:
            return f"no token within {self._settings.first_s:g} s"
        return f"no data for {self._settings.stall_s:g} s after {self._generated} tokens"

    async def _read(self, pieces: AsyncIterator[bytes]) -> Finish:
        events = EventStream()
        async for piece in pieces:
            for data in events.feed(piece):
                finish = await self._event(data)
                if finish is not None:
                    return finish
        for data in events.end():
            finish = await self._event(data, whole=bool(events.document))
            if finish is not None:
                return finish
        if self._finish is None and not events.document:
            raise EndpointFailure(f"the stream ended early, after {self._generated} tokens")
        return self._finish or Finish.STOP

    async def _event(self, data: bytes, *, whole: bool = False) -> Finish | None:
        """The finish when the call needs no more events, else None."""
        if not data.strip():
            return None
        if data.strip() == _DONE:
            return self._finish or Finish.STOP
        return await self._take(chunk(data, whole=whole))

    async def _take(self, part: Chunk) -> Finish | None:
        """The finish when the call needs no more events, else None."""
        if part.usage is not None:
            self._usage = part.usage
        if (part.text or part.thought) and self._finish is None:
            remaining = self._max_tokens - self._generated
            if remaining <= 0:
                return Finish.LENGTH  # the endpoint ignores the limit
            text = part.text[: remaining * limits.REMOTE_TOKEN_CHARS]
            await self._await_grant()
            self._report_text(replace(part, text=text), remaining)
            self._timeout.reschedule(_now() + self._settings.stall_s)
            if self._scan.stopped:
                return Finish.STOP
            if self._generated == self._max_tokens:
                # The rest is read only to keep the connection open for the next request.
                self._end(finish=Finish.LENGTH)
                self._timeout.reschedule(_now() + limits.REMOTE_USAGE_S)
        if part.finish and self._finish is None:
            if part.finish == "content_filter":
                raise EndpointFailure("the endpoint's content filter ended the answer")
            self._finish = Finish.LENGTH if part.finish == "length" else Finish.STOP
            self._timeout.reschedule(_now() + limits.REMOTE_USAGE_S)
        return None

    async def _await_grant(self) -> None:
        """Report the prompt as fed, then wait for a granted token. No timeout runs meanwhile."""
        while self._left or self._granted <= 0:
            if self._granted <= 0:
                self._timeout.reschedule(None)
                self._grant_arrived.clear()
                await self._grant_arrived.wait()
            fed = min(self._left, self._granted)
            if fed:
                self._left -= fed
                self._granted -= fed
                self._report(Step(self._admission.call, fed=fed))

    def _report_text(self, part: Chunk, remaining: int) -> None:
        """Report a piece of text, at most `remaining` tokens."""
        fresh = self._surrogates.decode(part.text.encode("utf-16-le", "surrogatepass")).encode()
        before = self._scan.seen
        text = self._scan.feed(fresh)
        for one in part.logprobs:
            self._logprob_stream.add(one)
        self._bytes += len(fresh)
        least = max(1, -(-len(part.text) // limits.REMOTE_TOKEN_CHARS))
        counted = min(part.count or 0, self._bytes + 1) - self._generated
        tokens = min(max(least, counted), remaining)
        self._generated += tokens
        self._granted -= tokens
        self._texts.append(text)
        self._ends += [before] * (tokens - 1) + [self._scan.seen]
        logprobs = self._logprob_stream.show(text)
        self._report(Step(self._admission.call, text, tokens, logprobs=logprobs))

    def _end(self, *, finish: Finish | None = None, error: DeviceFault | None = None) -> None:
        """Report the last step, once."""
        if self._ended:
            return
        self._ended = True
        rest = self._scan.flush()
        complete = finish in (Finish.STOP, Finish.LENGTH)
        claimed = min(self._usage or 0, self._bytes + 1, self._max_tokens) if complete else 0
        self._report(
            Step(
                self._admission.call,
                rest,
                tokens=max(0, claimed - self._generated),
                fed=self._left if complete else 0,
                finish=finish,
                error=error,
                cuts=self._cuts("".join([*self._texts, rest])),
                logprobs=[*self._logprob_stream.show(rest), *self._logprob_stream.end()],
            )
        )

    def _cuts(self, answer: str) -> list[Cut]:
        if self._settings.dialect == LLAMA:
            return cut_answer(answer, self._ends)
        return cut_text(answer, estimate)


def _now() -> float:
    return asyncio.get_running_loop().time()
