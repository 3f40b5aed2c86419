"""Parses untrusted answers of an endpoint: any JSON may arrive; only valid values are passed on."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from llmasos.drivers.logprobs import token_text
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.values import Alternative, Logprob

from .failure import EndpointFailure

_NO_TOKEN = -1  # the endpoint reports no token ids
_UNLIKELY = -9999.0  # logprob of a token that is in no list
_COUNT_MAX = 2**53
_TOKEN_BYTES = 4 * limits.REMOTE_TOKEN_CHARS
_ESCAPED = re.compile(r"bytes:(\\x[0-9a-f]{2})+")
_UNSEEN = ("reasoning_content", "reasoning", "thinking", "tool_calls", "function_call")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of an answer."""

    text: str = ""
    thought: bool = False  # it contains reasoning or a tool call, which is not part of the text
    finish: str = ""
    usage: int | None = None  # tokens of the whole answer, as reported by the endpoint
    count: int | None = None  # tokens of the answer so far, as reported by the endpoint
    logprobs: Sequence[Logprob] = ()


def parse(data: bytes) -> object:
    """The JSON value. EndpointFailure when it is not JSON."""
    try:
        return cast("object", json.loads(data.decode().removeprefix("\ufeff")))
    except UnicodeDecodeError as error:
        raise EndpointFailure(f"not valid UTF-8 at byte {error.start} of an event") from error
    except (ValueError, RecursionError) as error:
        raise EndpointFailure(f"not JSON: {data[:60]!r}") from error


def fields(value: object) -> Mapping[str, object]:
    """The value if it is a mapping, else an empty one."""
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


def items(value: object) -> Sequence[object]:
    """The value if it is a list, else an empty one."""
    return cast("Sequence[object]", value) if isinstance(value, list) else ()


def whole_number(value: object) -> int | None:
    """The value if it is an integer from 0 to 2**53 - 1, else None."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _COUNT_MAX:
        return value
    return None


def number(value: object) -> float | None:
    """The value as a float if it is a finite number, else None."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:
            return None
        return found if math.isfinite(found) else None
    return None


def error_text(data: bytes) -> str:
    """The message in an error response, in any of the usual fields."""
    try:
        found = parse(data)
    except EndpointFailure:
        return data.decode("utf-8", "replace") or "no message"
    return _message(fields(next(iter(items(found)), found))) or "no message"


def _message(found: Mapping[str, object]) -> str:
    error = found.get("error")
    candidates = (fields(error).get("message"), error, found.get("message"), found.get("detail"))
    texts = (one for one in candidates if isinstance(one, str))
    return next(texts, json.dumps(dict(found)))


def _failed(found: Mapping[str, object]) -> bool:
    """Whether the event is an error instead of a part of an answer."""
    return bool(found.get("error")) or "error" in (found.get("object"), found.get("type"))


def chunk(data: bytes, *, whole: bool = False) -> Chunk:
    """Parse one event of a stream, or a whole answer. An object without choices gives an empty
    chunk.

    EndpointFailure for the endpoint's own error, and for an invalid event.
    """
    found = parse(data)
    if whole:
        found = next(iter(items(found)), found)  # some endpoints send an error in a list
    event = fields(found)
    if _failed(event):
        raise EndpointFailure(_message(event))
    choices = event.get("choices")
    if not isinstance(found, dict) or (choices is not None and not _is_list(choices)):
        raise EndpointFailure(f"not an event of an answer: {data[:60]!r}")
    if whole and not choices:
        raise EndpointFailure(f"an answer without choices: {data[:60]!r}")
    first = fields(next(iter(items(choices)), None))
    message = fields(first.get("delta")) or fields(first.get("message"))
    usage = fields(event.get("usage"))
    content = message.get("content")
    return Chunk(
        text=_text(first.get("text") if content is None else content),
        thought=any(message.get(name) for name in _UNSEEN),
        finish=str(first.get("finish_reason") or ""),
        usage=whole_number(usage.get("completion_tokens")),
        count=whole_number(fields(event.get("timings")).get("predicted_n")),
        logprobs=_logprobs(fields(first.get("logprobs"))),
    )


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _text(content: object) -> str:
    """A text, or the joined texts of a list of parts. Parts of other types are skipped."""
    if content is None or isinstance(content, str):
        return content or ""
    if not _is_list(content):
        raise EndpointFailure(f"content that is not text: {content!r:.60}")
    texts: list[str] = []
    for part in items(content):
        text = part if isinstance(part, str) else fields(part).get("text")
        if isinstance(text, str):
            texts.append(text)
        elif not isinstance(part, dict):
            raise EndpointFailure(f"content that is not text: {content!r:.60}")
    return "".join(texts)


def _logprobs(found: Mapping[str, object]) -> list[Logprob]:
    """Logprobs in either form: a list of mappings, or the older three lists."""
    tokens = [fields(one) for one in items(found.get("content"))] or _older(found)
    logprobs: list[Logprob] = []
    for one in tokens:
        top = [_likely(fields(other)) for other in items(one.get("top_logprobs"))]
        likely = _likely(one)
        best = sorted(top[: limits.LOGPROBS], key=lambda other: -other.logprob)
        logprobs.append(Logprob(likely.token, likely.text, likely.logprob, best, likely.bytes))
    return logprobs


def _likely(one: Mapping[str, object]) -> Alternative:
    token, logprob = whole_number(one.get("id")), number(one.get("logprob"))
    name = str(one.get("token", "")).encode("utf-8", "replace").decode()
    text, part = token_text(_bytes(one.get("bytes"), name)) if name else ("", list[int]())
    return Alternative(
        _NO_TOKEN if token is None else token,
        text[: limits.REMOTE_TOKEN_CHARS],
        _UNLIKELY if logprob is None else logprob,
        part,
    )


def _bytes(value: object, name: str) -> bytes:
    """The bytes of a token. Endpoints mark a part of a character in different forms."""
    numbers = [one for one in map(whole_number, items(value)) if one is not None and one < 256]
    if numbers and len(numbers) == len(items(value)) and len(numbers) <= _TOKEN_BYTES:
        return bytes(numbers)
    if _ESCAPED.fullmatch(name):  # the form of OpenAI's completions API
        return bytes.fromhex(name.removeprefix("bytes:").replace("\\x", ""))
    return name.encode()


def _older(found: Mapping[str, object]) -> list[Mapping[str, object]]:
    """The older form, three lists, as a list of mappings."""
    values, tops = items(found.get("token_logprobs")), items(found.get("top_logprobs"))
    return [
        {
            "token": token,
            "logprob": values[index] if index < len(values) else None,
            "top_logprobs": [
                {"token": text, "logprob": value}
                for text, value in fields(tops[index] if index < len(tops) else None).items()
            ],
        }
        for index, token in enumerate(items(found.get("tokens")))
    ]
