"""Folds spelling variants of a text into one form, for the text index and its queries.

Folded are compatibility forms (full width, ligatures), accents, vowel signs of Arabic and Hebrew,
tatweel, sharp s, dotless i, final sigma and invisible characters. Letters in their own right, such
as the Cyrillic short i, stay. ASCII keeps its case, which separates the parts of a camelCase name;
the tokenizer of the index folds it. Combining signs (of Devanagari, Thai and similar scripts) and
symbols become letters of the private use area, because the tokenizer would drop them and split the
word there.

Pure; must not know the index.
"""

import re
from collections.abc import Iterable
from unicodedata import category, decimal, is_normalized, normalize

_PRIVATE = 0xF0000  # a sign or symbol becomes this plus the low 16 bits of its code point
_SPACED = [(0x0900, 0x0DFF), (0x0F00, 0x0FFF)]  # words are separated: Indic scripts, Tibetan
_JOINED = [(0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF)]  # Thai, Lao, Burmese, Khmer
JOINED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # for a class of a regular expression
SIGNS = "\U000f0900-\U000f1fff"  # the same: signs of these scripts, as letters

_WIDE = re.compile(r"[^\x00-\x7f]+")
# Combining marks, niqqud, harakat, tatweel, marks for symbols, skin tones, invisible characters.
_MARKS = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a"
    "\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u0711"
    "\u0730-\u074a\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f\U0001f3fb-\U0001f3ff"
    "\u00ad\u034f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]+"
)
# Letters in their own right although they decompose.
_LETTERS = re.compile(  # I and U of Cyrillic with a breve, I with two dots, G and K with an acute
    "[\u0418\u0438\u0423\u0443]\u0306|[\u0406\u0456]\u0308|[\u0413\u0433\u041a\u043a]\u0301"
)
_SPELLINGS = {
    "đ": "d", "ð": "d", "þ": "th", "ł": "l", "ø": "o", "œ": "oe", "æ": "ae", "ħ": "h", "ŧ": "t",
    "\u0131": "i",  # without its dot
    # Arabic: alef maksura and the Persian ya, kaf and ha as the usual ones, ta marbuta as ha.
    "\u0649": "\u064a", "\u06cc": "\u064a", "\u06a9": "\u0643", "\u0629": "\u0647",
    "\u06d5": "\u0647", "\u0671": "\u0627",
}  # fmt: skip


def as_letters(text: str) -> str:
    """Symbols or signs as letters of one word."""
    return "".join(chr(_PRIVATE + (ord(one) & 0xFFFF)) for one in text)


def _translations(spans: Iterable[tuple[int, int]]) -> dict[int, str]:
    """Translations of these scripts: signs to letters, digits to ASCII digits."""
    found: dict[int, str] = {}
    for first, last in spans:
        for number in range(first, last + 1):
            kind = category(chr(number))
            if kind in ("Mn", "Mc"):
                found[number] = as_letters(chr(number))
            elif kind == "Nd":
                found[number] = str(decimal(chr(number)))
    return found


_TABLE = (
    {ord(one): other for one, other in _SPELLINGS.items()}
    | _translations([*_SPACED, *_JOINED, (0x0660, 0x0669), (0x06F0, 0x06F9)])
)  # fmt: skip


def folded(text: str) -> str:
    """Fold a text for the index or a query."""
    if text.isascii():
        return text
    if not is_normalized("NFKC", text):
        text = normalize("NFKC", text)
    text = _LETTERS.sub(lambda found: normalize("NFC", found[0]), normalize("NFD", text))
    text = normalize("NFC", _MARKS.sub("", text))
    return _WIDE.sub(lambda run: run[0].casefold().translate(_TABLE), text)
