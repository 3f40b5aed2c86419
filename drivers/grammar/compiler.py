"""Compiles grammars with llguidance. Only this module imports that library.

llama.cpp's own grammars abort the process at a forbidden token, and test every token of the
vocabulary each time. llguidance tests one token in microseconds, has limits, and returns errors;
only its recursion is unlimited, so it compiles on a thread with a large stack.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TypeVar

import llguidance
from llguidance import LLMatcher, LLTokenizer

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError

from . import gbnf, patterns
from .document import SchemaDocument, schema_error
from .lark import HEAD, GrammarText, write
from .terminals import SPACE, Probe, quoted

__all__ = [
    "LLMatcher",
    "LLTokenizer",
    "Vocabulary",
    "byte_tokens",
    "checkable",
    "compiled",
    "error_text",
    "matches",
]

T = TypeVar("T")
_STACK_BYTES = 256 * 1024 * 1024  # address space; a text of GRAMMAR_CHARS uses a fifth of it
_COMPILING = threading.Lock()  # the stack size of threads is a setting of the process
_ERROR_CHARS = 300  # of an error message of the library
# These keep a step with a grammar within tens of milliseconds, a compiled grammar within 40 MB.
_LIMITS = llguidance.LLParserLimits(
    max_items_in_row=4 * limits.SCHEMA_PROPERTIES,  # each optional property takes three
    initial_lexer_fuel=200_000,
    step_lexer_fuel=50_000,
    step_max_items=500_000,
    max_lexer_states=20_000,
    verbose_errors=False,  # they contain the text of the answer
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A vocabulary in the interface that llguidance expects."""

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_id: int
    bos_token_id: int | None
    tokenize: Callable[[bytes], list[int]]

    def __call__(self, text: bytes) -> list[int]:
        return self.tokenize(text)


def tokenizer(vocabulary: Vocabulary, ends: Sequence[int]) -> LLTokenizer:
    """The tokenizer of a vocabulary. Takes 0.1 s for that of a model."""
    return LLTokenizer(llguidance.TokenizerWrapper(vocabulary), eos_token=list(ends))


def compiled(kind: str, text: str, tokens: LLTokenizer) -> LLMatcher:
    """Compile a "grammar" (GBNF) or a "schema". EINVAL with the position of the error."""
    build = _schema if kind == "schema" else _gbnf
    return _on_large_stack(lambda: build(text, tokens))


def _gbnf(text: str, tokens: LLTokenizer) -> LLMatcher:
    error = ""
    for form in gbnf.to_lark(text):
        matcher, error = _try(form, tokens)
        if matcher is not None:
            return matcher
    raise SyscallError(Errno.EINVAL, f"the grammar is refused: {error}", "simplify the grammar")


def checkable(text: str) -> SchemaDocument:
    """A schema for the check of complete answers. EINVAL as in `compiled`.

    Only its parts are compiled: the whole would take too long in the kernel's process.
    """

    def build() -> SchemaDocument:
        document, written = _write(text)
        for probe in written.probes:
            _try_part(probe)
        return document

    return _on_large_stack(build)


def _write(text: str) -> tuple[SchemaDocument, GrammarText]:
    try:
        document = SchemaDocument(text)
        return document, write(document, matches)
    except RecursionError:
        raise schema_error("is nested too deeply", "reduce the nesting") from None


def _try_part(probe: Probe) -> None:
    matcher, error = _try(HEAD + probe.text, byte_tokens())
    if matcher is None:
        hint = "change or remove that part"
        raise schema_error(f"is refused at {probe.place}: {error}", hint)


def _schema(text: str, tokens: LLTokenizer) -> LLMatcher:
    _, written = _write(text)
    matcher, error = _try(written.text, tokens)
    for probe in written.probes:
        if matcher is None or probe.doubtful:
            _try_part(probe)
    if matcher is None:
        raise schema_error(f"is refused at /: {error}", "simplify the schema")
    return matcher


def _try(lark: str, tokens: LLTokenizer) -> tuple[LLMatcher | None, str]:
    """A matcher, or the error of the grammar."""
    grammar = LLMatcher.grammar_from_lark(lark)
    matcher = LLMatcher(tokens, grammar, log_level=0, limits=_LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()  # detects a grammar that no text can begin
    if not matcher.is_error():
        return matcher, ""
    return None, error_text(matcher)


def error_text(matcher: LLMatcher) -> str:
    """The error of a matcher in one line. That of an expression is in the line `error: `."""
    lines = matcher.get_error().strip().splitlines() or [""]
    message = lines[0].rpartition("failed to compile JSON schema: ")[2]
    if message.startswith("regex parse error"):
        message = next((line for line in lines if line.startswith("error: ")), lines[0])
        message = f"not a regular expression: {message.removeprefix('error: ')}"
    if message.startswith("NoExtension") or "Regex is empty" in message:
        message = "nothing can match it"
    return message[:_ERROR_CHARS]


@cache
def byte_tokens() -> LLTokenizer:
    """A tokenizer with one token per byte, for use without a model."""
    tokens = [bytes([byte]) for byte in range(256)]
    return tokenizer(Vocabulary([*tokens, b""], [256], 256, None, list), [256])


@lru_cache(maxsize=64)
def _pattern(pattern: str) -> LLMatcher:
    """The matcher of a pattern. ValueError for an invalid one."""
    schema = {"type": "string", "pattern": pattern, "x-guidance": {"whitespace_pattern": SPACE}}
    matcher, error = _try(f"{HEAD}start: %json {quoted(schema)}\n", byte_tokens())
    if matcher is None:
        raise ValueError(error)
    return matcher


def matches(pattern: str, text: str) -> bool:
    """Whether a text contains a match, in linear time. EINVAL for an invalid pattern."""
    try:
        read = patterns.read(pattern)
        return all(_matches(one, text) for one in read.required) and not any(
            _matches(one, text) for one in read.excluded
        )
    except ValueError as error:
        message = f"is refused: pattern {pattern!r:.120}: {error}"
        raise schema_error(message, "correct the pattern") from error


def _matches(pattern: str, text: str) -> bool:
    matcher = _pattern(pattern).deep_copy()
    return matcher.consume_tokens(list(quoted(text).encode())) and matcher.is_accepting()


def _on_large_stack(build: Callable[[], T]) -> T:
    """Run `build` on a thread with a large stack: the library follows rules by recursion."""
    with _COMPILING:
        before = threading.stack_size(_STACK_BYTES)
        try:
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(build).result()
        finally:
            threading.stack_size(before)
