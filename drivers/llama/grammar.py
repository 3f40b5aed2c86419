"""Grammars and JSON schemas on a model's vocabulary: where an answer stands in one.

A text is compiled once (drivers/grammar) and kept; each answer gets a matcher of its own.
"""

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from llmasos.drivers.grammar import compiler
from llmasos.kernel import limits
from llmasos.kernel.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.values import Sampling

from .cpp import Vocab


class Matcher:
    """Where one answer stands in its grammar. One thread uses it at a time."""

    __slots__ = ("_ends", "_matcher", "_size")

    def __init__(self, matcher: compiler.LLMatcher, vocab: Vocab) -> None:
        self._matcher = matcher
        self._size, self._ends = vocab.size, vocab.ends

    def allows(self, token: int) -> bool:
        """Cheap: whether this token may come next. An end may when the grammar is satisfied."""
        if token in self._ends:
            return self.may_end
        return 0 <= token < self._size and self._matcher.validate_tokens([token]) == 1

    def mask(self) -> NDArray[np.bool_]:
        """Every token that may come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, count=self._size, bitorder="little").astype(np.bool_)

    def take(self, token: int) -> None:
        """The next token; not an end. DeviceFault when it is not allowed."""
        if not 0 <= token < self._size or not self._matcher.consume_token(token):
            self._check()
            raise DeviceFault(f"token {token} is not in the grammar")

    @property
    def may_end(self) -> bool:
        return self._matcher.is_accepting()

    @property
    def finished(self) -> bool:
        """Nothing but an end may come."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise DeviceFault(f"the grammar cannot go on: {compiler.complaint(self._matcher)}")


class Grammars:
    """The compiled grammars of one engine. Any thread may ask."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._tokenizer: compiler.LLTokenizer | None = None
        self._known: OrderedDict[tuple[str, str], compiler.LLMatcher] = OrderedDict()
        self._lock = threading.Lock()  # of `_known`
        self._compiling = threading.Lock()  # one at a time

    def matcher(self, sampling: Sampling) -> Matcher | None:
        """None: the answer is free. EINVAL with the place of what is wrong."""
        if sampling.grammar is not None and sampling.schema is not None:
            raise SyscallError(Errno.EINVAL, "a grammar and a schema", "give one of the two")
        if sampling.grammar is not None:
            key = "grammar", sampling.grammar
        elif sampling.schema is not None:
            key = "schema", sampling.schema
        else:
            return None
        compiled = self._find(key)
        if compiled is None:
            with self._compiling:
                compiled = self._find(key) or self._compile(key)
        return Matcher(compiled.deep_copy(), self._vocab)

    def _find(self, key: tuple[str, str]) -> compiler.LLMatcher | None:
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
            return found

    def _compile(self, key: tuple[str, str]) -> compiler.LLMatcher:
        if self._tokenizer is None:
            self._tokenizer = _tokenizer(self._vocab)
        compiled = compiler.compiled(*key, self._tokenizer)
        with self._lock:
            self._known[key] = compiled
            if len(self._known) > limits.GRAMMARS:
                self._known.popitem(last=False)
        return compiled


def _tokenizer(vocab: Vocab) -> compiler.LLTokenizer:
    """ENOTSUP for a model that cannot end an answer."""
    if not vocab.ends:
        why = "this model has no token that ends an answer, so no grammar can"
        raise SyscallError(Errno.ENOTSUP, why)

    def tokenize(text: bytes) -> list[int]:
        tokens: list[int] = vocab.tokenize(text.decode(), special=False).tolist()
        return tokens

    pieces = [vocab.piece(token) for token in range(vocab.size)]
    silent = [token for token, piece in enumerate(pieces) if not piece]
    ends = sorted(vocab.ends)
    words = compiler.Vocabulary(pieces, silent, ends[0], vocab.begin, tokenize)
    return compiler.tokenizer(words, ends)
