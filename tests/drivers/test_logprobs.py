"""The tokens whose probabilities are told spell the text that was shown, to the byte."""

import random
from itertools import pairwise

import pytest

from llmasos.drivers.logprobs import LogprobStream, token_bytes, token_text
from llmasos.drivers.stops import Scan
from llmasos.kernel.abi.values import Logprob


def told(data: bytes, number: int = 0) -> Logprob:
    text, part = token_text(data)
    return Logprob(number, text, -1.0, [], part)


def answer(pieces: list[bytes], stops: list[str]) -> tuple[str, list[Logprob]]:
    """As an engine does it: a token, then the text that may be shown."""
    scan, found = Scan(stops), LogprobStream()
    text, logprobs = "", list[Logprob]()
    for number, piece in enumerate(pieces):
        found.add(told(piece, number))
        shown = scan.feed(piece)
        text += shown
        logprobs += found.show(shown)
        assert len(b"".join(map(token_bytes, logprobs))) <= len(text.encode())
        if scan.stopped:
            break
    rest = scan.flush()
    return text + rest, [*logprobs, *found.show(rest), *found.end()]


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "texts"),
    [
        ([b"one", b" two"], [], "one two", ["one", " two"]),
        ([b"one E", b"ND two"], ["END"], "one ", ["one "]),
        ([b"one", b" EN", b"D"], ["END"], "one ", ["one", " "]),
        ([b"a", b"EN", b"x"], ["END"], "aENx", ["a", "EN", "x"]),
        ([b"\xf0\x9f", b"\xa6\x8a!"], [], "🦊!", ["\ufffd", "\ufffd\ufffd!"]),
        ([b"\xf0\x9f", b"\xa6\x8a END"], ["END"], "🦊 ", ["\ufffd", "\ufffd\ufffd "]),
        ([b"a", b"\xf0\x9f"], [], "a", ["a"]),  # a character that never came
        ([b" \xf0\x9f"], [], " ", [" "]),
        ([b"", b"a", b""], [], "a", ["", "a", ""]),  # a token that says nothing
    ],
)
def test_tokens_spell_the_text(
    pieces: list[bytes], stops: list[str], text: str, texts: list[str]
) -> None:
    shown, logprobs = answer(pieces, stops)
    assert shown == text
    assert [one.text for one in logprobs] == texts
    assert b"".join(map(token_bytes, logprobs)) == text.encode()


def test_any_cut_into_tokens_spells_the_same() -> None:
    dice = random.Random(2)
    for _ in range(300):
        data = "".join(dice.choices("aENDé🦊字 ", k=12)).encode()
        places = sorted(dice.sample(range(1, len(data)), dice.randint(0, 6)))
        pieces = [data[a:b] for a, b in pairwise([0, *places, len(data)])]
        text, logprobs = answer(pieces, dice.choice([[], ["END"], ["E", "字é"], ["🦊 "]]))
        assert b"".join(map(token_bytes, logprobs)) == text.encode(), (pieces, text)
        assert [one.token for one in logprobs] == list(range(len(logprobs)))


def test_what_is_no_unicode_is_shown_as_it_came() -> None:
    text, logprobs = answer([b"a\xff", b"b"], [])
    assert text == "a\ufffdb"
    assert b"".join(map(token_bytes, logprobs)) == b"a\xffb"


def test_tokens_that_spell_something_else_are_not_held_back() -> None:
    found = LogprobStream()
    found.add(told("▁the".encode()))
    assert [one.text for one in found.show("the")] == ["▁the"]
    found.add(told(b"x"))
    assert [one.text for one in found.show("y")] == ["x"]
    assert found.end() == []
