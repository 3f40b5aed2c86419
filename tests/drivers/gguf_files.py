"""Small GGUF files, right and wrong. A file is its keys and tensors, written as it is told."""

import struct
from dataclasses import dataclass, field
from pathlib import Path

from llmasos.drivers.local.gguf_file import Source, parse

FORMS = {0: "B", 1: "b", 2: "H", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 12: "d"}
U8, U16, U32, I32, F32, BOOL, STRING, ARRAY, U64 = 0, 2, 4, 5, 6, 7, 8, 9, 10
Q4_0, IQ4_NL, FILE_IQ4_NL = 2, 20, 25  # types of tensors, and of a file

Value = int | float | bytes | tuple[int, list[int] | list[float] | list[bytes]]


def key(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def value(kind: int, data: Value) -> bytes:
    if isinstance(data, bytes):
        return key(data)
    if isinstance(data, tuple):
        items = b"".join(value(data[0], item) for item in data[1])
        return struct.pack("<IQ", data[0], len(data[1])) + items
    return struct.pack("<" + FORMS[kind], data)


@dataclass
class Tensor:
    name: bytes
    dims: list[int]
    kind: int
    offset: int


def good_keys() -> dict[bytes, tuple[int, Value]]:
    tokens: list[bytes] = [b"a", b"b", b"ab"]
    return {
        b"general.architecture": (STRING, b"llama"),
        b"general.license": (STRING, b"mit"),
        b"llama.block_count": (U32, 1),
        b"llama.context_length": (U32, 512),
        b"llama.embedding_length": (U32, 64),
        b"llama.attention.head_count": (U32, 4),
        b"llama.attention.head_count_kv": (U32, 2),
        b"llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        b"tokenizer.ggml.model": (STRING, b"gpt2"),
        b"tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)),
        b"tokenizer.ggml.token_type": (ARRAY, (I32, [1, 1, 1])),
        b"tokenizer.ggml.merges": (ARRAY, (STRING, [b"a b"])),
        b"tokenizer.ggml.bos_token_id": (U32, 1),
    }


@dataclass
class File:
    """Everything of a file that a test may change."""

    keys: dict[bytes, tuple[int, Value]] = field(default_factory=good_keys)
    tensors: list[Tensor] = field(
        default_factory=lambda: [
            Tensor(b"token_embd.weight", [64, 3], 3, 0),
            Tensor(b"output_norm.weight", [64], 0, 128),
        ]
    )
    magic: bytes = b"GGUF"
    version: int = 3
    key_count: int | None = None
    tensor_count: int | None = None
    extra: bytes = b""  # after the keys
    data_bytes: int = 384

    def bytes(self) -> bytes:
        tensor_count = len(self.tensors) if self.tensor_count is None else self.tensor_count
        key_count = len(self.keys) if self.key_count is None else self.key_count
        out = self.magic + struct.pack("<IQQ", self.version, tensor_count, key_count)
        for name, (kind, data) in self.keys.items():
            out += key(name) + struct.pack("<I", kind) + value(kind, data)
        out += self.extra
        for tensor in self.tensors:
            out += key(tensor.name) + struct.pack("<I", len(tensor.dims))
            out += b"".join(struct.pack("<Q", dim) for dim in tensor.dims)
            out += struct.pack("<IQ", tensor.kind, tensor.offset)
        return out + bytes(-len(out) % 32) + bytes(self.data_bytes)

    def write(self, folder: Path) -> Path:
        path = folder / "model.gguf"
        path.write_bytes(self.bytes())
        return path


def as_iq4_nl(path: Path) -> Path:
    """Say of the tensors of a file that has Q4_0 that they have IQ4_NL, in the same blocks.

    It is a file that llama.cpp computes and OpenVINO's frontend cannot convert. To make one from
    the weights takes ten times as long.
    """
    with path.open("rb") as file:
        keys, tensors = parse(Source(path, file))
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, keys["general.file_type"].at + 4, FILE_IQ4_NL)
    for one in tensors:
        if one.kind == Q4_0:
            place = one.at + 8 + len(one.name.encode()) + 4 + 8 * len(one.dims)
            struct.pack_into("<I", data, place, IQ4_NL)
    path.write_bytes(data)
    return path
