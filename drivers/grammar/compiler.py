"""Grammars through llguidance: the one host of that library.

llama.cpp's own grammars end the process when they are told a token that they forbid, and weigh
every token of the vocabulary each time. This library answers for one token in microseconds, has
limits, and returns its errors; only its recursion has none, so it compiles on a deep stack.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TypeVar

import llguidance
from llguidance import LLMatcher, LLTokenizer

from llmasos.kernel import limits
from llmasos.kernel.errors import Errno, SyscallError

from . import gbnf, patterns
from .document import Document, refusal
from .lark import HEAD, Written, write
from .terminals import SPACE, Probe, quoted

__all__ = [
    "LLMatcher",
    "LLTokenizer",
    "Vocabulary",
    "byte_tokens",
    "checkable",
    "compiled",
    "complaint",
    "matches",
]

T = TypeVar("T")
_STACK_BYTES = 256 * 1024 * 1024  # address space; a text of GRAMMAR_CHARS needs a fifth of it
_COMPILING = threading.Lock()  # the size of a stack is the process's
_WORDS_CHARS = 300  # of the library's complaint
# A step under a grammar stays within tens of milliseconds, a compiled one within 40 MB.
_LIMITS = llguidance.LLParserLimits(
    max_items_in_row=4 * limits.SCHEMA_PROPERTIES,  # each optional property takes three
    initial_lexer_fuel=200_000,
    step_lexer_fuel=50_000,
    step_max_items=500_000,
    max_lexer_states=20_000,
    verbose_errors=False,  # they hold what the model said
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens as the library wants to see them."""

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_id: int
    bos_token_id: int | None
    tokenize: Callable[[bytes], list[int]]

    def __call__(self, text: bytes) -> list[int]:
        return self.tokenize(text)


def tokenizer(vocabulary: Vocabulary, ends: Sequence[int]) -> LLTokenizer:
    """Takes a tenth of a second for a model's vocabulary."""
    return LLTokenizer(llguidance.TokenizerWrapper(vocabulary), eos_token=list(ends))


def compiled(kind: str, text: str, tokens: LLTokenizer) -> LLMatcher:
    """A "grammar" (GBNF) or a "schema". EINVAL with the place of what is wrong."""
    return _deeply(lambda: _schema(text, tokens) if kind == "schema" else _gbnf(text, tokens))


def _gbnf(text: str, tokens: LLTokenizer) -> LLMatcher:
    words = ""
    for form in gbnf.to_lark(text):
        matcher, words = _try(form, tokens)
        if matcher is not None:
            return matcher
    raise SyscallError(Errno.EINVAL, f"the grammar is refused: {words}", "make it simpler")


def checkable(text: str) -> Document:
    """A schema that answers can be checked against. EINVAL as for one that is compiled.

    Parts are compiled and the whole is not: in the kernel's process that would take too long.
    """

    def build() -> Document:
        document, written = _write(text)
        for probe in written.probes:
            _try_part(probe)
        return document

    return _deeply(build)


def _write(text: str) -> tuple[Document, Written]:
    try:
        document = Document(text)
        return document, write(document, matches)
    except RecursionError:
        raise refusal("is nested too deeply", "make it flatter") from None


def _try_part(probe: Probe) -> None:
    matcher, words = _try(HEAD + probe.text, byte_tokens())
    if matcher is None:
        hint = "change that part, or remove it"
        raise refusal(f"is refused at {probe.place}: {words}", hint)


def _schema(text: str, tokens: LLTokenizer) -> LLMatcher:
    _, written = _write(text)
    matcher, words = _try(written.text, tokens)
    for probe in written.probes:
        if matcher is None or probe.doubtful:
            _try_part(probe)
    if matcher is None:
        raise refusal(f"is refused at /: {words}", "make it simpler")
    return matcher


def _try(lark: str, tokens: LLTokenizer) -> tuple[LLMatcher | None, str]:
    """A matcher, or what is wrong with the grammar."""
    grammar = LLMatcher.grammar_from_lark(lark)
    matcher = LLMatcher(tokens, grammar, log_level=0, limits=_LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()  # what cannot begin is found here
    if not matcher.is_error():
        return matcher, ""
    return None, complaint(matcher)


def complaint(matcher: LLMatcher) -> str:
    """In one line. What is wrong with an expression stands in the last one."""
    lines = matcher.get_error().strip().splitlines() or [""]
    words = lines[0].rpartition("failed to compile JSON schema: ")[2]
    if words.startswith("regex parse error"):
        words = next((line for line in lines if line.startswith("error: ")), lines[0])
        words = f"not a regular expression: {words.removeprefix('error: ')}"
    if words.startswith("NoExtension") or "Regex is empty" in words:
        words = "nothing can match it"
    return words[:_WORDS_CHARS]


@cache
def byte_tokens() -> LLTokenizer:
    """Every byte is a token: for texts that no model wrote."""
    tokens = [bytes([byte]) for byte in range(256)]
    return tokenizer(Vocabulary([*tokens, b""], [256], 256, None, list), [256])


@lru_cache(maxsize=64)
def _pattern(pattern: str) -> LLMatcher:
    """ValueError: it is none."""
    schema = {"type": "string", "pattern": pattern, "x-guidance": {"whitespace_pattern": SPACE}}
    matcher, words = _try(f"{HEAD}start: %json {quoted(schema)}\n", byte_tokens())
    if matcher is None:
        raise ValueError(words)
    return matcher


def matches(pattern: str, text: str) -> bool:
    """Whether a text has a match, in time that grows with the text only. EINVAL: no pattern."""
    try:
        read = patterns.read(pattern)
        return all(_matches(one, text) for one in read.required) and not any(
            _matches(one, text) for one in read.excluded
        )
    except ValueError as error:
        raise refusal(f"is refused: pattern {pattern!r:.120}: {error}", "correct it") from error


def _matches(pattern: str, text: str) -> bool:
    matcher = _pattern(pattern).deep_copy()
    return matcher.consume_tokens(list(quoted(text).encode())) and matcher.is_accepting()


def _deeply(build: Callable[[], T]) -> T:
    """Run on a thread with a deep stack: the library follows chains of rules by recursion."""
    with _COMPILING:
        before = threading.stack_size(_STACK_BYTES)
        try:
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(build).result()
        finally:
            threading.stack_size(before)
