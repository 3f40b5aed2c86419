"""Builds requests: a call in the fields of the endpoint's API.

The `openai` dialect sends only the fields of OpenAI's API, because some servers reject unknown
fields. `llama` adds the fields of llama.cpp's server.
"""

import json
from dataclasses import fields
from typing import cast

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Message, Sampling, unpack_bias
from llmasos.kernel.driver import Prompt

from .options import LLAMA, RemoteSettings
from .structure import closed

_STOPS = 4  # OpenAI's maximum; call.py looks for the others
_ASCII_CHARS = 4  # per token, in typical text
_MESSAGE_TOKENS = 4  # that a chat template adds per message
# Options that only llama.cpp supports, and their neutral values: our defaults, and off.
_LLAMA_ONLY = {
    "top_k": (limits.TOP_K, 0),
    "min_p": (limits.MIN_P, 0.0),
    "repeat_penalty": (1.0, limits.REPEAT_PENALTY),
    "ignore_eos": (False,),
    "grammar": (None,),
}


def estimate(text: str) -> int:
    """Estimated tokens of a text: one per four ASCII characters, one per other character."""
    ascii_chars = sum(char < "\x80" for char in text)
    return -(-ascii_chars // _ASCII_CHARS) + len(text) - ascii_chars


def estimate_prompt(messages: list[Message], *, raw: bool) -> int:
    """Estimated tokens of a prompt."""
    around = 0 if raw else _MESSAGE_TOKENS
    return sum(estimate(message.content) + around for message in messages)


def check(settings: RemoteSettings, sampling: Sampling) -> None:
    """ENOTSUP for an option that this dialect has no field for."""
    if sampling.lookup:
        message = "lookup: neither API has such a field"
        raise SyscallError(Errno.ENOTSUP, message, "leave it out, or configure it at the server")
    for name, neutral in _LLAMA_ONLY.items():
        value = getattr(sampling, name)
        if settings.dialect != LLAMA and value not in neutral:
            shown = f" {value}" if isinstance(value, (int, float)) else ""
            raise SyscallError(
                Errno.ENOTSUP,
                f"{name}{shown}: the OpenAI API has no such field",
                "leave it out; llama.cpp servers support it: `--set dialect=llama`",
            )


def schema_of(text: str) -> dict[str, object]:
    """The schema to send. EINVAL when the text is not a JSON object."""
    try:
        schema = closed(json.loads(text.removeprefix("\ufeff")))
    except (ValueError, RecursionError) as error:
        raise SyscallError(Errno.EINVAL, f"the schema is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise SyscallError(Errno.EINVAL, "the schema is not a JSON object")
    return cast("dict[str, object]", schema)


def request(
    settings: RemoteSettings, prompt: Prompt, sampling: Sampling, most: int
) -> tuple[str, dict[str, object]]:
    """The url and the body of a call; `most` is the maximum of tokens in its answer."""
    body: dict[str, object] = {
        "model": settings.model,
        "stream": True,
        "stream_options": {"include_usage": True},
        settings.limit: most,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        **_changed(sampling),
    }
    if sampling.stop and settings.dialect != LLAMA:
        # Saves tokens; call.py looks for stop strings in any case. Not for llama.cpp: its server
        # drops the text that it withholds for a partial stop string when the answer ends there.
        body["stop"] = list(sampling.stop[:_STOPS])
    if settings.dialect == LLAMA:
        body |= {name: getattr(sampling, name) for name in _LLAMA_ONLY}
        body |= {"cache_prompt": True, "timings_per_token": True}
        if sampling.grammar is None:
            del body["grammar"]
    if prompt.raw:
        return f"{settings.url}/completions", body | _raw(settings, prompt, sampling)
    return f"{settings.url}/chat/completions", body | _chat(settings, prompt, sampling)


def _changed(sampling: Sampling) -> dict[str, object]:
    """Fields that are sent only when they differ from their defaults."""
    defaults = {field.name: field.default for field in fields(Sampling)}
    body: dict[str, object] = {
        name: getattr(sampling, name)
        for name in ("frequency_penalty", "presence_penalty")
        if getattr(sampling, name) != defaults[name]
    }
    if sampling.bias:
        tokens, values = unpack_bias(sampling.bias)
        body["logit_bias"] = dict(zip(map(str, tokens), values, strict=True))
    return body


def _chat(settings: RemoteSettings, prompt: Prompt, sampling: Sampling) -> dict[str, object]:
    body: dict[str, object] = {
        "messages": [{"role": str(one.role), "content": one.content} for one in prompt.messages]
    }
    if sampling.logprobs is not None:
        # llama.cpp reports no logprobs when 0 alternatives are requested.
        least = 1 if settings.dialect == LLAMA else 0
        body |= {"logprobs": True, "top_logprobs": max(least, sampling.logprobs)}
    if sampling.schema is not None:
        named = {"name": "answer", "schema": schema_of(sampling.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    return body


def _raw(settings: RemoteSettings, prompt: Prompt, sampling: Sampling) -> dict[str, object]:
    body: dict[str, object] = {"prompt": "".join(one.content for one in prompt.messages)}
    if sampling.logprobs is not None:
        body["logprobs"] = max(1, sampling.logprobs)
    if sampling.schema is not None:
        if settings.dialect != LLAMA:
            message = "a schema for a raw prompt: the OpenAI API has no such field"
            raise SyscallError(Errno.ENOTSUP, message, "give messages, without raw")
        body["json_schema"] = schema_of(sampling.schema)
    return body
