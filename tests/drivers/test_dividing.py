"""A text is divided only where the tokenizer finds the same names in the parts as in the whole."""

import random

from llmasos.drivers.local.dividing import Divider


def found(text: str, names: set[str]) -> list[tuple[str, bool]]:
    """How llama.cpp parts a text by names: the longest first, each from left to right."""
    parts = [(text, False)]
    for name in sorted(names, key=lambda name: (-len(name), name)):
        parted: list[tuple[str, bool]] = []
        for part, special in parts:
            pieces = [part] if special else part.split(name)
            for index, piece in enumerate(pieces):
                parted += [(name, True)] if index else []
                parted += [(piece, special)] if piece else []
        parts = parted
    return parts


def test_the_parts_of_random_texts_have_the_names_of_the_whole() -> None:
    dice = random.Random(3)
    divided = 0
    for _ in range(3000):
        names = {"".join(dice.choices("ab<>", k=dice.randint(1, 4))) for _ in range(4)}
        dividing = set(dice.sample(sorted(names), k=min(2, len(names))))
        text = "".join(dice.choices(["a", "b", "<", ">", *sorted(names)], k=12))
        divider = Divider(names, dividing)
        for place in divider.places(text):
            divided += 1
            whole = found(text[:place], names) + found(text[place:], names)
            assert whole == found(text, names), (names, text, place)
            assert found(text[:place], names)[-1][1]
    assert divided > 1000


def test_a_place_is_judged_by_what_follows_it() -> None:
    divider = Divider({"<end>", "<end>\n", "\n\n"}, {"<end>"})
    assert divider.places("hi<end>you<end>") == [7, 15]
    assert divider.places("hi<end>\nyou") == []
    assert divider.divides("hi<end>", 7)
    assert not divider.divides("hi<end>\n", 7)
    assert not divider.divides("a\n\nb", 2)


def test_without_names_nothing_is_divided() -> None:
    assert Divider(set(), set()).places("hello") == []
