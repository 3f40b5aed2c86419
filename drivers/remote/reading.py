"""What an endpoint says, read without trust: any shape may come, and only sound values go on."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from llmasos.drivers.spelling import spelled
from llmasos.kernel import limits
from llmasos.kernel.values import Likely, Logprob

from .trouble import Trouble

_NO_TOKEN = -1  # an endpoint that tells no token ids
_UNLIKELY = -9999.0  # what is out of every list
_COUNT_MAX = 2**53
_TOKEN_BYTES = 4 * limits.REMOTE_TOKEN_CHARS
_ESCAPED = re.compile(r"bytes:(\\x[0-9a-f]{2})+")
_UNSEEN = ("reasoning_content", "reasoning", "thinking", "tool_calls", "function_call")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of an answer."""

    text: str = ""
    thought: bool = False  # it computed something that is not shown
    finish: str = ""
    usage: int | None = None  # tokens of the whole answer, as claimed
    count: int | None = None  # tokens of the answer so far, as claimed
    logprobs: Sequence[Logprob] = ()


def parse(data: bytes) -> object:
    """JSON. Trouble when it is none."""
    try:
        return cast("object", json.loads(data.decode().removeprefix("\ufeff")))
    except UnicodeDecodeError as error:
        raise Trouble(f"not valid UTF-8 at byte {error.start} of an event") from error
    except (ValueError, RecursionError) as error:
        raise Trouble(f"not JSON: {data[:60]!r}") from error


def fields(value: object) -> Mapping[str, object]:
    """A map, or nothing."""
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


def items(value: object) -> Sequence[object]:
    """A list, or nothing."""
    return cast("Sequence[object]", value) if isinstance(value, list) else ()


def whole_number(value: object) -> int | None:
    """A count that can be one."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _COUNT_MAX:
        return value
    return None


def number(value: object) -> float | None:
    """A finite number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:
            return None
        return found if math.isfinite(found) else None
    return None


def complaint(data: bytes) -> str:
    """The words of an error, wherever this endpoint puts them."""
    try:
        found = parse(data)
    except Trouble:
        return data.decode("utf-8", "replace") or "no words"
    return _words(fields(next(iter(items(found)), found))) or "no words"


def _words(found: Mapping[str, object]) -> str:
    error = found.get("error")
    places = (fields(error).get("message"), error, found.get("message"), found.get("detail"))
    return next((place for place in places if isinstance(place, str)), json.dumps(dict(found)))


def _failed(found: Mapping[str, object]) -> bool:
    """It is an error and no part of an answer."""
    return bool(found.get("error")) or "error" in (found.get("object"), found.get("type"))


def chunk(data: bytes, *, whole: bool = False) -> Chunk:
    """One event of a stream, or a whole answer. Objects that are no part of an answer are skipped.

    Trouble for the endpoint's own error, and for what makes no sense.
    """
    found = parse(data)
    if whole:
        found = next(iter(items(found)), found)  # some put an error into a list
    event = fields(found)
    if _failed(event):
        raise Trouble(_words(event))
    choices = event.get("choices")
    if not isinstance(found, dict) or (choices is not None and not _is_list(choices)):
        raise Trouble(f"an event that is no part of an answer: {data[:60]!r}")
    if whole and not choices:
        raise Trouble(f"an answer without choices: {data[:60]!r}")
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
    """A text, or the texts of a list of parts; parts of other kinds are left out."""
    if content is None or isinstance(content, str):
        return content or ""
    if not _is_list(content):
        raise Trouble(f"a text that is none: {content!r:.60}")
    texts: list[str] = []
    for part in items(content):
        text = part if isinstance(part, str) else fields(part).get("text")
        if isinstance(text, str):
            texts.append(text)
        elif not isinstance(part, dict):
            raise Trouble(f"a text that is none: {content!r:.60}")
    return "".join(texts)


def _logprobs(found: Mapping[str, object]) -> list[Logprob]:
    """Both forms: a list of maps, and the older one of three lists."""
    tokens = [fields(one) for one in items(found.get("content"))] or _older(found)
    told: list[Logprob] = []
    for one in tokens:
        top = [_likely(fields(other)) for other in items(one.get("top_logprobs"))]
        likely = _likely(one)
        best = sorted(top[: limits.LOGPROBS], key=lambda other: -other.logprob)
        told.append(Logprob(likely.token, likely.text, likely.logprob, best, likely.bytes))
    return told


def _likely(one: Mapping[str, object]) -> Likely:
    token, logprob = whole_number(one.get("id")), number(one.get("logprob"))
    name = str(one.get("token", "")).encode("utf-8", "replace").decode()
    text, part = spelled(_bytes(one.get("bytes"), name)) if name else ("", list[int]())
    return Likely(
        _NO_TOKEN if token is None else token,
        text[: limits.REMOTE_TOKEN_CHARS],
        _UNLIKELY if logprob is None else logprob,
        part,
    )


def _bytes(value: object, name: str) -> bytes:
    """What a token is, in the forms in which endpoints say that it is part of a character."""
    numbers = [one for one in map(whole_number, items(value)) if one is not None and one < 256]
    if numbers and len(numbers) == len(items(value)) and len(numbers) <= _TOKEN_BYTES:
        return bytes(numbers)
    if _ESCAPED.fullmatch(name):  # as OpenAI's completions say it
        return bytes.fromhex(name.removeprefix("bytes:").replace("\\x", ""))
    return name.encode()


def _older(found: Mapping[str, object]) -> list[Mapping[str, object]]:
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
