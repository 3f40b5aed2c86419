"""An endpoint as an engine: texts, checks, slots.

A slot is a request in flight. The endpoint keeps no context for us, so nothing is parked, shared or
forgotten. The engine does not go down when calls fail: each call fails on its own.
"""

import asyncio
import base64
import math
import struct
from collections.abc import Mapping, Sequence

from llmasos.drivers.pages import cut_text
from llmasos.drivers.prompts import last_messages
from llmasos.drivers.restart import Restarter
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError, TooBig
from llmasos.kernel.abi.values import Message, Sampling, check_biased
from llmasos.kernel.driver import (
    Admission,
    Beginning,
    Cause,
    Cut,
    Death,
    Facts,
    Keep,
    Listener,
    Prompt,
    Step,
    Vectors,
)

from . import parsing, payload, structure
from .call import RemoteCall
from .discovery import UNSUPPORTED, Discovery
from .failure import Refusal
from .http import EndpointClient, with_retries
from .options import LLAMA, RemoteSettings

_OPENAI = frozenset({"template", "stop", "bias", "logprobs", "embed"})
_LLAMA = _OPENAI | {"tokenize", "exact_usage", "seed", "grammar"}


class EndpointSession:
    """The time from one successful probe of the endpoint to the next requested restart."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.ended: asyncio.Future[Death] = asyncio.get_running_loop().create_future()

    async def close(self, reason: str = "") -> None:
        if not self.ended.done():
            self.ended.set_result(Death(reason, Cause.OUTSIDE))


class RemoteEngine:
    """One endpoint and one of its models."""

    def __init__(self, settings: RemoteSettings) -> None:
        self._settings = settings
        self._endpoint = EndpointClient(settings)
        self._facts: Facts | None = None
        self._listener: Listener | None = None
        self._probing: asyncio.Task[Facts] | None = None
        self._restarter = Restarter("the endpoint", self._connect)
        self._stopped = False
        self._calls: dict[int, RemoteCall] = {}
        self._closing: set[asyncio.Task[None]] = set()  # tasks of calls that have ended
        self._steps: list[Step] = []  # to be reported together

    # --- start and stop -------------------------------------------------------------------------
    async def start(self, listener: Listener) -> None:
        """Probe the endpoint: whether it answers, accepts the key, and has the model."""
        self._listener = listener
        try:
            await self._restarter.start(self._up, self._down)
        except SyscallError:
            await self._endpoint.close()
            raise

    async def _connect(self) -> "EndpointSession":
        self._probing = asyncio.create_task(with_retries(self._probe, self._settings.retries))
        try:
            return EndpointSession(await self._probing)
        except asyncio.CancelledError:
            if not self._stopped:
                raise
            raise self._endpoint.refusal("unmounted before it was ready") from None

    def _up(self, contact: "EndpointSession") -> None:
        self._facts = contact.facts
        if self._listener is not None:
            self._listener.up(contact.facts)

    def _down(self, death: Death) -> None:
        """After a requested restart, or when its probe failed."""
        self._facts = None
        self._drop_calls()
        if self._listener is not None:
            self._listener.down(death)

    @property
    def sent_bytes(self) -> int:
        return 0

    def retry(self) -> None:
        self._restarter.retry()

    async def restart(self) -> None:
        await self._restarter.restart()

    async def _probe(self) -> Facts:
        discovery = Discovery(self._endpoint)
        card = await discovery.card()
        self._settings = self._endpoint.settings
        meta = parsing.fields(card.get("meta"))
        reported: dict[str, int | None] = {
            "window": parsing.whole_number(card.get("max_model_len"))
        }
        capabilities = _OPENAI
        if self._settings.dialect == LLAMA:
            reported, capabilities = await discovery.props(), _LLAMA
            if not await self._can_embed():
                capabilities -= {"embed"}
        window = self._window(reported.get("window") or 0)
        slots = self._settings.slots or min(reported.get("slots") or limits.SLOTS, limits.SLOTS_MAX)
        return Facts(
            slots, slots, window, slots * window, 0,
            f"remote: {self._settings.origin}, model {self._endpoint.clean(self._settings.model)}",
            capabilities, vocab=parsing.whole_number(meta.get("n_vocab")) or 0,
        )  # fmt: skip

    def _window(self, reported: int) -> int:
        requested = self._settings.window
        if reported and requested > reported:
            message = f"a window of {requested} tokens; {self._settings.origin} has {reported}"
            raise SyscallError(Errno.EINVAL, message, "mount it with a smaller window")
        return requested or min(reported or limits.REMOTE_WINDOW_TOKENS, limits.WINDOW_MAX)

    async def _can_embed(self) -> bool:
        try:
            await self.embed(["a"])
        except SyscallError as error:
            if error.errno is not Errno.ENOTSUP:
                raise
            return False
        return True

    async def stop(self) -> None:
        """Stop the engine. Calls in flight report no further step."""
        self._listener, self._stopped = None, True
        if self._probing is not None:
            self._probing.cancel()
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
        """Token ids. Names of control tokens are treated as text. ENOTSUP: OpenAI's API has no
        tokenizer."""
        if self._settings.dialect != LLAMA:
            raise SyscallError(
                Errno.ENOTSUP, "the OpenAI API has no tokenizer",
                "a llama.cpp server has one: `--set dialect=llama`",
            )  # fmt: skip
        return await self._tokens(text, special=False)

    async def _tokens(self, text: str, *, special: bool) -> list[int]:
        body = {"content": text, "add_special": special, "parse_special": special}
        answer = await self._endpoint.ask(f"{self._settings.root}/tokenize", body)
        tokens = [
            parsing.whole_number(one) for one in parsing.items(parsing.fields(answer).get("tokens"))
        ]
        known = [token for token in tokens if token is not None]
        if len(known) < len(tokens) or (text and not known):
            raise self._endpoint.refusal("its answer to /tokenize contains no valid tokens")
        return known

    async def compose(
        self, messages: Sequence[Message], *, raw: bool, fresh: int, keep: Keep | None = None
    ) -> Prompt:
        """A prompt; the endpoint renders its messages. Its size is exact for llama.cpp, else
        estimated. It is never kept: each request to an endpoint contains all messages."""
        cuts = [await self.cut(one.content) for one in last_messages(messages, fresh)]
        size = await self._size(messages, raw)
        return Prompt((), cuts, list(messages), raw, size)

    async def extend(
        self, beginning: Beginning, messages: Sequence[Message], *, fresh: int, keep: Keep
    ) -> Prompt | None:
        """None: no prompt is kept."""
        return None

    async def cut(self, text: str) -> Sequence[Cut]:
        if self._settings.dialect != LLAMA:
            return cut_text(text, payload.estimate)
        loop = asyncio.get_running_loop()

        def count(piece: str) -> int:
            tokens = self._tokens(piece, special=False)
            return len(asyncio.run_coroutine_threadsafe(tokens, loop).result())

        return await asyncio.to_thread(cut_text, text, count)

    async def _size(self, messages: Sequence[Message], raw: bool) -> int:
        if self._settings.dialect != LLAMA:
            return payload.estimate_prompt(list(messages), raw=raw)
        text = "".join(one.content for one in messages)
        if not raw:
            body = {"messages": [{"role": str(m.role), "content": m.content} for m in messages]}
            try:
                answer = await self._endpoint.ask(f"{self._settings.root}/apply-template", body)
            except Refusal as refusal:
                if refusal.status == 400:
                    raise SyscallError(Errno.EINVAL, refusal.message) from refusal
                raise
            text = str(parsing.fields(answer).get("prompt", ""))
        return len(await self._tokens(text, special=True)) if text else 0

    async def check(self, sampling: Sampling, domain: str = "") -> None:
        """ENOTSUP for an option that the dialect lacks; EINVAL for a schema that cannot be checked.

        A grammar or a schema is tried on a llama.cpp server.
        """
        payload.check(self._settings, sampling)
        if sampling.schema is not None:
            payload.schema_of(sampling.schema)
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
            body["json_schema"] = payload.schema_of(sampling.schema)
        try:
            await self._endpoint.ask(f"{self._settings.root}/completion", body)
        except Refusal as refusal:
            if refusal.status != 400:
                raise
            hint = "the endpoint does not report the position of the error"
            raise SyscallError(Errno.EINVAL, refusal.message, hint) from refusal

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Embed texts with /v1/embeddings. ENOTSUP when the endpoint does not have it."""
        settings = self._settings
        body = {"model": settings.model, "input": list(texts), "encoding_format": "float"}
        try:
            answer = parsing.fields(await self._endpoint.ask(f"{settings.url}/embeddings", body))
        except Refusal as refusal:
            if refusal.status in UNSUPPORTED:
                raise SyscallError(Errno.ENOTSUP, refusal.message, refusal.hint) from refusal
            if "too large" in refusal.message or "context" in refusal.message:
                raise TooBig(refusal.message, "give shorter texts") from refusal
            raise
        try:
            vectors = await asyncio.to_thread(_vectors, answer, len(texts))
        except ValueError as error:
            raise self._endpoint.refusal(str(error)) from error
        claimed = parsing.whole_number(parsing.fields(answer.get("usage")).get("prompt_tokens"))
        most = sum(len(text.encode("utf-8", "replace")) + 2 for text in texts)
        tokens = sum(map(payload.estimate, texts)) if claimed is None else min(claimed, most)
        return Vectors(len(vectors[0]) // 4, vectors, tokens)

    # --- commands -------------------------------------------------------------------------------
    def purge(self, domain: str) -> None:
        """Does nothing: the endpoint keeps no context for us."""

    def forget(self, history: int) -> None:
        """Does nothing: no context is kept."""

    def admit(self, admission: Admission) -> None:
        fault = self._fault(admission)
        if fault:
            self._report(Step(admission.call, error=DeviceFault(fault)))
            return
        window = self._facts.window if self._facts else 0
        requested = admission.sampling.max_tokens or limits.MAX_TOKENS
        max_tokens = min(requested, window - admission.prompt.size)
        call = RemoteCall(admission, max_tokens, self._endpoint, self._report)
        self._calls[admission.call] = call

    def _fault(self, admission: Admission) -> str:
        facts, size = self._facts, admission.prompt.size
        if facts is None:
            return "the endpoint is not mounted"
        if not 0 <= admission.slot < facts.slots:
            return f"no slot {admission.slot}: the engine has {facts.slots}"
        if any(call.slot == admission.slot for call in self._calls.values()):
            return f"slot {admission.slot} is in use"
        if not 0 < size < facts.window or not admission.prompt.messages:
            return f"a prompt of {size} tokens; the window takes 1 to {facts.window - 1}"
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
        """Does nothing: parking is not among the engine's capabilities."""

    def unpark(self, call: int, slot: int, save: int = 0) -> None:
        """Does nothing: no call is parked."""

    def order(self, calls: Sequence[int], once: int) -> None:
        """Does nothing: the endpoint feeds prompts in its own order."""

    def drop(self, number: int) -> None:
        """Does nothing: no context is saved."""

    def clear(self, slot: int) -> None:
        """Does nothing: slots hold nothing."""

    def _report(self, step: Step) -> None:
        """Report a step, together with the others of this event loop iteration.

        Never synchronously: the listener must not be called during a command.
        """
        if step.finish or step.error:
            self._close(self._calls.pop(step.call, None))
        if not self._steps:
            asyncio.get_running_loop().call_soon(self._flush)
        self._steps.append(step)

    def _close(self, call: RemoteCall | None) -> None:
        """Keep the task of an ended call until its connection is closed."""
        if call is not None and call.task is not None:
            self._closing.add(call.task)
            call.task.add_done_callback(self._closing.discard)

    def _flush(self) -> None:
        steps, self._steps = self._steps, []
        if self._listener is not None:
            self._listener.stepped(steps)


def _values(embedding: object) -> list[float | None]:
    """The numbers of a vector: a list, or little-endian 32-bit floats in base64."""
    if not isinstance(embedding, str):
        return [parsing.number(value) for value in parsing.items(embedding)]
    data = base64.b64decode(embedding, validate=True)
    if len(data) % 4:
        raise ValueError(f"a vector of {len(data)} bytes, not a multiple of 4")
    return [parsing.number(value) for value in struct.unpack(f"<{len(data) // 4}f", data)]


def _vectors(answer: Mapping[str, object], count: int) -> list[bytes]:
    """Vectors of length 1, in the order of the texts. ValueError: they are not valid."""
    found: dict[int, bytes] = {}
    for position, one in enumerate(map(parsing.fields, parsing.items(answer.get("data")))):
        index = parsing.whole_number(one.get("index"))
        values = _values(one.get("embedding"))
        finite = [value for value in values if value is not None]
        length = math.hypot(*finite)
        if len(finite) < len(values) or not 0 < length < math.inf:
            raise ValueError("a vector of length 0 or with values that are not finite numbers")
        if len(finite) > limits.EMBED_DIMENSIONS:
            most = limits.EMBED_DIMENSIONS
            raise ValueError(f"a vector of {len(finite)} dimensions; the limit is {most}")
        unit = struct.pack(f"<{len(finite)}f", *(value / length for value in finite))
        found[position if index is None else index] = unit
    if sorted(found) != list(range(count)) or len(set(map(len, found.values()))) != 1:
        raise ValueError(f"{len(found)} vectors instead of {count} of the same size")
    return [found[index] for index in range(count)]
