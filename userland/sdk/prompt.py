"""Prompts and their options, in the forms that programs have them, as the kernel's request."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict, cast

from llmasos.kernel import limits
from llmasos.kernel import values as v
from llmasos.kernel.errors import Errno, SyscallError

from .schema import Schema, schema_text

# A text; or parts of one, as OpenAI's clients give it: [{"type": "text", "text": ...}].
Content = str | Sequence[Mapping[str, Any]]
# A text is one message of the user; a message may be a {"role": ..., "content": ...}.
Prompt = str | Sequence[v.Message | Mapping[str, Any]]


class Options(TypedDict, total=False):
    """How an answer is made. What is left out has the kernel's default (kernel/values.py)."""

    max_tokens: int | None
    temperature: float  # 0: always the likeliest token
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    seed: int | None  # None: drawn, and told in the reply
    stop: str | Sequence[str]  # texts that end the answer; they are not part of it
    ignore_eos: bool
    grammar: str | None  # GBNF
    schema: Schema | None  # a pydantic model, a dataclass, or a JSON schema; see Reply.parsed
    bias: Mapping[int, float]  # token id: what is added to its score, -100 to 100
    logprobs: int | None  # so many likeliest tokens are told beside each
    deterministic: bool  # EINVAL unless the model is mounted so
    recall: bool  # False: bring no earlier page back
    overflow: str  # "error": E2BIG instead of paging
    raw: bool  # no chat template: the texts as they are
    timeout_s: float | None  # seconds, then Timeout


_OF_THE_CALL = (
    "raw",
    "timeout_s",
    "deterministic",
    "recall",
    "overflow",
)  # the rest is of the sampling


def request(pid: int, prompt: Prompt, options: Options) -> v.Generate:
    """A prompt and its options as the syscall wants them. EINVAL; TypeError: no such option."""
    rest = cast("dict[str, Any]", dict(options))
    own = {name: rest.pop(name) for name in _OF_THE_CALL if name in rest}
    if "overflow" in own:
        own["overflow"] = _overflow(own["overflow"])
    if "bias" in rest:
        rest["bias"] = v.pack_bias(rest["bias"])
    if "stop" in rest:
        stop = rest["stop"]
        rest["stop"] = [stop] if isinstance(stop, str) else list(stop)
    if rest.get("schema") is not None:
        rest["schema"] = schema_text(rest["schema"])
    return v.Generate(pid, messages(prompt), sampling=v.Sampling(**rest), **own)


def _overflow(said: str) -> v.Overflow:
    try:
        return v.Overflow(said)
    except ValueError as error:
        ways = " or ".join(v.Overflow)
        raise SyscallError(Errno.EINVAL, f"overflow={said!r}: it is {ways}") from error


def messages(prompt: Prompt) -> list[v.Message]:
    """A prompt as the messages of a request. EINVAL for a role that does not exist, or a part of a
    message that is no text."""
    if isinstance(prompt, str):
        return [v.Message(v.Role.USER, prompt)]
    return [one if isinstance(one, v.Message) else _message(one) for one in prompt]


def _message(fields: Mapping[str, Any]) -> v.Message:
    try:
        return v.Message(v.Role(fields["role"]), _text(fields["content"]))
    except (KeyError, ValueError) as error:
        roles = ", ".join(v.Role)
        raise SyscallError(
            Errno.EINVAL, f"not a message: {sorted(fields)} with {error}",
            f'a message is {{"role": one of {roles}, "content": text}}',
        ) from error  # fmt: skip


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not issubclass(type(content), Sequence):
        raise ValueError(f"content of the type {type(content).__name__}")
    parts: Sequence[Any] = content
    return "".join(map(_part, parts))


def _part(part: Any) -> str:
    fields: Mapping[str, Any] = part if issubclass(type(part), Mapping) else {}
    kind, text = fields.get("type", type(part).__name__), fields.get("text")
    if kind != "text":
        words = f"a content part of type {kind!r}: only parts of type text are taken"
        raise SyscallError(Errno.EINVAL, words, 'give {"type": "text", "text": ...}')
    if not isinstance(text, str):
        raise SyscallError(Errno.EINVAL, "a content part of type text has no text")
    return text


def batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """So many texts, and so many bytes of them, as one call takes."""
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
