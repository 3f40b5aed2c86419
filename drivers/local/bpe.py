"""A BPE vocabulary from a GGUF file alone, by the library `tokenizers`.

It gives the same tokens as llama.cpp's vocabulary for each text (tests compare them), or is not
offered: `load` raises UnknownVocabularyError. Imported in child processes only.
"""

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE

from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError

from . import token_kinds, vocabulary_file
from .pretokenizer import PRE_TOKENIZERS, Division
from .token_kinds import CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from .vocabulary_file import UnknownVocabularyError, VocabularyFile

_CONTROL = CONTROL | UNKNOWN
_NAMED = _CONTROL | USER_DEFINED


class LoadedVocabulary(NamedTuple):
    """What an engine needs of a file besides its weights."""

    vocab: "BpeVocab"
    template: str  # the chat template; empty: the file has none


def load(path: Path) -> LoadedVocabulary:
    """The vocabulary and the template of a file. UnknownVocabularyError with the reason."""
    file = vocabulary_file.read(path)
    if file.model != "gpt2":
        raise UnknownVocabularyError(f"its tokenizer is {file.model!r}, not 'gpt2'")
    division = PRE_TOKENIZERS.get(file.pre)
    if division is None:
        raise UnknownVocabularyError(f"its pre-tokenizer is {file.pre!r}")
    return LoadedVocabulary(BpeVocab(file, division), file.template)


class BpeVocab:
    """Implements local.Vocab. Read-only, so thread-safe."""

    __slots__ = (
        "_always", "_bytes", "_ids", "_kinds", "_special", "_texts", "_tokenizer", "begin",
        "control", "dividing", "end", "ends", "names", "size", "wants_begin",
    )  # fmt: skip

    def __init__(self, file: VocabularyFile, division: Division) -> None:
        self._ids = {text: token for token, text in enumerate(file.tokens)}
        self.size = len(file.tokens)
        if len(self._ids) < self.size:
            raise UnknownVocabularyError("two of its tokens have the same text")
        found = token_kinds.conclude(file, self._ids)
        self.begin, self.end, self.ends = found.begin, found.end, found.ends
        adds_begin = division.adds_begin if file.adds_begin is None else file.adds_begin
        self.wants_begin = adds_begin and self.begin is not None
        named = {token: kind for token, kind in enumerate(found.kinds) if kind & _NAMED}
        self.names = frozenset(file.tokens[token] for token in named)
        self.control = frozenset(file.tokens[token] for token in named if named[token] & _CONTROL)
        self.dividing = frozenset(name for name in self.control if name == name.rstrip())
        _check_names(self.names)
        self._special = _any_of(self.names)
        self._always = _any_of(self.names - self.control)
        self._texts, self._kinds = file.tokens, found.kinds
        self._bytes: list[bytes | None] = [None] * self.size  # of each token, when it was asked for
        self._tokenizer = _tokenizer(file, division, self._ids)

    def tokenize(self, text: str, *, special: bool) -> NDArray[np.int32]:
        """The tokens of a text. Raises EINVAL when it is not valid Unicode.

        `special`: the names of control tokens in the text become those tokens.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise SyscallError(Errno.EINVAL, f"the text is not valid Unicode: {error}") from error
        tokens: list[int] = []
        at = 0
        for found in (self._special if special else self._always).finditer(text):
            tokens += self._words(text[at : found.start()])
            tokens.append(self._ids[found[0]])
            at = found.end()
        tokens += self._words(text[at:])
        return np.array(tokens, np.int32)

    def _words(self, text: str) -> Iterable[int]:
        """The tokens of a text in which no name is looked for."""
        if not text:
            return ()
        # Bytes for which the vocabulary has no token have numbers after it, and are left out.
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [token for token in ids if token < self.size]

    def piece(self, token: int) -> bytes:
        """A token's bytes; empty for a control token."""
        known = self.name(token)
        return b"" if self._kinds[token] & _CONTROL else known

    def text(self, token: int | None) -> str:
        """A token's name, also of a control token; empty when there is no such token."""
        if token is None or not 0 <= token < self.size:
            return ""
        return self.name(token).decode("utf-8", "replace")

    def name(self, token: int) -> bytes:
        """A token's name in bytes: it may be part of a character."""
        if not 0 <= token < self.size:
            raise DeviceFault(
                f"token {token} is out of range: the vocabulary has 0 to {self.size - 1}"
            )
        known = self._bytes[token]
        if known is None:
            known = self._bytes[token] = _decoded(self._texts[token], self._kinds[token])
        return known


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Matches any of these names, the longest one that fits."""
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _check_names(names: Iterable[str]) -> None:
    """Check that no name begins with the end of another one.

    llama.cpp looks for the longest names first. Then this gives the same as one search from left
    to right.
    """
    beginnings: dict[str, set[str]] = {}
    for name in names:
        for size in range(1, len(name)):
            beginnings.setdefault(name[:size], set()).add(name)
    for name in names:
        for size in range(1, len(name)):
            if beginnings.get(name[size:], set()) - {name}:
                raise UnknownVocabularyError(f"the token {name!r} may overlap with another one")


def _alphabet() -> dict[str, int]:
    """The character that stands for each byte in the texts of tokens, and that byte."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    known = {chr(byte): byte for byte in shown}
    return known | {chr(256 + number): byte for number, byte in enumerate(hidden)}


_ALPHABET = _alphabet()


def _decoded(text: str, kind: int) -> bytes:
    """The bytes that a token stands for."""
    if kind & _NAMED:
        return text.encode()
    if not kind & NORMAL:
        return b""
    with contextlib.suppress(KeyError):
        return bytes([_ALPHABET[character] for character in text])
    return b"".join(_decoded_character(character, text) for character in text)


def _decoded_character(character: str, text: str) -> bytes:
    """Of a text that has characters which stand for no byte. As llama.cpp does it."""
    if character in _ALPHABET:
        return bytes([_ALPHABET[character]])
    return b"[UNK_BYTE_0x" + character.encode().hex().encode() + text.encode() + b"]"


def _tokenizer(file: VocabularyFile, division: Division, ids: dict[str, int]) -> Tokenizer:
    missing = [character for character in _ALPHABET if character not in ids]
    every = ids | {character: len(ids) + number for number, character in enumerate(missing)}
    model = BPE(every, _merges(file.merges, every), ignore_merges=division.whole_words)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = division.build()
    return tokenizer


def _merges(lines: Iterable[str], ids: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs to merge, the first one first."""
    merges: dict[tuple[str, str], None] = {}
    for line in lines:
        space = line.find(" ", 1)
        left, right = line[:space], line[space + 1 :]
        if space < 0 or left not in ids or right not in ids:
            continue  # it cannot be applied
        if left + right not in ids:
            raise UnknownVocabularyError(f"the merge {line!r} makes no token")
        merges.setdefault((left, right))
    return list(merges)
