# ruff: noqa: RUF001 - letters that look alike are what some of this is about
"""What FTS5 is given: any question is a valid expression, and finds what shares a word with it."""

import random
import sqlite3
import time
from collections.abc import Iterator

import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.recall.lexical import indexed, match, terms

PAGES = (
    "We met at the harbour café; Zoë paid.",
    "def parse_config(path): raise ERR-4012  # settings.toml, getUserName, HTTPServer",
    "我上个月在西湖边骑自行车，用Python写了脚本。",
    "東京タワーのカメラで撮った 서울 사진",
    "".join(chr(ord(one) + 0xFEE0) if one != " " else one for one in "Full width 123"),
    "nothing in common",
)


@pytest.fixture(name="index", scope="module")
def an_index() -> Iterator[sqlite3.Connection]:
    index = sqlite3.connect(":memory:")
    index.execute('CREATE VIRTUAL TABLE pages USING fts5(text, tokenize="porter unicode61")')
    index.executemany(
        "INSERT INTO pages(rowid, text) VALUES(?, ?)",
        [(number, indexed(text)) for number, text in enumerate(PAGES)],
    )
    yield index
    index.close()


def found(index: sqlite3.Connection, question: str) -> list[int]:
    expression = match(question)
    if not expression:
        return []
    sql = "SELECT rowid FROM pages WHERE pages MATCH ? ORDER BY rank"
    return [row for (row,) in index.execute(sql, (expression,))]


@pytest.mark.parametrize(
    ("question", "page"),
    [
        ("Who was meeting whom in the HARBOURS?", 0),
        ("where is zoe's cafe", 0),
        ("what raises err-4012?", 1),
        ("who calls user name", 1),
        ("the http server", 1),
        ("settings.toml", 1),
        ("parse the configuration: parse_config", 1),
        ("他在哪里骑车？", 2),
        ("西湖", 2),
        ("which python script", 2),
        ("カメラ", 3),
        ("서울에서", 3),
        ("full width 123", 4),
    ],
)
def test_a_question_finds_the_page_that_shares_a_word(
    index: sqlite3.Connection, question: str, page: int
) -> None:
    assert found(index, question)[0] == page


# A page, what finds it, and a page that it must not find.
WRITTEN = [
    ("the compiler is written in C++", "who knows C++?", "vitamin c"),
    ("she prefers C# to java", "C#", "the C note"),
    ("F# is functional", "learn f#", "the key of F"),
    ("ported to .NET last year", ".net", "the net was torn"),
    ("a server on node.js", "Node.js", "a tree node"),
    ("ask @maria about it", "@maria", "maria went home"),
    ("tagged #holiday", "#holiday", "a holiday"),
    ("add it to $PATH", "$PATH", "the path is steep"),
    ("const f = x => x", "=>", "const f"),
    ("a party tonight 🎉🍰", "🍰", "a party 🎈"),
    ("thumbs 👍🏽 up", "👍", "thumbs"),
    ("we fly to 🇯🇵", "🇯🇵", "we fly to 🇫🇷"),
    ("it costs 5 € more", "€", "it costs 5"),
    ("go → left", "→", "go left"),
    ("ฉันชอบกินข้าวผัดกุ้ง", "ข้าวผัด", "ฉันชอบเธอ"),
    ("ຂ້ອຍມັກກິນເຂົ້າ", "ເຂົ້າ", "ສະບາຍດີ"),
    ("ខ្ញុំចូលចិត្តភាសាខ្មែរ", "ភាសា", "សួស្តី"),
    ("မြန်မာစာကိုဖတ်တယ်", "မြန်မာ", "ဟုတ်ကဲ့"),
    ("東京の美味しいラーメン屋", "ラーメン", "東の空"),
    ("हम हिन्दी में बात करते हैं", "हिन्दी", "हम"),
    ("كَتَبَ الطَّالِبُ الدَّرْسَ", "كتب الطالب", "مدرسة"),
    ("مرحبـــا بكم", "مرحبا", "سلام"),
    ("ذهب أحمد إلى المدرسة", "احمد الى المدرسه", "بيت"),
    ("שָׁלוֹם עוֹלָם", "שלום", "בית"),
    ("Ο Οδυσσέας γύρισε", "ΟΔΥΣΣΕΑΣ", "θάλασσα"),
    ("ещё один самолёт", "еще самолет", "поезд"),
    ("чай и трамвай", "трамвай", "трамваи"),
    ("за́мок на горе", "замок", "дом"),
    ("Tôi thích phở bò Hà Nội", "pho bo ha noi", "xin chao"),
    ("die große Straße", "grosse STRASSE", "das Haus"),
    ("ISPARTA'da ılık bir gün", "ilik gun", "soguk"),
    ("İstanbul'a gitti", "istanbul", "ankara"),
    ("ｆｕｌｌ　ｗｉｄｔｈ", "full width", "half"),
    ("the ﬁrst oﬃce", "first office", "second"),
    ("soft­ware and zero​width", "software zerowidth", "hardware"),
    ("Łódź, Ærø und Đà Nẵng", "lodz aero da nang", "paris"),
    ("room ๑๒๓ and ٤٥٦", "123 456", "789"),
]


@pytest.mark.parametrize(("page", "question", "other"), WRITTEN)
def test_a_word_is_found_in_any_of_its_spellings_and_with_its_signs(
    page: str, question: str, other: str
) -> None:
    index = sqlite3.connect(":memory:")
    index.execute('CREATE VIRTUAL TABLE pages USING fts5(text, tokenize="porter unicode61")')
    rows = [(0, indexed(other)), (1, indexed(page)), (2, indexed("something else"))]
    index.executemany("INSERT INTO pages(rowid, text) VALUES(?, ?)", rows)
    hits = found(index, question)
    index.close()
    assert hits[:1] == [1]


@pytest.mark.parametrize(
    ("one", "other"), [("C++", "C#"), ("чай", "чаи"), ("🎉", "🍰"), ("が", "か")]
)
def test_words_that_differ_stay_different(one: str, other: str) -> None:
    shared = set(match(one).split(" OR ")) & set(match(other).split(" OR "))
    assert shared <= {'"c"'}


def test_a_plain_text_is_indexed_as_it_is() -> None:
    text = "Plain words, with signs: a - b; 10:30, (all) of it. Really? e.g. a-b!"
    assert indexed(text) == text


def test_pairs_of_characters_weigh_more_than_one_that_is_shared(index: sqlite3.Connection) -> None:
    assert "自行" in match("自行车")
    assert indexed("自行车") == " 自 自行 行 行车 车 "
    assert found(index, "东边的自行车")[0] == 2


@pytest.mark.parametrize(
    "question",
    [
        "",
        " \n",
        "what is it, and who are you?",
        "是什么的呢？",
        "\0",
        '"',
        "…",
        "_",
    ],
)
def test_a_question_without_a_telling_word_asks_for_nothing(question: str) -> None:
    assert match(question) == ""


def test_operators_of_the_search_language_are_words() -> None:
    assert match("AND OR NOT") == '"not"'


def test_a_term_stands_once_and_a_word_too_long_not_at_all() -> None:
    assert match("Rain rain RAIN") == '"rain"'
    assert match("x" * (limits.MATCH_TERM_CHARS + 1)) == ""
    assert terms("rain and snow") == 2


def test_a_long_request_is_asked_by_its_beginning_and_its_end() -> None:
    expression = match(" ".join(f"w{number}" for number in range(100_000)))
    assert expression.count(" OR ") == limits.MATCH_TERMS - 1
    assert expression.startswith('"w0" OR "w1" ')
    assert expression.endswith('"w99999"')


def test_any_text_is_a_valid_question_and_a_valid_entry(index: sqlite3.Connection) -> None:
    dice = random.Random(5)
    alphabets = (
        "ab \"'*()^:-+{}\0\n\\;%_.,/@#",
        "的了是什么自行车日本カタカナ한국어〇々ー・",
        "éÅßﬁ①Ⅳ½ﾊﾝ\u0301\u200d\ufeff\ufffd\U0001f600\U00020000\U000e0001",
        "".join(chr(dice.randrange(0xE000, 0x110000)) for _ in range(200)),
    )
    for _ in range(600):
        letters = "".join(dice.sample(alphabets, 2))
        text = "".join(dice.choices(letters, k=dice.randrange(60)))
        found(index, text)  # raises when it is not valid
        index.execute("INSERT INTO pages(rowid, text) VALUES(1000, ?)", (indexed(text),))
        index.execute("DELETE FROM pages WHERE rowid = 1000")


def test_what_is_indexed_is_found_by_itself(index: sqlite3.Connection) -> None:
    for number, text in enumerate(PAGES):
        assert found(index, text)[0] == number


@pytest.mark.parametrize("piece", ["a", "word ", "字", '"', "a.b_", "aB", "😀", "\0"])
def test_a_megabyte_of_anything_takes_little_time(index: sqlite3.Connection, piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    began = time.process_time()
    found(index, text)
    assert time.process_time() - began < 2
