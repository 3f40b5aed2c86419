"""The store of kept prompts stays within its bytes, and takes them from whom has the most."""

import random
import sys

from llmasos.drivers.prompts import KeptPrompts
from llmasos.kernel.abi.values import Message, Role
from llmasos.kernel.driver import Beginning, Keep


class Talk:
    """Of so many messages."""

    def __init__(self, count: int) -> None:
        self.messages = [Message(Role.USER, "hi")] * count


def test_the_least_recently_used_prompt_of_the_largest_domain_leaves_first() -> None:
    prompts = KeptPrompts[Talk](100)
    for number, domain in ((1, "ann"), (2, "bob"), (3, "bob"), (4, "ann"), (5, "bob")):
        prompts.put(Keep(number, number, domain), Talk(1), 20)
    assert prompts.get(2, "bob") is not None  # 3 is the oldest one of bob's now
    prompts.put(Keep(6, 6, "ann"), Talk(1), 10)
    there = [number for number in range(1, 7) if prompts.get(number, "ann")]
    assert there == [1, 4, 6]
    assert [n for n in range(1, 7) if prompts.get(n, "bob")] == [2, 5]
    assert prompts.bytes == 90
    prompts.put(Keep(7, 7, "eve"), Talk(1), 101)  # larger than all
    assert prompts.get(7, "eve") is None


def test_an_answer_counts_like_a_prompt() -> None:
    answer = "x" * 1000
    prompts = KeptPrompts[Talk](sys.getsizeof(answer) + 50)
    prompts.put(Keep(1, 1, "ann"), Talk(1), 20)
    prompts.put(Keep(2, 2, "ann"), Talk(1), 20)
    prompts.answered(2, answer)
    assert prompts.get(1, "ann") is not None
    prompts.put(Keep(3, 3, "ann"), Talk(1), 20)
    assert prompts.get(2, "ann") is None
    prompts.answered(2, answer)  # it has gone: nothing to do
    assert prompts.bytes == 40


def test_a_beginning_is_found_when_the_prompt_has_all_of_it() -> None:
    prompts = KeptPrompts[Talk]()
    prompts.put(Keep(1, 1, "ann"), Talk(3), 20)
    assert prompts.find(Beginning(1, 3), "ann") is not None
    assert prompts.find(Beginning(1, 4), "ann") is None
    assert prompts.find(Beginning(1, 3), "bob") is None
    assert prompts.find(Beginning(1, 3, answered=True), "ann") is None
    prompts.answered(1, "")
    assert prompts.find(Beginning(1, 3, answered=True), "ann") is not None
    assert prompts.find(Beginning(1, 2, answered=True), "ann") is None


def test_random_prompts_are_kept_like_in_a_plain_list() -> None:
    dice = random.Random(7)
    prompts, model = KeptPrompts[Talk](10**6), list[tuple[int, int, str, int]]()
    for number in range(1, 2000):
        history = dice.randrange(12)
        domain = f"d{history % 3}"
        match dice.randrange(20):
            case 0:
                prompts.forget(history)
                model = [one for one in model if one[1] != history]
            case 1:
                prompts.purge(domain)
                model = [one for one in model if one[2] != domain]
            case 2 | 3 | 4 | 5 if model:
                used = dice.choice(model)
                assert prompts.get(used[0], used[2]) is not None
                model.remove(used)
                model.append(used)
            case _:
                size = dice.randrange(200_000)  # so that no two domains have the same bytes
                prompts.put(Keep(number, history, domain), Talk(1), size)
                model.append((number, history, domain, size))
                own = sorted(one for one in model if one[1] == history)
                if len(own) > 2:
                    model.remove(own[0])
                model = shrunk(model)
        assert prompts.bytes == sum(one[3] for one in model)
    there = {n for n in range(2000) for d in ("d0", "d1", "d2") if prompts.get(n, d)}
    assert there == {one[0] for one in model}


def shrunk(model: list[tuple[int, int, str, int]]) -> list[tuple[int, int, str, int]]:
    """Without the oldest of the largest domain, until it fits."""
    while sum(one[3] for one in model) > 10**6:
        sizes = {domain: sum(o[3] for o in model if o[2] == domain) for *_, domain, _ in model}
        most = max(sizes.values())
        (largest,) = [domain for domain, size in sizes.items() if size == most][:1]
        model.remove(next(one for one in model if one[2] == largest))
    return model
