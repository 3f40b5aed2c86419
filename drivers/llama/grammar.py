"""Grammars and JSON schemas through llguidance: the one host of that library.

llama.cpp's own grammars end the process when they are told a token that they forbid, and weigh
every token of the vocabulary each time. This library answers for one token in microseconds, has
limits, and returns its errors; only its recursion has none, so it compiles on a deep stack.
A text is compiled once and kept; each answer gets a matcher of its own.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import llguidance
import numpy as np
from numpy.typing import NDArray

from llmasos.kernel import limits
from llmasos.kernel.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.values import Sampling

from . import gbnf, schema
from .cpp import Vocab

T = TypeVar("T")
_STACK_BYTES = 256 * 1024 * 1024  # address space; a text of GRAMMAR_CHARS needs a fifth of it
_WORDS_CHARS = 300  # of the library's complaint
# A step under a grammar stays within tens of milliseconds, a compiled one within 40 MB.
_LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=200_000,
    step_lexer_fuel=50_000,
    step_max_items=500_000,
    max_lexer_states=20_000,
    verbose_errors=False,  # they hold what the model said
)
# JSON between whose parts a model may put a space or a new line, but not spaces without end.
_SPACE = r"[ ]|\n[ ]{0,16}"


class Matcher:
    """Where one answer stands in its grammar. One thread uses it at a time."""

    __slots__ = ("_ends", "_matcher", "_size")

    def __init__(self, matcher: llguidance.LLMatcher, vocab: Vocab) -> None:
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
            raise DeviceFault(f"the grammar cannot go on: {_complaint(self._matcher)}")


class Grammars:
    """The compiled grammars of one engine. Any thread may ask."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._known: OrderedDict[tuple[str, str], llguidance.LLMatcher] = OrderedDict()
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

    def _find(self, key: tuple[str, str]) -> llguidance.LLMatcher | None:
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
            return found

    def _compile(self, key: tuple[str, str]) -> llguidance.LLMatcher:
        compiled = _deeply(lambda: self._build(*key))
        with self._lock:
            self._known[key] = compiled
            if len(self._known) > limits.GRAMMARS:
                self._known.popitem(last=False)
        return compiled

    def _build(self, kind: str, text: str) -> llguidance.LLMatcher:
        if kind == "schema":
            return self._built_schema(schema.read(text))
        words = ""
        for form in gbnf.to_lark(text):
            matcher, words = self._try(llguidance.LLMatcher.grammar_from_lark(form))
            if matcher is not None:
                return matcher
        raise SyscallError(Errno.EINVAL, f"the grammar is refused: {words}", "make it simpler")

    def _built_schema(self, tree: schema.Schema) -> llguidance.LLMatcher:
        matcher, words = self._try_schema(tree)
        if matcher is None:
            where = schema.place(tree, words, lambda part: self._try_schema(part)[1])
            raise schema.refusal(f"is refused at {where}: {words}", "change that part, or leave it")
        return matcher

    def _try_schema(self, tree: schema.Schema) -> tuple[llguidance.LLMatcher | None, str]:
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                json.dumps(tree), overrides={"whitespace_pattern": _SPACE}
            )
            return self._try(grammar)
        except ValueError as error:
            return None, str(error)[:_WORDS_CHARS]

    def _try(self, grammar: str) -> tuple[llguidance.LLMatcher | None, str]:
        """A matcher, or what is wrong with the grammar."""
        if self._tokenizer is None:
            self._tokenizer = _tokenizer(self._vocab)
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()  # what cannot begin is found here
        if not matcher.is_error():
            return matcher, ""
        return None, _complaint(matcher)


def _complaint(matcher: llguidance.LLMatcher) -> str:
    words = matcher.get_error().strip().partition("\n")[0][:_WORDS_CHARS]
    return "nothing can match it" if words.startswith("NoExtension") else words


@dataclass(frozen=True, slots=True)
class _Words:
    """A vocabulary as the library wants to see one."""

    vocab: Vocab
    eos_token_id: int
    bos_token_id: int | None
    tokens: list[bytes]
    special_token_ids: list[int]

    def __call__(self, text: bytes) -> list[int]:
        tokens: list[int] = self.vocab.tokenize(text.decode(), special=False).tolist()
        return tokens


def _tokenizer(vocab: Vocab) -> llguidance.LLTokenizer:
    """Takes a tenth of a second. ENOTSUP for a model that cannot end an answer."""
    if not vocab.ends:
        why = "this model has no token that ends an answer, so no grammar can"
        raise SyscallError(Errno.ENOTSUP, why)
    pieces = [vocab.piece(token) for token in range(vocab.size)]
    silent = [token for token, piece in enumerate(pieces) if not piece]
    ends = sorted(vocab.ends)
    words = _Words(vocab, ends[0], vocab.begin, pieces, silent)
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(words), eos_token=ends)


def _deeply(build: Callable[[], T]) -> T:
    """Run on a thread with a deep stack: the library follows chains of rules by recursion."""
    before = threading.stack_size(_STACK_BYTES)
    try:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(build).result()
    finally:
        threading.stack_size(before)
