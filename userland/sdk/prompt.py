"""Converts a program's prompts and options to the kernel's request."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict, cast

from llmasos.kernel.abi import limits
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError

from .schema import Schema, schema_text

# A text, or its parts as in OpenAI's API: [{"type": "text", "text": ...}].
Content = str | Sequence[Mapping[str, Any]]
# A text is one message of the user; a message may be a mapping {"role": ..., "content": ...}.
Prompt = str | Sequence[v.Message | Mapping[str, Any]]


class Options(TypedDict, total=False):
    """Options of an answer. Omitted options have the kernel's defaults (kernel/abi/values)."""

    max_tokens: int | None
    temperature: float  # 0: always the most likely token
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    seed: int | None  # None: random; the reply contains it
    stop: str | Sequence[str]  # strings that end the answer and are not part of it
    ignore_eos: bool
    grammar: str | None  # GBNF
    schema: Schema | None  # a pydantic model, a dataclass, or a JSON schema; see Reply.parsed
    bias: Mapping[int, float]  # token id -> value added to its logit, -100 to 100
    logprobs: int | None  # number of alternatives reported for each token
    lookup: bool | None  # drafts from the prompt that change no token; None: where that is faster
    deterministic: bool  # EINVAL unless the model is mounted with deterministic
    recall: bool  # False: do not bring earlier pages back
    overflow: str  # "error": E2BIG instead of paging
    raw: bool  # no chat template: the texts verbatim
    timeout_s: float | None  # seconds until Timeout is raised; None: no limit


class ModelOptions(Options, total=False):
    """Options of a single answer of a model, from a process that exists for this call only."""

    app: str  # its application in `ps` and in rules; default: this application
    nice: int  # -20 (largest share) to 19 (smallest)


_CALL_OPTIONS = (
    "raw",
    "timeout_s",
    "deterministic",
    "recall",
    "overflow",
    "app",
    "nice",
)  # the others are fields of Sampling


def request(pid: int, prompt: Prompt, options: ModelOptions, model: str = "") -> v.Generate:
    """The request of a `generate` call. EINVAL; TypeError for an unknown option."""
    rest = cast("dict[str, Any]", dict(options))
    call = {name: rest.pop(name) for name in _CALL_OPTIONS if name in rest}
    if "overflow" in call:
        call["overflow"] = _overflow(call["overflow"])
    if "bias" in rest:
        rest["bias"] = v.pack_bias(rest["bias"])
    if "stop" in rest:
        stop = rest["stop"]
        rest["stop"] = [stop] if isinstance(stop, str) else list(stop)
    if rest.get("schema") is not None:
        rest["schema"] = schema_text(rest["schema"])
    return v.Generate(
        pid, messages(prompt), sampling=v.Sampling(**rest), model=model, **call
    )  # fmt: skip


def _overflow(value: str) -> v.Overflow:
    try:
        return v.Overflow(value)
    except ValueError as error:
        allowed = " or ".join(v.Overflow)
        raise SyscallError(Errno.EINVAL, f"overflow={value!r}: must be {allowed}") from error


def messages(prompt: Prompt) -> list[v.Message]:
    """A prompt as messages. EINVAL for an unknown role or a part that is not text."""
    if isinstance(prompt, str):
        return [v.Message(v.Role.USER, prompt)]
    return [one if isinstance(one, v.Message) else _message(one) for one in prompt]


def _message(fields: Mapping[str, Any]) -> v.Message:
    try:
        return v.Message(v.Role(fields["role"]), _text(fields["content"]))
    except (KeyError, ValueError) as error:
        roles = ", ".join(v.Role)
        raise SyscallError(
            Errno.EINVAL, f"invalid message with the fields {sorted(fields)}: {error}",
            f'a message is {{"role": one of {roles}, "content": text}}',
        ) from error  # fmt: skip


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not issubclass(type(content), Sequence):
        raise ValueError(f"content of type {type(content).__name__}")
    parts: Sequence[Any] = content
    return "".join(map(_part, parts))


def _part(part: Any) -> str:
    fields: Mapping[str, Any] = part if issubclass(type(part), Mapping) else {}
    kind, text = fields.get("type", type(part).__name__), fields.get("text")
    if kind != "text":
        message = f"a content part of type {kind!r}: only type text is supported"
        raise SyscallError(Errno.EINVAL, message, 'give {"type": "text", "text": ...}')
    if not isinstance(text, str):
        raise SyscallError(Errno.EINVAL, "a content part of type text has no text")
    return text


def batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Split texts into batches that fit one `embed` call: by number and by bytes."""
    batch: list[str] = []
    room = _BATCH_BYTES
    for text in texts:
        size = len(text.encode(errors="replace"))
        if batch and (len(batch) == limits.EMBED_TEXTS or size > room):
            yield batch
            batch, room = [], _BATCH_BYTES
        batch.append(text)
        room -= size
    if batch:
        yield batch


_BATCH_BYTES = limits.REQUEST_BYTES // 2
