"""Files with a vocabulary and no weights to speak of, which llama.cpp and we both read."""

import functools
import random
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


# --- random texts ---------------------------------------------------------------------------------
_SPACES = (9, 10, 11, 12, 13, 32, 0x85, 0xA0, 0x1680, 0x2003, 0x2028, 0x3000)
SPACES = [chr(point) for point in _SPACES]
_WORDS = """
    the and of hello world naïve Straße café Ünïcödé don't we'll I'M they'Re It'S 'd 'Ll 've def if
    return (x == 0): self.value += 1; // TODO print(f"{a!r}") a->b </div> {"k": [1, 2]} #include
    <stdio.h> === --- ... ?! $100 50% x²+y² ½ 3.14159 1234567890 0x7fff 1e-9 12:30 2026-11-30 Ⅷ
    字符串 漢字かな交じり文 한국어 العربية עברית ไทย हिन्दी Ελληνικά Русский ٣٤٥ १२३ ①② İ ß
    🦊 🇫🇷 👍🏽 ❤️ class ====== ing ingly beginning sand Ġof entity ity
"""
# Combining, invisible, private and unassigned ones, and letters that look like others.
_SINGLE = (
    "e\u0301 n\u0303 o\u0308 \u200b \u200d \ufeff \ufffd \u00ad \0 \x7f \u017f \u212a \ue000 "
    "\U0001f468\u200d\U0001f469 \U0002ebf0 \U000e0041 \u0378 \U0010ffff"
)
WORDS = [*_WORDS.split(), *_SINGLE.split(" ")]
BLOCKS = (
    (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x6FF), (0x900, 0xDFF),
    (0xE00, 0xEFF), (0x2000, 0x206F), (0x2070, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3), (0xE000, 0xFFFF), (0x1F300, 0x1FAFF), (0x10000, 0x10FFFF),
)  # fmt: skip


def text(dice: random.Random, names: Sequence[str]) -> str:
    """Words of many languages, code, numbers, runs of spaces, names of tokens, any characters."""
    return "".join(_part(dice, names) for _ in range(dice.randrange(14)))


def _part(dice: random.Random, names: Sequence[str]) -> str:
    kind = dice.randrange(10)
    if kind < 4:
        return dice.choice((" ", " ", "", "\n")) + dice.choice(WORDS)
    if kind == 4:
        return "".join(dice.choices(SPACES, k=dice.randint(1, 5)))
    if kind == 5:
        return dice.choice((" ", "\n", "\t", "\r\n", "-", "!", "7", "é")) * dice.randint(1, 20)
    if kind == 6 and names:
        name = dice.choice(names)
        cut = dice.randrange(len(name) + 1)
        return dice.choice((name, name, name[:cut], name[cut:]))
    if kind == 7:
        return str(dice.randrange(10 ** dice.randint(1, 12)))
    begin, end = dice.choice(BLOCKS)
    return "".join(chr(dice.randint(begin, end)) for _ in range(dice.randint(1, 6)))
