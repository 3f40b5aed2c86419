"""Our vocabularies are llama.cpp's: the same tokens for each text, the same facts of each token."""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from llmasos.drivers.llama.model import load_vocab
from llmasos.drivers.llama.vocabulary_check import mismatches
from llmasos.drivers.llama.vocabulary_check import text as random_text
from llmasos.drivers.local import bpe
from llmasos.drivers.local.context import Vocab
from llmasos.drivers.local.pretokenizer import PRE_TOKENIZERS
from llmasos.drivers.local.vocabulary_file import UnknownVocabularyError, VocabularyFile
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from tests.drivers.default_model import MODEL
from tests.drivers.vocabulary_files import embedded, small, with_user_defined, write

PRES = sorted(PRE_TOKENIZERS.keys() - {""})  # no name means the default
# Letters, numbers and punctuation since Unicode 16 and 17: for llama.cpp, they are not yet.
NEWER = (0x1C89, 0xA7CB, 0x105C0, 0x323B0, 0x10D40, 0x1CCF0, 0x1B4E, 0x1B7F)
Pair = tuple[Vocab, Vocab]
FACTS = ("size", "begin", "wants_begin", "end", "ends", "names", "control", "dividing")


def pair(path: Path) -> Pair:
    """Ours and llama.cpp's."""
    return bpe.load(path).vocab, load_vocab(path).vocab


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vocabularies")


@cache
def of_pre(pre: str, folder: Path) -> Pair:
    """The embedded model's tokens and merges with another pre-tokenizer."""
    own = folder / f"pre {pre}"
    own.mkdir()
    return pair(write(replace(embedded(), pre=pre, adds_begin=None), own))


def check_texts(ours: Vocab, theirs: Vocab, texts: Sequence[str]) -> None:
    for text in texts:
        for special in (True, False):
            found = ours.tokenize(text, special=special).tolist()
            assert found == theirs.tokenize(text, special=special).tolist(), (text, special)


def check_facts(ours: Vocab, theirs: Vocab) -> None:
    for fact in FACTS:
        assert getattr(ours, fact) == getattr(theirs, fact), fact
    for token in range(ours.size):
        assert ours.piece(token) == theirs.piece(token), token
        assert ours.name(token) == theirs.name(token), token
        assert ours.text(token) == theirs.text(token), token


def random_texts(count: int, seed: str, vocab: Vocab) -> list[str]:
    dice, names = random.Random(seed), sorted(vocab.names)
    return [random_text(dice, names) for _ in range(count)]


@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize("count", [500, pytest.param(100_000, marks=pytest.mark.long)])
def test_random_texts_have_the_tokens_of_llama(pre: str, count: int, folder: Path) -> None:
    ours, theirs = of_pre(pre, folder)
    check_texts(ours, theirs, random_texts(count, pre, ours))


@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize(
    "step", [509, pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
)
def test_each_character_has_the_tokens_of_llama(pre: str, step: int, folder: Path) -> None:
    """Its category decides where a word ends."""
    ours, theirs = of_pre(pre, folder)
    points = [point for point in range(0, 0x110000, step) if not 0xD800 <= point < 0xE000]
    points += NEWER
    forms = "a{0}a{0} {0}1{0}'{0}\n.{0}. {0}  {0}"
    texts = [forms.format(chr(point)) for point in points]
    joined = ["".join(texts[at : at + 500]) for at in range(0, len(texts), 500)]
    check_texts(ours, theirs, joined)


@pytest.mark.parametrize("pre", PRES)
def test_long_runs_have_the_tokens_of_llama(pre: str, folder: Path) -> None:
    ours, theirs = of_pre(pre, folder)
    runs = [part * 3000 for part in (" ", "\n", "\t ", "a", "ab ", "1", "字", "🦊", "\u0301")]
    check_texts(ours, theirs, [*runs, *(run + "x" for run in runs)])


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_the_facts_of_all_tokens_are_those_of_llama(pre: str, folder: Path) -> None:
    check_facts(*of_pre(pre, folder))


def test_the_embedded_model_has_a_vocabulary_of_ours() -> None:
    ours, theirs = pair(MODEL)
    check_facts(ours, theirs)
    check_texts(ours, theirs, random_texts(1000, "embedded", ours))
    assert bpe.load(MODEL).template == load_vocab(MODEL).template


def test_user_defined_tokens_are_found_before_words_are(folder: Path) -> None:
    ours, theirs = pair(write(with_user_defined(embedded()), folder))
    assert {"ing", "class", "====", "and", "Ġof"} <= ours.names
    check_facts(ours, theirs)
    check_texts(ours, theirs, random_texts(2000, "user-defined", ours))


NAMES = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "</s>",
    "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<eos>", "<|tool_response>", "[EOT]",
    "<|fim_prefix|>", "<fim_suffix>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>",
    "<|file_sep|>", "<|channel|>", "<|message|>", "<|unused1|>", "word", " spaced ", "字",
    "<｜end▁of▁sentence｜>", "",
)  # fmt: skip
IDS = ("bos", "eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep", "fim_pre")


def random_file(dice: random.Random) -> VocabularyFile:
    names = dice.sample(NAMES, k=dice.randint(1, 12))
    file = small(names, dice.choices((1, 2, 3, 3, 3, 4, 4, 5), k=len(names)))
    first = len(file.tokens) - len(names)
    every = range(first, len(file.tokens))
    ids = {name: dice.choice(every) for name in dice.sample(IDS, k=dice.randrange(4))}
    return replace(file, ids=ids, adds_begin=dice.choice((None, True, False)))


def test_random_tokens_have_the_meaning_that_llama_gives_them(tmp_path: Path) -> None:
    dice = random.Random(5)
    for _ in range(120):
        ours, theirs = pair(write(random_file(dice), tmp_path))
        check_facts(ours, theirs)
        check_texts(ours, theirs, random_texts(5, str(dice.random()), ours))


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (small([], [], "tekken"), "pre-tokenizer is 'tekken'"),
        (replace(small([], []), model="llama"), "tokenizer is 'llama'"),
        (replace(small([], []), name="Phi-3 small"), "attributes of its own"),
        (small(["<fim_pad>", "[PAD]"], [3, 3]), "several tokens can be its fim_pad"),
        (small(["ab>", ">c"], [3, 3]), "may overlap"),
        (small(["<0x0A>"], [6]), "type byte"),
        (replace(small([], []), merges=["a b"]), "makes no token"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_known_to_be_equal_is_not_offered(
    file: VocabularyFile, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UnknownVocabularyError, match=reason):
        bpe.load(write(file, tmp_path))


def test_a_text_that_is_not_valid_unicode_is_refused() -> None:
    vocab = bpe.load(MODEL).vocab
    for text in ("\ud800", "a\udfff b", "<|im_end|>\udc80"):
        with pytest.raises(SyscallError, match="not valid Unicode") as error:
            vocab.tokenize(text, special=True)
        assert error.value.errno is Errno.EINVAL


def test_a_token_out_of_range_is_a_fault() -> None:
    vocab = bpe.load(MODEL).vocab
    for token in (-1, vocab.size):
        assert vocab.text(token) == ""
        for read in (vocab.piece, vocab.name):
            with pytest.raises(DeviceFault, match="out of range"):
                read(token)


@pytest.mark.parametrize("pre", PRES)
def test_the_check_of_vocabularies_counts_texts_with_other_tokens(
    pre: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mismatches(MODEL, pre, 50) == 0
    other = "llama-bpe" if pre == "gpt-2" else "gpt-2"
    monkeypatch.setitem(PRE_TOKENIZERS, pre, PRE_TOKENIZERS[other])
    assert mismatches(MODEL, pre, 200) > 0
