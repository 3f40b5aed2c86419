"""Reads and checks the header of a GGUF file before llama.cpp loads the file.

Returns the facts of the model and the size of a KV cell. Refused are files that violate the format,
and every header that is known to abort llama.cpp (an alignment under 32, no blocks, no tokenizer,
inconsistent expert counts, an unknown rope scaling, an epsilon that is not a number ...). This
module must not import llama_cpp.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from llmasos.kernel.driver import ImageFacts

from . import quantisation
from .gguf_file import STRING, TYPE_NAMES, GgufArray, Scalar, Source, Tensor, Value, load

_BLOCKS_MAX, _EXPERTS_MAX, _HEADS_MAX = 512, 512, 65_536  # limits of llama.cpp
_ALIGNMENT = 32  # the CPU backend asserts it of a tensor's address
# Tensor type: weights in a block, bytes of a block (ggml_blck_size, ggml_type_size).
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 36), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18), 42: (64, 18),
}  # fmt: skip
_NOT_WEIGHTS = frozenset({9, 15, 24, 25, 26, 27, 28})  # no matrix kernel supports these types
_FLOATS = frozenset({0, 1, 30})
_SPDX = {
    "apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-2-clause": "BSD-2-Clause", "gpl-3.0": "GPL-3.0",
    "bsd-3-clause": "BSD-3-Clause", "cc0-1.0": "CC0-1.0", "cc-by-4.0": "CC-BY-4.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0", "cc-by-nc-4.0": "CC-BY-NC-4.0", "unlicense": "Unlicense",
    "cc-by-nc-sa-4.0": "CC-BY-NC-SA-4.0",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Header:
    """The parts of a header that are used."""

    facts: ImageFacts
    cell_bytes: int  # of the KV cache for one token, as f16
    cell_vectors: int  # keys and values of that token, one for each head and layer
    blocks: int


def probe(path: Path) -> ImageFacts:
    """The facts of a model file. EINVAL with the defect and its byte offset."""
    return read(path).facts


def read(path: Path) -> Header:
    """The header of a model file. EINVAL with the defect and its byte offset."""
    source, keys, tensors = load(path)
    _Checks(source, keys).run()
    _check_tensors(source, keys, tensors)
    return Header(_facts(source, keys), *_cell(keys), _blocks(keys))


class _Checks:
    """Checks the keys that llama.cpp does not check, or checks with an assert."""

    __slots__ = ("_arch", "_keys", "_source")

    def __init__(self, source: Source, keys: dict[str, Value]) -> None:
        self._source = source
        self._keys = keys
        self._arch = ""

    def run(self) -> None:
        self._arch = self._text("general.architecture")
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", self._arch):
            self._source.refuse(f"general.architecture is {self._arch[:80]!r}")
        kind = self._text("general.type", "model")
        if kind != "model":
            self._source.refuse(f"general.type is {kind!r}, not a model")
        if (parts := self._number("split.count", range(65_536), default=0)) > 1:
            self._source.refuse(
                f"it is one of {parts} parts; merge them with llama-gguf-split --merge"
            )
        self._shape()
        self._experts()
        self._rope()
        self._tokenizer()
        for name, entry in self._keys.items():
            if isinstance(entry.value, float) and not math.isfinite(entry.value):
                self._source.refuse(f"{name} is {entry.value}", entry.at)

    def _text(self, name: str, default: str | None = None) -> str:
        entry = self._keys.get(name)
        if entry is None:
            if default is None:
                self._source.refuse(f"the key {name} is missing")
            return default
        if not isinstance(entry.value, str):
            found = TYPE_NAMES[entry.kind]
            self._source.refuse(f"{name} has type {found}, not string", entry.at)
        return entry.value

    def _number(self, name: str, allowed: range, default: int | None = None) -> int:
        entry = self._keys.get(name)
        if entry is None:
            if default is None:
                self._source.refuse(f"the key {name} is missing")
            return default
        if not isinstance(entry.value, int):
            found = TYPE_NAMES[entry.kind]
            self._source.refuse(f"{name} has type {found}, not an integer", entry.at)
        if entry.value not in allowed:
            limit = allowed.stop - 1
            message = f"{name} is {entry.value}, not {allowed.start} to {limit}"
            self._source.refuse(message, entry.at)
        return entry.value

    def _numbers(self, name: str, allowed: range, *, required: bool) -> None:
        """Check a key with one number, or with one for each block."""
        entry = self._keys.get(name)
        if entry is None or not isinstance(entry.value, GgufArray):
            self._number(name, allowed, None if required else allowed.start)
            return
        array = entry.value
        if not array.numbers or any(int(n) not in range(allowed.stop) for n in array.numbers):
            limit = allowed.stop - 1
            self._source.refuse(f"{name} contains a number that is not 0 to {limit}", entry.at)

    def _shape(self) -> None:
        arch = self._arch
        self._number(f"{arch}.block_count", range(1, _BLOCKS_MAX + 1))
        self._number(f"{arch}.context_length", range(1, 2**31))
        self._number(f"{arch}.embedding_length", range(1, 2**24))
        heads = range(1, _HEADS_MAX + 1)
        self._numbers(f"{arch}.attention.head_count", heads, required=False)
        self._numbers(f"{arch}.attention.head_count_kv", heads, required=False)
        for part in ("key_length", "value_length"):
            self._number(f"{arch}.attention.{part}", range(1, 2**20), default=1)
        for part in ("layer_norm_epsilon", "layer_norm_rms_epsilon"):
            entry = self._keys.get(f"{arch}.attention.{part}")
            if entry and not (isinstance(entry.value, float) and 0 <= entry.value < 1):
                self._source.refuse(f"{arch}.attention.{part} is {entry.value}", entry.at)

    def _experts(self) -> None:
        name = f"{self._arch}.expert_count"
        experts = self._number(name, range(_EXPERTS_MAX + 1), default=0)
        used = range(1, experts + 1) if experts else range(1)
        self._number(f"{self._arch}.expert_used_count", used, None if experts else 0)

    def _rope(self) -> None:
        name = f"{self._arch}.rope.scaling.type"
        kind = self._text(name, "none")
        if kind not in ("none", "linear", "yarn", "longrope"):
            self._source.refuse(f"{name} is {kind[:80]!r}", self._keys[name].at)

    def _tokenizer(self) -> None:
        model = self._text("tokenizer.ggml.model")
        if model in ("none", "no_vocab", ""):
            self._source.refuse(f"it has no tokenizer (tokenizer.ggml.model is {model!r})")
        tokens = self._array("tokenizer.ggml.tokens", frozenset({STRING}))
        if tokens is None or not tokens.count:
            self._source.refuse("it has no tokens (tokenizer.ggml.tokens)")
        self._array("tokenizer.ggml.merges", frozenset({STRING}))
        for name, kind in (("token_type", 5), ("scores", 6)):
            array = self._array(f"tokenizer.ggml.{name}", frozenset({kind}))
            if array is not None and array.count != tokens.count:
                message = f"the tokenizer has {array.count} of {name} for {tokens.count} tokens"
                self._source.refuse(message)
        for name in ("bos", "eos", "eot", "eom", "unknown", "padding", "separator", "seperator"):
            self._number(f"tokenizer.ggml.{name}_token_id", range(tokens.count), default=0)
        self._text("tokenizer.chat_template", "")
        if model == "llama":
            self._byte_tokens(tokens)

    def _array(self, name: str, kinds: frozenset[int]) -> GgufArray | None:
        entry = self._keys.get(name)
        if entry is None:
            return None
        if not isinstance(entry.value, GgufArray) or entry.value.kind not in kinds:
            wanted = "/".join(TYPE_NAMES[kind] for kind in sorted(kinds))
            self._source.refuse(f"{name} is not an array of {wanted}", entry.at)
        return entry.value

    def _byte_tokens(self, tokens: GgufArray) -> None:
        """Check that all 256 exist: without one, llama.cpp aborts at an unknown character."""
        raw = bytes(self._source.buffer[slice(*tokens.raw)])
        missing = [b for b in range(256) if b"<0x%02X>" % b not in raw]
        if missing:
            first = f"<0x{missing[0]:02X}> first"
            message = f"its tokenizer lacks {len(missing)} byte tokens, {first}"
            self._source.refuse(message, tokens.raw[0])


def _check_tensors(source: Source, keys: dict[str, Value], tensors: list[Tensor]) -> None:
    alignment = _alignment(source, keys)
    start = -(-source.at // alignment) * alignment
    room = source.size - start
    names: set[str] = set()
    expected = 0
    for tensor in tensors:
        if not tensor.name or tensor.name in names:
            source.refuse(f"the tensor name {tensor.name!r} is empty or used twice", tensor.at)
        names.add(tensor.name)
        size = _tensor_bytes(source, tensor)
        if tensor.data_offset != expected:
            message = f"tensor {tensor.name} has offset {tensor.data_offset}, not {expected}"
            source.refuse(message, tensor.at)
        if tensor.data_offset + size > room:
            message = (
                f"tensor {tensor.name} ends at {tensor.data_offset + size}, the data at {room}"
            )
            source.refuse(f"{message}: the file is truncated", tensor.at)
        expected = -(-(tensor.data_offset + size) // alignment) * alignment


def _alignment(source: Source, keys: dict[str, Value]) -> int:
    entry = keys.get("general.alignment")
    if entry is None:
        return _ALIGNMENT
    value = entry.value
    if entry.kind != 4 or not isinstance(value, int) or value & (value - 1):
        source.refuse(f"general.alignment is {value}, not a u32 power of two", entry.at)
    if not _ALIGNMENT <= value <= 65_536:
        source.refuse(f"general.alignment is {value}, not {_ALIGNMENT} to 65536", entry.at)
    return value


def _tensor_bytes(source: Source, tensor: Tensor) -> int:
    if tensor.kind not in _BLOCKS:
        source.refuse(f"tensor {tensor.name} has unknown type {tensor.kind}", tensor.at)
    if tensor.name.endswith(".weight") and tensor.kind in _NOT_WEIGHTS:
        source.refuse(
            f"tensor {tensor.name} has type {tensor.kind}, which is not a weight type", tensor.at
        )
    if tensor.name.endswith("norm.weight") and tensor.kind not in _FLOATS:
        source.refuse(f"tensor {tensor.name} is quantised (type {tensor.kind})", tensor.at)
    weights, size = _BLOCKS[tensor.kind]
    if tensor.dims[0] % weights or 0 in tensor.dims:
        shape = "x".join(str(dim) for dim in tensor.dims)
        message = f"tensor {tensor.name} has shape {shape}, not whole blocks of {weights}"
        source.refuse(message, tensor.at)
    return math.prod(tensor.dims) // weights * size


def _facts(source: Source, keys: dict[str, Value]) -> ImageFacts:
    arch = str(keys["general.architecture"].value)
    context = keys[f"{arch}.context_length"].value
    entry = keys.get("general.license")
    kind = keys.get("general.file_type")
    return ImageFacts(
        architecture=arch,
        licence=_licence(entry.value if entry else ""),
        context=context if isinstance(context, int) else 0,
        bytes=source.size,
        quantisation=quantisation.name(kind.value) if kind else "",
    )


def _licence(value: Scalar | GgufArray) -> str:
    if not isinstance(value, str) or not value.strip():
        return "NOASSERTION"
    known = _SPDX.get(value.strip().lower())
    return known or "LicenseRef-" + re.sub(r"[^A-Za-z0-9.-]+", "-", value.strip())[:64]


def _blocks(keys: dict[str, Value]) -> int:
    value = keys[f"{keys['general.architecture'].value}.block_count"].value
    return value if isinstance(value, int) else 0


def _cell(keys: dict[str, Value]) -> tuple[int, int]:
    """The bytes of a token in the KV cache, and its vectors."""
    arch = str(keys["general.architecture"].value)

    def number(name: str, default: int) -> int:
        entry = keys.get(f"{arch}.{name}")
        if entry is None:
            return default
        if isinstance(entry.value, GgufArray):
            return int(max(entry.value.numbers, default=default))
        return entry.value if isinstance(entry.value, int) else default

    heads = number("attention.head_count", 1) or 1
    width = number("embedding_length", 1) // heads
    row = number("attention.key_length", width) + number("attention.value_length", width)
    pairs = number("block_count", 1) * number("attention.head_count_kv", heads)
    return pairs * row * 2, pairs * 2
