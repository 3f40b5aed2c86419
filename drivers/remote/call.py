"""One call: its request, its stream, its account.

Tokens are told as far as they were granted. Who has no grant left does not read on, so a slow
reader slows the endpoint down. A token is what the endpoint counts, where it counts as it goes;
else each piece of text is one, until the usage comes at the end. No count is believed that is over
what was seen, or over what was asked for.
"""

import asyncio
import codecs
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from llmasos.drivers.pages import cut_answer, cut_text
from llmasos.drivers.spelling import Spelling
from llmasos.drivers.stops import Scan
from llmasos.kernel import limits
from llmasos.kernel.driver import Admission, Cut, Step
from llmasos.kernel.errors import DeviceFault, SyscallError
from llmasos.kernel.values import Finish

from . import structure
from .asking import estimate, request
from .events import Events
from .http import Endpoint, patiently
from .options import LLAMA
from .reading import Chunk, chunk
from .trouble import Trouble

log = logging.getLogger(__name__)
_DONE = b"[DONE]"


class Call:
    """An admitted call. `tell` takes its steps."""

    def __init__(
        self, admission: Admission, most: int, endpoint: Endpoint, tell: Callable[[Step], None]
    ) -> None:
        self.slot = admission.slot
        self.task: asyncio.Task[None] | None = None
        self._admission, self._most = admission, most
        self._endpoint, self._settings, self._tell = endpoint, endpoint.settings, tell
        self._granted = 0  # tokens that may be told
        self._more = asyncio.Event()  # there are some
        self._clock = asyncio.timeout(None)
        self._scan = Scan(admission.sampling.stop)
        self._spelling = Spelling()
        # An endpoint may cut between the halves of a surrogate pair.
        self._pairs = codecs.getincrementaldecoder("utf-16-le")("replace")
        self._left = admission.prompt.size  # tokens of the prompt that are not told yet
        self._said = 0  # tokens
        self._bytes = 0  # of text
        self._texts: list[str] = []
        self._ends: list[int] = []  # characters that were whole after each token
        self._finish: Finish | None = None  # as the endpoint says
        self._usage: int | None = None
        self._ended = False

    def grant(self, tokens: int) -> None:
        """The request is sent with the first grant."""
        self._granted += max(0, tokens)
        if self._granted > 0:
            self._more.set()
            self.task = self.task or asyncio.create_task(self._run())

    def cancel(self) -> None:
        self._end(finish=Finish.CANCELLED)
        if self.task is not None:
            self.task.cancel()

    async def _run(self) -> None:
        try:
            await self._finish_with(await patiently(self._attempt, self._settings.retries))
        except SyscallError as error:
            fault = error if isinstance(error, DeviceFault) else None
            self._end(error=fault or DeviceFault(error.message, error.hint))
        except Exception as error:  # ours: the call must end all the same
            log.exception("a call to %s", self._settings.place)
            self._end(error=DeviceFault(f"the remote driver failed: {type(error).__name__}"))

    async def _finish_with(self, finish: Finish) -> None:
        """The end, after a look at an answer that has to satisfy a schema."""
        schema = self._admission.sampling.schema
        if self._ended or schema is None or finish is not Finish.STOP:
            self._end(finish=finish)
        elif self._scan.stopped:
            self._end(finish=Finish.LENGTH)  # what a stop string cuts is not what was asked for
        else:
            self._show(self._scan.flush())
            words = await asyncio.to_thread(structure.problem, schema, "".join(self._texts))
            if words:
                words = f"the answer does not satisfy the schema: {words}"
                hint = "ask again, or use a model that keeps to schemas"
                self._end(error=self._endpoint.refusal(words, hint))
            else:
                self._end(finish=finish)

    def _show(self, text: str) -> None:
        """Text that was held back."""
        if text:
            self._texts.append(text)
            self._tell(Step(self._admission.call, text, logprobs=self._spelling.show(text)))

    async def _attempt(self) -> Finish:
        settings, admission = self._settings, self._admission
        url, body = request(settings, admission.prompt, admission.sampling, self._most)
        try:
            async with asyncio.timeout(settings.first_s) as self._clock:
                async with self._endpoint.open(url, body) as pieces:
                    return await self._read(pieces)
        except TimeoutError:
            hint = "mount it with a longer `--set first_s=` or `--set stall_s=`"
            fault: DeviceFault = self._endpoint.refusal(self._silence(), hint)
        except Trouble as trouble:
            fault = self._endpoint.refusal(str(trouble))
        except DeviceFault as error:
            if self._finish is None:
                raise
            fault = error
        if self._finish is None:
            raise fault
        return self._finish  # only its usage is missing

    def _silence(self) -> str:
        if not self._said:
            return f"no token within {self._settings.first_s:g} s"
        return f"silent for {self._settings.stall_s:g} s after {self._said} tokens"

    async def _read(self, pieces: AsyncIterator[bytes]) -> Finish:
        events = Events()
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
            raise Trouble(f"the stream was cut after {self._said} tokens")
        return self._finish or Finish.STOP

    async def _event(self, data: bytes, *, whole: bool = False) -> Finish | None:
        """The finish when nothing more is wanted."""
        if not data.strip():
            return None
        if data.strip() == _DONE:
            return self._finish or Finish.STOP
        return await self._take(chunk(data, whole=whole))

    async def _take(self, part: Chunk) -> Finish | None:
        """The finish when nothing more is wanted."""
        if part.usage is not None:
            self._usage = part.usage
        if (part.text or part.thought) and self._finish is None:
            room = self._most - self._said
            if room <= 0:
                return Finish.LENGTH  # it does not stop by itself
            text = part.text[: room * limits.REMOTE_TOKEN_CHARS]
            await self._afford()
            self._say(replace(part, text=text), room)
            self._clock.reschedule(_now() + self._settings.stall_s)
            if self._scan.stopped:
                return Finish.STOP
            if self._said == self._most:
                # What comes now changes nothing: it is read to keep the connection.
                self._end(finish=Finish.LENGTH)
                self._clock.reschedule(_now() + limits.REMOTE_USAGE_S)
        if part.finish and self._finish is None:
            if part.finish == "content_filter":
                raise Trouble("its content filter ended the answer")
            self._finish = Finish.LENGTH if part.finish == "length" else Finish.STOP
            self._clock.reschedule(_now() + limits.REMOTE_USAGE_S)
        return None

    async def _afford(self) -> None:
        """Tell the prompt, then wait until a token may be told. Meanwhile no clock runs."""
        while self._left or self._granted <= 0:
            if self._granted <= 0:
                self._clock.reschedule(None)
                self._more.clear()
                await self._more.wait()
            fed = min(self._left, self._granted)
            if fed:
                self._left -= fed
                self._granted -= fed
                self._tell(Step(self._admission.call, fed=fed))

    def _say(self, part: Chunk, room: int) -> None:
        fresh = self._pairs.decode(part.text.encode("utf-16-le", "surrogatepass")).encode()
        before = self._scan.seen
        text = self._scan.feed(fresh)
        for one in part.logprobs:
            self._spelling.add(one)
        self._bytes += len(fresh)
        least = max(1, -(-len(part.text) // limits.REMOTE_TOKEN_CHARS))
        counted = min(part.count or 0, self._bytes + 1) - self._said
        tokens = min(max(least, counted), room)
        self._said += tokens
        self._granted -= tokens
        self._texts.append(text)
        self._ends += [before] * (tokens - 1) + [self._scan.seen]
        logprobs = self._spelling.show(text)
        self._tell(Step(self._admission.call, text, tokens, logprobs=logprobs))

    def _end(self, *, finish: Finish | None = None, error: DeviceFault | None = None) -> None:
        """The last step, once."""
        if self._ended:
            return
        self._ended = True
        rest = self._scan.flush()
        whole = finish in (Finish.STOP, Finish.LENGTH)
        claimed = min(self._usage or 0, self._bytes + 1, self._most) if whole else 0
        self._tell(
            Step(
                self._admission.call,
                rest,
                tokens=max(0, claimed - self._said),
                fed=self._left if whole else 0,
                finish=finish,
                error=error,
                cuts=self._cuts("".join([*self._texts, rest])),
                logprobs=[*self._spelling.show(rest), *self._spelling.end()],
            )
        )

    def _cuts(self, answer: str) -> list[Cut]:
        if self._settings.dialect == LLAMA:
            return cut_answer(answer, self._ends)
        return cut_text(answer, estimate)


def _now() -> float:
    return asyncio.get_running_loop().time()
