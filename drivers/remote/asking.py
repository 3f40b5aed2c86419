"""What an endpoint is asked: a call in the fields of its API.

The `openai` dialect sends what OpenAI takes and nothing else, since some servers refuse what they
do not know. `llama` adds the fields of llama.cpp's server.
"""

import json
from dataclasses import fields
from typing import cast

from llmasos.kernel import limits
from llmasos.kernel.driver import Prompt
from llmasos.kernel.errors import Errno, SyscallError
from llmasos.kernel.values import Message, Sampling, unpack_bias

from .options import LLAMA, Settings
from .structure import closed

_STOPS = 4  # OpenAI takes so many; the others are looked for here
_ASCII_CHARS = 4  # a token, in the usual text
_MESSAGE_TOKENS = 4  # what a template puts around a message
# What only llama.cpp can do, and the values that ask for nothing: our defaults, and off.
_LLAMA_ONLY = {
    "top_k": (limits.TOP_K, 0),
    "min_p": (limits.MIN_P, 0.0),
    "repeat_penalty": (1.0, limits.REPEAT_PENALTY),
    "ignore_eos": (False,),
    "grammar": (None,),
}


def estimate(text: str) -> int:
    """Tokens of a text, about: one for four ASCII characters, one for each other."""
    plain = sum(char < "\x80" for char in text)
    return -(-plain // _ASCII_CHARS) + len(text) - plain


def estimate_prompt(messages: list[Message], *, raw: bool) -> int:
    """Tokens of a prompt, about."""
    around = 0 if raw else _MESSAGE_TOKENS
    return sum(estimate(message.content) + around for message in messages)


def check(settings: Settings, sampling: Sampling) -> None:
    """ENOTSUP for what this dialect has no field for."""
    for name, free in _LLAMA_ONLY.items():
        value = getattr(sampling, name)
        if settings.dialect != LLAMA and value not in free:
            shown = f" {value}" if isinstance(value, (int, float)) else ""
            raise SyscallError(
                Errno.ENOTSUP,
                f"{name}{shown}: the OpenAI API has no such field",
                "leave it out; a llama.cpp server takes it: `--set dialect=llama`",
            )


def schema_of(text: str) -> dict[str, object]:
    """The schema that is sent. EINVAL when it is none."""
    try:
        schema = closed(json.loads(text.removeprefix("\ufeff")))
    except (ValueError, RecursionError) as error:
        raise SyscallError(Errno.EINVAL, f"the schema is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise SyscallError(Errno.EINVAL, "the schema is not a JSON object")
    return cast("dict[str, object]", schema)


def request(
    settings: Settings, prompt: Prompt, sampling: Sampling, most: int
) -> tuple[str, dict[str, object]]:
    """The url and the body of a call that may answer with `most` tokens."""
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
        # It saves tokens; we look for stops all the same. llama.cpp's server drops the text that
        # it held back for a stop string when the answer ends before it.
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
    """Fields that stay out while they ask for nothing."""
    usual = {field.name: field.default for field in fields(Sampling)}
    body: dict[str, object] = {
        name: getattr(sampling, name)
        for name in ("frequency_penalty", "presence_penalty")
        if getattr(sampling, name) != usual[name]
    }
    if sampling.bias:
        tokens, values = unpack_bias(sampling.bias)
        body["logit_bias"] = dict(zip(map(str, tokens), values, strict=True))
    return body


def _chat(settings: Settings, prompt: Prompt, sampling: Sampling) -> dict[str, object]:
    body: dict[str, object] = {
        "messages": [{"role": str(one.role), "content": one.content} for one in prompt.messages]
    }
    if sampling.logprobs is not None:
        # llama.cpp tells none at all when it is asked for no alternatives.
        least = 1 if settings.dialect == LLAMA else 0
        body |= {"logprobs": True, "top_logprobs": max(least, sampling.logprobs)}
    if sampling.schema is not None:
        named = {"name": "answer", "schema": schema_of(sampling.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    return body


def _raw(settings: Settings, prompt: Prompt, sampling: Sampling) -> dict[str, object]:
    body: dict[str, object] = {"prompt": "".join(one.content for one in prompt.messages)}
    if sampling.logprobs is not None:
        body["logprobs"] = max(1, sampling.logprobs)
    if sampling.schema is not None:
        if settings.dialect != LLAMA:
            words = "a schema for a raw prompt: the OpenAI API has no such field"
            raise SyscallError(Errno.ENOTSUP, words, "ask with messages, without raw")
        body["json_schema"] = schema_of(sampling.schema)
    return body
