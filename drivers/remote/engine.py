"""An endpoint as an engine: texts, checks, slots.

A slot is a request in flight. The endpoint keeps no context of ours, so nothing is parked, shared
or forgotten; and it does not die: each call fails, or does not, by itself.
"""

import asyncio
import base64
import math
import struct
from collections.abc import Mapping, Sequence

from llmasos.drivers.pages import cut_text
from llmasos.drivers.restart import Restarter
from llmasos.kernel import limits
from llmasos.kernel.driver import (
    Admission,
    Cause,
    Cut,
    Death,
    Facts,
    Listener,
    Prompt,
    Step,
    Vectors,
)
from llmasos.kernel.errors import DeviceFault, Errno, SyscallError, TooBig
from llmasos.kernel.values import Message, Sampling, check_biased

from . import asking, reading, structure
from .about import NOT_THERE, About
from .call import Call
from .http import Endpoint, patiently
from .options import LLAMA, Settings
from .trouble import Refusal

_OPENAI = frozenset({"template", "stop", "bias", "logprobs", "embed"})
_LLAMA = _OPENAI | {"tokenize", "exact_usage", "seed", "grammar"}


class Contact:
    """A look at the endpoint that found it. It ends when another one is requested."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.ended: asyncio.Future[Death] = asyncio.get_running_loop().create_future()

    async def close(self, reason: str = "") -> None:
        if not self.ended.done():
            self.ended.set_result(Death(reason, Cause.OUTSIDE))


class RemoteEngine:
    """One endpoint and one of its models."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._endpoint = Endpoint(settings)
        self._facts: Facts | None = None
        self._listener: Listener | None = None
        self._looking: asyncio.Task[Facts] | None = None
        self._restarter = Restarter("the endpoint", self._connect)
        self._stopped = False
        self._calls: dict[int, Call] = {}
        self._closing: set[asyncio.Task[None]] = set()  # of calls that have ended
        self._steps: list[Step] = []  # to be told at once

    # --- start and stop -------------------------------------------------------------------------
    async def start(self, listener: Listener) -> None:
        """A look at the endpoint: is it there, does it take the key, which model is it?"""
        self._listener = listener
        try:
            await self._restarter.start(self._up, self._down)
        except SyscallError:
            await self._endpoint.close()
            raise

    async def _connect(self) -> "Contact":
        self._looking = asyncio.create_task(patiently(self._look, self._settings.retries))
        try:
            return Contact(await self._looking)
        except asyncio.CancelledError:
            if not self._stopped:
                raise
            raise self._endpoint.refusal("it was unmounted before it was up") from None

    def _up(self, contact: "Contact") -> None:
        self._facts = contact.facts
        if self._listener is not None:
            self._listener.up(contact.facts)

    def _down(self, death: Death) -> None:
        """On request, or when the look that was requested failed."""
        self._facts = None
        self._drop_calls()
        if self._listener is not None:
            self._listener.down(death)

    def retry(self) -> None:
        self._restarter.retry()

    async def restart(self) -> None:
        await self._restarter.restart()

    async def _look(self) -> Facts:
        about = About(self._endpoint)
        card = await about.card()
        self._settings = self._endpoint.settings
        meta = reading.fields(card.get("meta"))
        told: dict[str, int | None] = {"window": reading.whole_number(card.get("max_model_len"))}
        able = _OPENAI
        if self._settings.dialect == LLAMA:
            told, able = await about.props(), _LLAMA
            if not await self._embeds():
                able -= {"embed"}
        window = self._window(told.get("window") or 0)
        slots = self._settings.slots or min(told.get("slots") or limits.SLOTS, limits.SLOTS_MAX)
        return Facts(
            slots, slots, window, slots * window, 0,
            f"remote: {self._settings.place}, model {self._endpoint.clean(self._settings.model)}",
            able, vocab=reading.whole_number(meta.get("n_vocab")) or 0,
        )  # fmt: skip

    def _window(self, told: int) -> int:
        asked = self._settings.window
        if told and asked > told:
            words = f"a window of {asked} tokens; {self._settings.place} has {told}"
            raise SyscallError(Errno.EINVAL, words, "mount it with a smaller window")
        return asked or min(told or limits.REMOTE_WINDOW_TOKENS, limits.WINDOW_MAX)

    async def _embeds(self) -> bool:
        try:
            await self.embed(["a"])
        except SyscallError as error:
            if error.errno is not Errno.ENOTSUP:
                raise
            return False
        return True

    async def stop(self) -> None:
        """Calls in flight get no further step."""
        self._listener, self._stopped = None, True
        if self._looking is not None:
            self._looking.cancel()
        await self._restarter.stop()
        self._drop_calls()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._endpoint.close()

    def _drop_calls(self) -> None:
        for call in list(self._calls.values()):
            self._close(call)
            if call.task is not None:
                call.task.cancel()
        self._calls.clear()
        self._steps.clear()

    # --- texts ----------------------------------------------------------------------------------
    async def tokenize(self, text: str) -> Sequence[int]:
        """Names of control tokens are text, too. ENOTSUP: the API has nothing like it."""
        if self._settings.dialect != LLAMA:
            raise SyscallError(
                Errno.ENOTSUP, "the OpenAI API tells no tokens",
                "a llama.cpp server does: `--set dialect=llama`",
            )  # fmt: skip
        return await self._tokens(text, special=False)

    async def _tokens(self, text: str, *, special: bool) -> list[int]:
        body = {"content": text, "add_special": special, "parse_special": special}
        answer = await self._endpoint.ask(f"{self._settings.root}/tokenize", body)
        tokens = [
            reading.whole_number(one) for one in reading.items(reading.fields(answer).get("tokens"))
        ]
        known = [token for token in tokens if token is not None]
        if len(known) < len(tokens) or (text and not known):
            raise self._endpoint.refusal("tokens that are none")
        return known

    async def compose(self, messages: Sequence[Message], *, raw: bool, fresh: int) -> Prompt:
        """The endpoint renders the messages. Their size is exact for llama.cpp, else estimated."""
        if not 0 <= fresh <= len(messages):
            words = f"{fresh} of {len(messages)} messages to be cut"
            raise SyscallError(Errno.EINVAL, words, "fresh counts the last messages")
        cuts = [await self._cut(one.content) for one in messages[len(messages) - fresh :]]
        size = await self._size(messages, raw)
        return Prompt((), cuts, list(messages), raw, size)

    async def _cut(self, text: str) -> list[Cut]:
        if self._settings.dialect != LLAMA:
            return cut_text(text, asking.estimate)
        loop = asyncio.get_running_loop()

        def count(piece: str) -> int:
            tokens = self._tokens(piece, special=False)
            return len(asyncio.run_coroutine_threadsafe(tokens, loop).result())

        return await asyncio.to_thread(cut_text, text, count)

    async def _size(self, messages: Sequence[Message], raw: bool) -> int:
        if self._settings.dialect != LLAMA:
            return asking.estimate_prompt(list(messages), raw=raw)
        text = "".join(one.content for one in messages)
        if not raw:
            body = {"messages": [{"role": str(m.role), "content": m.content} for m in messages]}
            try:
                answer = await self._endpoint.ask(f"{self._settings.root}/apply-template", body)
            except Refusal as refusal:
                if refusal.status == 400:
                    raise SyscallError(Errno.EINVAL, refusal.message) from refusal
                raise
            text = str(reading.fields(answer).get("prompt", ""))
        return len(await self._tokens(text, special=True)) if text else 0

    async def check(self, sampling: Sampling) -> None:
        """ENOTSUP for what the dialect lacks; EINVAL for what a schema cannot have checked.

        A grammar is tried on the endpoint.
        """
        asking.check(self._settings, sampling)
        if sampling.schema is not None:
            asking.schema_of(sampling.schema)
            await asyncio.to_thread(structure.read, sampling.schema)
        vocab = self._facts.vocab if self._facts else 0
        if vocab:
            check_biased(sampling.bias, vocab)
        if self._settings.dialect == LLAMA and (sampling.grammar or sampling.schema):
            await self._try(sampling)

    async def _try(self, sampling: Sampling) -> None:
        body: dict[str, object] = {"prompt": "a", "n_predict": 0}
        if sampling.grammar:
            body["grammar"] = sampling.grammar
        elif sampling.schema:
            body["json_schema"] = asking.schema_of(sampling.schema)
        try:
            await self._endpoint.ask(f"{self._settings.root}/completion", body)
        except Refusal as refusal:
            if refusal.status != 400:
                raise
            hint = "the endpoint does not tell the place"
            raise SyscallError(Errno.EINVAL, refusal.message, hint) from refusal

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Through /v1/embeddings. ENOTSUP when the endpoint has none."""
        settings = self._settings
        body = {"model": settings.model, "input": list(texts), "encoding_format": "float"}
        try:
            answer = reading.fields(await self._endpoint.ask(f"{settings.url}/embeddings", body))
        except Refusal as refusal:
            if refusal.status in NOT_THERE:
                raise SyscallError(Errno.ENOTSUP, refusal.message, refusal.hint) from refusal
            if "too large" in refusal.message or "context" in refusal.message:
                raise TooBig(refusal.message, "give shorter texts") from refusal
            raise
        try:
            vectors = await asyncio.to_thread(_vectors, answer, len(texts))
        except ValueError as error:
            raise self._endpoint.refusal(str(error)) from error
        claimed = reading.whole_number(reading.fields(answer.get("usage")).get("prompt_tokens"))
        most = sum(len(text.encode("utf-8", "replace")) + 2 for text in texts)
        tokens = sum(map(asking.estimate, texts)) if claimed is None else min(claimed, most)
        return Vectors(len(vectors[0]) // 4, vectors, tokens)

    # --- commands -------------------------------------------------------------------------------
    def purge(self, domain: str) -> None:
        """The endpoint keeps nothing that it was told to keep."""

    def forget(self, history: int) -> None:
        """Nothing is kept."""

    def admit(self, admission: Admission) -> None:
        fault = self._fault(admission)
        if fault:
            self._tell(Step(admission.call, error=DeviceFault(fault)))
            return
        window = self._facts.window if self._facts else 0
        asked = admission.sampling.max_tokens or limits.MAX_TOKENS
        most = min(asked, window - admission.prompt.size)
        self._calls[admission.call] = Call(admission, most, self._endpoint, self._tell)

    def _fault(self, admission: Admission) -> str:
        facts, size = self._facts, admission.prompt.size
        if facts is None:
            return "the endpoint is not mounted"
        if not 0 <= admission.slot < facts.slots:
            return f"slot {admission.slot} of {facts.slots}"
        if any(call.slot == admission.slot for call in self._calls.values()):
            return f"slot {admission.slot} is taken"
        if not 0 < size < facts.window or not admission.prompt.messages:
            return f"a prompt of {size} tokens, 1 to {facts.window - 1} fit the window"
        return ""

    def grant(self, call: int, tokens: int) -> None:
        known = self._calls.get(call)
        if known is not None:
            known.grant(tokens)

    def cancel(self, call: int) -> None:
        known = self._calls.get(call)
        if known is not None:
            known.cancel()

    def park(self, call: int, *, keep: bool) -> None:
        """It cannot; the facts say so."""

    def unpark(self, call: int, slot: int) -> None:
        """It was not parked."""

    def _tell(self, step: Step) -> None:
        """With all others of this turn of the event loop, and never in the midst of a command."""
        if step.finish or step.error:
            self._close(self._calls.pop(step.call, None))
        if not self._steps:
            asyncio.get_running_loop().call_soon(self._flush)
        self._steps.append(step)

    def _close(self, call: Call | None) -> None:
        """Its connection may take a moment longer."""
        if call is not None and call.task is not None:
            self._closing.add(call.task)
            call.task.add_done_callback(self._closing.discard)

    def _flush(self) -> None:
        steps, self._steps = self._steps, []
        if self._listener is not None:
            self._listener.stepped(steps)


def _values(embedding: object) -> list[float | None]:
    """Numbers, or these as little-endian 32-bit floats in base64, which some prefer to send."""
    if not isinstance(embedding, str):
        return [reading.number(value) for value in reading.items(embedding)]
    data = base64.b64decode(embedding, validate=True)
    if len(data) % 4:
        raise ValueError("a vector of half a number")
    return [reading.number(value) for value in struct.unpack(f"<{len(data) // 4}f", data)]


def _vectors(answer: Mapping[str, object], count: int) -> list[bytes]:
    """Of length 1, in the order of the texts. ValueError: they are none."""
    found: dict[int, bytes] = {}
    for place, one in enumerate(map(reading.fields, reading.items(answer.get("data")))):
        index = reading.whole_number(one.get("index"))
        values = _values(one.get("embedding"))
        sound = [value for value in values if value is not None]
        length = math.hypot(*sound)
        if len(sound) < len(values) or not 0 < length < math.inf:
            raise ValueError("a vector without length or with values that are no numbers")
        if len(sound) > limits.EMBED_DIMENSIONS:
            raise ValueError(f"a vector of {len(sound)} dimensions")
        unit = struct.pack(f"<{len(sound)}f", *(value / length for value in sound))
        found[place if index is None else index] = unit
    if sorted(found) != list(range(count)) or len(set(map(len, found.values()))) != 1:
        raise ValueError(f"{count} vectors of one size were asked for, {len(found)} came")
    return [found[index] for index in range(count)]
