"""Reads the vocabulary in a GGUF file: tokens, their types, merges, special ids, the template.

The check of a header (gguf.py) skips these arrays; here they are read.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .gguf_file import BOOL, STRING, U32, GgufArray, Source, Value, load

_NORMAL = 1  # type of a token in a file without types
# Name of an id: its keys. A later key counts more.
_IDS = {
    "bos": ("bos",), "eos": ("eos",), "eot": ("eot",), "eom": ("eom",),
    "fim_pre": ("fim_pre", "prefix"), "fim_suf": ("fim_suf", "suffix"),
    "fim_mid": ("fim_mid", "middle"), "fim_pad": ("fim_pad",), "fim_rep": ("fim_rep",),
    "fim_sep": ("fim_sep",),
}  # fmt: skip


class UnknownVocabularyError(Exception):
    """This vocabulary is not one that is proven equal to llama.cpp's."""


@dataclass(frozen=True, slots=True)
class VocabularyFile:
    """A vocabulary as a file describes it."""

    architecture: str
    name: str  # of the model
    model: str  # the kind of tokenizer
    pre: str  # the pre-tokenizer
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    ids: Mapping[str, int]
    adds_begin: bool | None  # None: the file does not say
    template: str


def read(path: Path) -> VocabularyFile:
    """The vocabulary of a file whose header was checked. EINVAL for a damaged file."""
    source, keys, _ = load(path)
    tokens = _strings(source, keys, "tokens")
    return VocabularyFile(
        architecture=_text(keys, "general.architecture"),
        name=_text(keys, "general.name"),
        model=_text(keys, "tokenizer.ggml.model"),
        pre=_text(keys, "tokenizer.ggml.pre"),
        tokens=[token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)],
        types=_types(source, keys, len(tokens)),
        merges=_strings(source, keys, "merges"),
        ids=_ids(keys, len(tokens)),
        adds_begin=_flag(keys, "tokenizer.ggml.add_bos_token"),
        template=_text(keys, "tokenizer.chat_template"),
    )


def _text(keys: Mapping[str, Value], name: str) -> str:
    entry = keys.get(name)
    if entry is None:
        return ""
    if not isinstance(entry.value, str):
        raise UnknownVocabularyError(f"{name} is no string")
    return entry.value


def _flag(keys: Mapping[str, Value], name: str) -> bool | None:
    entry = keys.get(name)
    if entry is None:
        return None
    if entry.kind != BOOL:
        raise UnknownVocabularyError(f"{name} is no bool")
    return bool(entry.value)


def _ids(keys: Mapping[str, Value], size: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, parts in _IDS.items():
        for part in parts:
            key = f"tokenizer.ggml.{part}_token_id"
            entry = keys.get(key)
            if entry is None:
                continue
            if entry.kind != U32 or not isinstance(entry.value, int):
                raise UnknownVocabularyError(f"{key} is no u32")
            if entry.value < size:
                found[name] = entry.value
    return found


def _strings(source: Source, keys: Mapping[str, Value], name: str) -> list[str]:
    entry = keys.get(f"tokenizer.ggml.{name}")
    if entry is None or not isinstance(entry.value, GgufArray) or entry.value.kind != STRING:
        raise UnknownVocabularyError(f"it has no {name}")
    length_of = struct.Struct("<Q").unpack_from
    items: list[str] = []
    at, buffer = entry.value.raw[0], source.buffer
    try:
        for _ in range(entry.value.count):
            begin = at + 8
            at = begin + length_of(buffer, at)[0]
            # C stops at a zero byte.
            items.append(buffer[begin:at].partition(b"\0")[0].decode())
    except UnicodeDecodeError:
        raise UnknownVocabularyError(f"{name}[{len(items)}] is not UTF-8") from None
    return items


def _types(source: Source, keys: Mapping[str, Value], size: int) -> Sequence[int]:
    entry = keys.get("tokenizer.ggml.token_type")
    if entry is None:
        return [_NORMAL] * size
    if not isinstance(entry.value, GgufArray) or entry.value.count != size:
        raise UnknownVocabularyError("it has no type for each token")
    return struct.unpack_from(f"<{size}i", source.buffer, entry.value.raw[0])
