"""How texts are divided into words before their characters are merged into tokens.

As llama.cpp does it, for each pre-tokenizer in PRE_TOKENIZERS: a test compares every character and
100,000 random texts with it. A model names its pre-tokenizer (`tokenizer.ggml.pre`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as InOrder

from .categories import LETTERS, NUMBERS, PUNCTUATION, SPACES


def _characters(ranges: str) -> str:
    """The inside of a bracket expression with these ranges."""
    return "".join(
        "-".join(rf"\x{{{point}}}" for point in one.split("-")) for one in ranges.split()
    )


_L, _N, _P, _S = map(_characters, (LETTERS, NUMBERS, PUNCTUATION, SPACES))
# The last space of several is left to the word after them.
_BLANKS = f"[{_S}]+(?![^{_S}])|[{_S}]+"
_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{_L}]+| ?[{_N}]+| ?[^{_S}{_L}{_N}]+|{_BLANKS}"
_MODERN = (
    r"'(?:[sStTmMdD]|[rRvV][eE]|[lL][lL])"
    rf"|[^\r\n{_L}{_N}]?[{_L}]+"
    rf"|[{_N}]{{1,%d}}"
    rf"| ?[^{_S}{_L}{_N}]+[\r\n]*"
    rf"|[{_S}]*[\r\n]+|{_BLANKS}"
)


@dataclass(frozen=True, slots=True)
class Division:
    """A pre-tokenizer. `patterns`: each one divides what the ones before it have left."""

    patterns: Sequence[str]
    whole_words: bool = False  # a word that is a token is not merged from its characters
    adds_begin: bool = False  # unless the file says otherwise

    def build(self) -> PreTokenizer:
        splits = [Split(Regex(pattern), "isolated") for pattern in self.patterns]
        return InOrder([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])


_DEFAULT = Division([rf"[{_P}$+<=>\^~|]+", _GPT2, f"[{_N}]+", "[0-9][0-9][0-9]"])
PRE_TOKENIZERS = {
    "": _DEFAULT,
    "default": _DEFAULT,
    "gpt-2": Division([_GPT2]),
    "llama-bpe": Division([_MODERN % 3], whole_words=True, adds_begin=True),
    "qwen2": Division([_MODERN % 1]),
    "smollm": Division([f"[{_N}]", _GPT2]),
}
