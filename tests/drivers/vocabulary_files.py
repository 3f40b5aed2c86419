"""Files with a vocabulary and no weights to speak of, which llama.cpp and we both read."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmasos.drivers.local import vocabulary_file
from llmasos.drivers.local.vocabulary_file import VocabularyFile
from tests.drivers import gguf_files
from tests.drivers.default_model import MODEL
from tests.drivers.gguf_files import ARRAY, BOOL, I32, STRING, U32

# Characters that stand for the 256 bytes in texts of tokens.
SHOWN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = [chr(byte) for byte in SHOWN] + [chr(256 + n) for n in range(256 - len(SHOWN))]


@functools.cache
def embedded() -> VocabularyFile:
    """That of the embedded model."""
    return vocabulary_file.read(MODEL)


def write(file: VocabularyFile, folder: Path) -> Path:
    """A GGUF file with this vocabulary."""
    made = gguf_files.File()
    made.keys |= {
        b"general.architecture": (STRING, file.architecture.encode()),
        b"general.name": (STRING, file.name.encode()),
        b"tokenizer.ggml.model": (STRING, file.model.encode()),
        b"tokenizer.ggml.tokens": (ARRAY, (STRING, [text.encode() for text in file.tokens])),
        b"tokenizer.ggml.token_type": (ARRAY, (I32, list(file.types))),
        b"tokenizer.ggml.merges": (ARRAY, (STRING, [line.encode() for line in file.merges])),
    }
    del made.keys[b"tokenizer.ggml.bos_token_id"]
    for name, token in file.ids.items():
        made.keys[f"tokenizer.ggml.{name}_token_id".encode()] = (U32, token)
    if file.pre:
        made.keys[b"tokenizer.ggml.pre"] = (STRING, file.pre.encode())
    if file.adds_begin is not None:
        made.keys[b"tokenizer.ggml.add_bos_token"] = (BOOL, int(file.adds_begin))
    return made.write(folder)


def small(names: Sequence[str], types: Sequence[int], pre: str = "smollm") -> VocabularyFile:
    """The 256 bytes, a few merges, and these names with these types."""
    merges = ["t h", "th e", "Ġ the", "i n", "in g"]
    tokens = [*BYTES, *(merge.replace(" ", "") for merge in merges), *names]
    kinds = [1] * (len(tokens) - len(names)) + list(types)
    return VocabularyFile("llama", "a name", "gpt2", pre, tokens, kinds, merges, {}, None, "")


def with_user_defined(file: VocabularyFile) -> VocabularyFile:
    """Some of its tokens are found in a text before its words are."""
    kinds = list(file.types)
    for text, kind in (("ing", 4), ("class", 4), ("====", 4), ("and", 2), ("Ġof", 4), ("ity", 5)):
        kinds[list(file.tokens).index(text)] = kind
    return replace(file, types=kinds)
