"""What a BPE file says about its tokens, and what llama.cpp concludes from their names.

llama.cpp finds the tokens that end an answer by their names, and treats some as control tokens
whatever the file says. The rules here are those of the llama.cpp that pyproject.toml names. Where
its result depends on the order of a hash table, or on rules for single models, the answer is
UnknownVocabularyError: then llama.cpp's own vocabulary has to be used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .vocabulary_file import UnknownVocabularyError, VocabularyFile

# Kinds of tokens: bits, as a token can be of several.
UNKNOWN, UNUSED, NORMAL, CONTROL, USER_DEFINED = 1, 2, 4, 8, 16
_TYPES = {1: NORMAL, 2: UNKNOWN, 3: CONTROL, 4: USER_DEFINED, 5: UNUSED}  # by type in the file
_BYTE_TYPE = 6
_DEFAULT_ID = 11  # of BOS and EOS
# Tokens that are found by one of these names when the file does not give their ids.
_FOUND = {
    "eot": (
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>",
        "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]", "<｜end▁of▁sentence｜>",
        "<end_of_utterance>",
    ),
    "eom": ("<|eom_id|>",),
    "fim_pre": (
        "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>",
        "<|code_prefix|>", "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
        "<|code_suffix|>", "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>",
        "<|code_middle|>", "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip
# Each of these names ends an answer.
_ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<｜end▁of▁sentence｜>", "[e~[",
)  # fmt: skip
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
# Models whose tokens get attributes by the name of the model.
_SINGULAR = ("phi-3", "phi3", "modern-bert")
_SINGULAR_ARCHITECTURES = ("nomic-bert-moe", "jina-bert-v3")


@dataclass(frozen=True, slots=True)
class TokenKinds:
    """The conclusions for one vocabulary."""

    kinds: Sequence[int]
    begin: int | None  # BOS
    end: int | None  # EOS
    ends: frozenset[int]  # EOG


def conclude(file: VocabularyFile, index: Mapping[str, int]) -> TokenKinds:
    """The kinds of the tokens; `index`: of the tokens by text."""
    _check_model(file)
    kinds = [_TYPES.get(one, 0) for one in file.types]
    default = _DEFAULT_ID if len(index) > _DEFAULT_ID else None
    begin, end = file.ids.get("bos", default), file.ids.get("eos", default)
    found = {name: _found(name, file, index, kinds) for name in _FOUND}
    ends = {found[name] for name in ("fim_pad", "fim_rep", "fim_sep")}
    for name in _ENDS:
        if name in index:
            ends.add(index[name])
            kinds[index[name]] |= CONTROL
    for name in _ALWAYS_SHOWN:
        if name in index:
            kinds[index[name]] = USER_DEFINED
    ends |= {end, found["eot"], found["eom"]}
    _except(ends, index, kinds)
    return TokenKinds(kinds, begin, end, frozenset(one for one in ends if one is not None))


def _check_model(file: VocabularyFile) -> None:
    singular = any(name in file.name.lower() for name in _SINGULAR)
    if singular or any(name in file.architecture for name in _SINGULAR_ARCHITECTURES):
        raise UnknownVocabularyError("the model has token attributes of its own")
    if _BYTE_TYPE in file.types:
        raise UnknownVocabularyError("it has tokens of type byte")


def _found(
    name: str, file: VocabularyFile, index: Mapping[str, int], kinds: list[int]
) -> int | None:
    """The token with this task, if there is one. By its name it becomes a control token."""
    if name in file.ids:
        return file.ids[name]
    tokens = [index[one] for one in _FOUND[name] if one in index]
    if len(tokens) > 1 and name != "eot":  # each EOT ends answers, whichever is found first
        raise UnknownVocabularyError(f"several tokens can be its {name}")
    if not tokens:
        return None
    kinds[tokens[0]] |= CONTROL
    return tokens[0]


def _except(ends: set[int | None], index: Mapping[str, int], kinds: list[int]) -> None:
    """Names that end answers of most models, but not of those with certain other names."""

    def has(name: str) -> bool:
        return index.get(name, -1) in ends

    calls = has("<|call|>") or has("<|calls|>")
    if has("<|end|>") and calls and (has("<|return|>") or has("<|flush|>")):
        _remove("<|end|>", USER_DEFINED, ends, index, kinds)
    if has("</s>") and (has("<|tool_response>") or has("<|plamo:eos|>")):
        _remove("</s>", NORMAL, ends, index, kinds)


def _remove(
    name: str, kind: int, ends: set[int | None], index: Mapping[str, int], kinds: list[int]
) -> None:
    token = index[name]
    ends.discard(token)
    kinds[token] = kind
