# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""The vocabulary of a model, by llama.cpp. Imported in child processes only."""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError

from .library import lib

_CONTROL = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
_NAMED, _RSTRIP = _CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED, lib.LLAMA_TOKEN_ATTR_RSTRIP


class LlamaVocab:
    """The vocabulary of a model: texts to tokens and back. Read-only in C, so thread-safe.

    `begin` is the BOS token, None if there is none; `wants_begin`: texts start with it (add_bos).
    `end` is the EOS token, `ends` are all tokens that end an answer (EOG). `control` are the names
    of control tokens.
    """

    __slots__ = (
        "_pieces", "_vocab", "begin", "control", "dividing", "ends", "names", "size", "wants_begin",
    )  # fmt: skip

    def __init__(self, vocab: Any) -> None:
        self._vocab = vocab
        self.size: int = lib.llama_vocab_n_tokens(vocab)
        self._pieces: list[bytes | None] = [None] * self.size
        bos: int = lib.llama_vocab_bos(vocab)
        self.begin = bos if 0 <= bos < self.size else None
        self.wants_begin = bool(lib.llama_vocab_get_add_bos(vocab)) and self.begin is not None
        every = range(self.size)
        is_eog = lib.llama_vocab_is_eog
        self.ends = frozenset(token for token in every if is_eog(vocab, token))
        attributes = [lib.llama_vocab_get_attr(vocab, token) for token in every]
        named = {token: self.text(token) for token in every if attributes[token] & _NAMED}
        control = {token: name for token, name in named.items() if attributes[token] & _CONTROL}
        # Names that the tokenizer finds in a text before it tokenizes what is between them.
        self.names = frozenset(filter(None, named.values()))
        self.control = frozenset(filter(None, control.values()))
        # Of control tokens at whose end a text can be divided: they take no space after them.
        self.dividing = frozenset(
            name for token, name in control.items()
            if name and name == name.rstrip() and not attributes[token] & _RSTRIP
        )  # fmt: skip

    def tokenize(self, text: str, *, special: bool) -> NDArray[np.int32]:
        """The tokens of a text. Raises EINVAL when it is not valid Unicode.

        `special`: the names of control tokens in the text become those tokens.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise SyscallError(Errno.EINVAL, f"the text is not valid Unicode: {error}") from error
        tokens = np.empty(len(data) + 2, np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        size = len(tokens)
        count: int = lib.llama_tokenize(self._vocab, data, len(data), pointer, size, False, special)
        if not 0 <= count <= size:
            raise DeviceFault(f"llama_tokenize returned {count} for {len(data)} bytes")
        return tokens[:count]

    def piece(self, token: int) -> bytes:
        """A token's bytes; empty for a control token."""
        if not 0 <= token < self.size:
            raise DeviceFault(
                f"token {token} is out of range: the vocabulary has 0 to {self.size - 1}"
            )
        known = self._pieces[token]
        if known is None:
            known = self._pieces[token] = self._read_piece(token, special=False)
        return known

    def text(self, token: int | None) -> str:
        """A token's name, also of a control token; empty when there is no such token."""
        if token is None or not 0 <= token < self.size:
            return ""
        return self.name(token).decode("utf-8", "replace")

    def name(self, token: int) -> bytes:
        """A token's name in bytes: it may be part of a character."""
        return self._read_piece(token, special=True)

    @property
    def end(self) -> int | None:
        token: int = lib.llama_vocab_eos(self._vocab)
        return token if 0 <= token < self.size else None

    def _read_piece(self, token: int, *, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count: int = lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count
