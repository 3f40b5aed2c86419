"""Prepares texts and queries for SQLite's FTS5.

The tokenizer ("porter unicode61") splits words at spaces and punctuation, folds case, strips
accents and stems English. This file does the rest, in the same way for pages and queries: it folds
spellings (folding.py); writes scripts without spaces between words as single characters and pairs
of adjacent characters; adds the parts of camelCase names; and adds symbols, emoji and names with
punctuation (C++, .NET, @name, #tag, $PATH) as words of their own. A query is an OR of quoted terms,
so no part of it is read as an operator.

Pure; owns nothing; must not know the tables.
"""

import re
from collections.abc import Iterator

from ..abi import limits
from .folding import JOINED, SIGNS, as_letters, folded

# Han with its extensions, kana, hangul. Full- and half-width forms are folded before this is used.
_CJK = (
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    "\u3131-\u318e\u1100-\u11ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
# A letter with its signs; in Khmer and Burmese a sign may join the next letter.
_SYLLABLE = f"[{JOINED}](?:[{SIGNS}]|(?<=[\U000f17d2\U000f1039])[{JOINED}])*"
_CLUSTER = re.compile(f"[{_CJK}]|{_SYLLABLE}")
_RUN = re.compile(f"[{_CJK}]+|(?:{_SYLLABLE})+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_CAMEL = re.compile(r"\b[A-Za-z0-9]*[a-z][A-Z][A-Za-z0-9]*\b|\b[A-Z]{2,}[a-z][A-Za-z0-9]*\b")
_WORD = re.compile(rf"(?:[^\W_{_CJK}{JOINED}]|[{SIGNS}])+")
# Compound names are also one term: a_b, a.py, E-12, 10:30.
_TOKEN = re.compile(rf"{_RUN.pattern}|{_WORD.pattern}(?:[._/:@+-]{_WORD.pattern})*")
# C++ C# F# A+, .NET .bashrc, @name #tag $PATH, operators of programming languages, other symbols.
_SYMBOL = re.compile(
    r"(?<!\w)[A-Za-z]\w*(?:\+\+|[+#](?![\w+#]))|(?<![\w.])\.[A-Za-z]\w*|(?<![\w@#$])[@#$]\w+"
    r"|(?<![-=<>!&|:+*/])(?:[=-]>|<-|[=!]==?|[<>]=|&&|\|\||::|:=|[-+*]=|<<|>>)(?![-=<>!&|:+*/])"
    "|[\U0001f1e6-\U0001f1ff]{2}|[\u00a2-\u00a7\u00a9\u00ac\u00ae\u00b0\u00b1\u00b6\u00d7\u00f7\u2020"
    "\u2021\u2030-\u2034\u203b\u20a0-\u20cf\u2100-\u214f\u2190-\u24ff\u25a0-\u2bff\u3012\u3013"
    "\u3200-\u33ff\U0001f000-\U0001faff]"
)
# Function words only: words of time and order ("now", "before") distinguish pages.
_ENGLISH = frozenset(
    re.findall(
        r"\w+",
        """a am an and are as at be been being but by can could d did do does doing don for from had
    has have having he her hers him his how i if in is isn it its ll m me my of on or our ours re s
    she should so t than that the their theirs them then there these they this those to us ve was
    we were what when where which who whom whose why will with would you your yours""",
    )
)
# Function characters; pairs of them ("什么", "的是") are left out as well.
_CHINESE = frozenset("的了是在吗呢吧啊呀嘛什么怎谁哪这那我你您他她它们和与就都也还又很把被给对")
_CHINESE_PAIRS = frozenset(re.findall(r"\w+", "什么 怎么 怎样 时候 多少 请问 为什 么时 么样 告诉"))


def indexed(text: str) -> str:
    """Prepare a text for the index."""
    text = folded(text)
    symbols = list(_symbols(text))
    if not text.isascii():
        text = _RUN.sub(lambda run: f" {' '.join(_grams(run[0]))} ", text)
    text = _CAMEL.sub(lambda name: f"{name[0]} {_HUMP.sub(' ', name[0])}", text)
    return " ".join([text, *symbols]) if symbols else text


def match(question: str) -> str:
    """The FTS5 expression of a question: any of its terms. Empty if it has no terms."""
    return " OR ".join(f'"{term}"' for term in _query_terms(question))


def terms(question: str) -> int:
    """The number of terms of the expression."""
    return len(_query_terms(question))


def _query_terms(question: str) -> list[str]:
    """Terms without repeats. Of a long text the beginning and the end: the question is there."""
    half = limits.MATCH_TERMS // 2
    cut = limits.MATCH_TERMS * limits.MATCH_TERM_CHARS // 2
    if len(question) > 2 * cut:
        question = f"{question[:cut]} {question[-cut:]}"
    text = folded(question)
    found = list(dict.fromkeys([*_symbols(text), *_terms(text)]))
    return found if len(found) <= 2 * half else found[:half] + found[-half:]


def _symbols(text: str) -> Iterator[str]:
    """Symbols and names with punctuation, without repeats, encoded as letters."""
    for one in dict.fromkeys(_SYMBOL.findall(text)):
        yield "".join(c if c.isalnum() else as_letters(c) for c in one.lower())


def _grams(run: str) -> Iterator[str]:
    """Each character with its signs, and each pair of adjacent characters."""
    before = ""
    for character in _CLUSTER.findall(run):
        if before:
            yield before + character
        yield character
        before = character


def _terms(text: str) -> Iterator[str]:
    for token in _TOKEN.findall(text):
        if _RUN.match(token):
            yield from (gram for gram in _grams(token) if not _is_function(gram))
            continue
        words = _WORD.findall(token)
        if len(words) > 1 and _is_short(token):
            yield " ".join(words).lower()
        for word in words:
            parts = dict.fromkeys((word, *_HUMP.sub(" ", word).split()))
            yield from (part.lower() for part in parts if _is_content(part))


def _is_content(word: str) -> bool:
    return word.lower() not in _ENGLISH and _is_short(word)


def _is_short(term: str) -> bool:
    return len(term) <= limits.MATCH_TERM_CHARS


def _is_function(gram: str) -> bool:
    return gram in _CHINESE_PAIRS or all(character in _CHINESE for character in gram)
