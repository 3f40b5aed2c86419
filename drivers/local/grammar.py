"""Grammars and JSON schemas applied to a model's vocabulary: which tokens may come next.

Each grammar is compiled once for a domain (drivers/grammar) and cached; each answer has its own
matcher. The domain with most grammars loses one when the cache is full, so that no user evicts the
few grammars of another: the engine would compile them again while all calls wait.
"""

import threading
from collections import Counter, OrderedDict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmasos.drivers.grammar import compiler
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.abi.values import Sampling

from .context import Vocab


class Matcher:
    """The state of one answer in its grammar. Not thread-safe."""

    __slots__ = ("_ends", "_matcher", "_size")

    def __init__(self, matcher: compiler.LLMatcher, vocab: Vocab) -> None:
        self._matcher = matcher
        self._size, self._ends = vocab.size, vocab.ends

    def allows(self, token: int) -> bool:
        """Whether this token may come next; an end may if the answer is complete. Cheap."""
        if token in self._ends:
            return self.may_end
        return 0 <= token < self._size and self._matcher.validate_tokens([token]) == 1

    def mask(self) -> NDArray[np.bool_]:
        """The tokens that may come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, count=self._size, bitorder="little").astype(np.bool_)

    def take(self, token: int) -> None:
        """Add the next token, which is not an end. DeviceFault when it is not allowed."""
        if not 0 <= token < self._size or not self._matcher.consume_token(token):
            self._check()
            raise DeviceFault(f"the grammar does not allow token {token} here")

    @property
    def may_end(self) -> bool:
        """Whether the answer is complete."""
        return self._matcher.is_accepting()

    @property
    def finished(self) -> bool:
        """Whether only an end may come next."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise DeviceFault(f"the grammar failed: {compiler.error_text(self._matcher)}")


class GrammarKey(NamedTuple):
    """A compiled grammar in the cache."""

    domain: str
    kind: str  # grammar or schema
    text: str


class Grammars:
    """The compiled grammars of one engine. Thread-safe."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._tokenizer: compiler.LLTokenizer | None = None
        self._cache: OrderedDict[GrammarKey, compiler.LLMatcher] = OrderedDict()
        self._lock = threading.Lock()  # guards `_cache`
        self._compiling = threading.Lock()  # one at a time

    def matcher(self, sampling: Sampling, domain: str = "") -> Matcher | None:
        """A matcher for an answer; None when it has no constraint. EINVAL with the position.

        `domain`: of the call, which uses compiled grammars of its domain only.
        """
        if sampling.grammar is not None and sampling.schema is not None:
            raise SyscallError(
                Errno.EINVAL, "the request has a grammar and a schema", "give one of the two"
            )
        if sampling.grammar is not None:
            key = GrammarKey(domain, "grammar", sampling.grammar)
        elif sampling.schema is not None:
            key = GrammarKey(domain, "schema", sampling.schema)
        else:
            return None
        compiled = self._find(key)
        if compiled is None:
            with self._compiling:
                compiled = self._find(key) or self._compile(key)
        return Matcher(compiled.deep_copy(), self._vocab)

    def _find(self, key: GrammarKey) -> compiler.LLMatcher | None:
        with self._lock:
            found = self._cache.get(key)
            if found is not None:
                self._cache.move_to_end(key)
            return found

    def _compile(self, key: GrammarKey) -> compiler.LLMatcher:
        if self._tokenizer is None:
            self._tokenizer = _tokenizer(self._vocab)
        compiled = compiler.compiled(key.kind, key.text, self._tokenizer)
        with self._lock:
            self._cache[key] = compiled
            if len(self._cache) > limits.GRAMMARS:
                [(most, _)] = Counter(one.domain for one in self._cache).most_common(1)
                del self._cache[next(one for one in self._cache if one.domain == most)]
        return compiled


def _tokenizer(vocab: Vocab) -> compiler.LLTokenizer:
    """ENOTSUP for a model that cannot end an answer."""
    if not vocab.ends:
        message = "a grammar needs a token that ends the answer, and this model has none"
        raise SyscallError(Errno.ENOTSUP, message)

    def tokenize(text: bytes) -> list[int]:
        tokens: list[int] = vocab.tokenize(text.decode(), special=False).tolist()
        return tokens

    pieces = [vocab.piece(token) for token in range(vocab.size)]
    special = [token for token, piece in enumerate(pieces) if not piece]
    ends = sorted(vocab.ends)
    vocabulary = compiler.Vocabulary(pieces, special, ends[0], vocab.begin, tokenize)
    return compiler.tokenizer(vocabulary, ends)
