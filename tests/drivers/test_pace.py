"""What a step computes: how many prompt tokens its time has room for, and for whom."""

from llmasos.drivers.local.pace import StepPace, portions, recurring
from llmasos.drivers.order import PromptOrder
from llmasos.kernel.abi import limits


def test_prompts_fill_the_room_in_their_order() -> None:
    assert portions([80, 300, 20], 128) == [80, 48, 0]
    assert portions([80, 300, 20], 512) == [80, 300, 20]
    assert portions([], 128) == []


def test_the_room_of_a_step_follows_its_time() -> None:
    pace = StepPace()
    assert pace.room(0.3, answering=True) == limits.CHUNK_TOKENS  # nothing is known yet
    for _ in range(40):
        pace.learn(0, 8, 0.05)
        pace.learn(100, 8, 0.25)
    assert 120 <= pace.room(0.3, answering=True) <= 126  # 0.25 s at 2 ms a token
    assert 290 <= pace.room(0.3, answering=False) <= 300
    for _ in range(40):
        pace.learn(70, 8, 0.85)
    assert pace.room(0.3, answering=True) == limits.CHUNK_MIN_TOKENS
    assert pace.room(0.0, answering=True) == limits.WINDOW_MAX


def test_a_trial_step_says_how_long_a_token_takes() -> None:
    pace = StepPace()
    pace.begin(limits.CHUNK_MIN_TOKENS - 1, 9.0)  # too small to tell
    assert pace.room(0.3, answering=True) == limits.CHUNK_TOKENS
    pace.begin(128, 0.256)
    assert pace.room(0.3, answering=True) == 150


def test_full_steps_have_few_sizes() -> None:
    rooms = range(limits.CHUNK_MIN_TOKENS + 64, 600)
    sizes = {recurring(room, 8) + 8 for room in rooms}
    assert sizes == set(range(128, 600, 64))
    assert all(room - 64 < recurring(room, 8) <= room for room in rooms)
    assert recurring(limits.CHUNK_MIN_TOKENS, 8) == limits.CHUNK_MIN_TOKENS


def test_before_the_first_order_all_are_fed() -> None:
    order = PromptOrder()
    order.fed(7)
    assert order.has(7)
    assert order.place(7) == order.place(8)


def test_a_call_that_is_fed_once_leaves_the_order() -> None:
    order = PromptOrder()
    order.set([3, 1, 2], 1)
    assert sorted([1, 2, 3], key=order.place) == [3, 1, 2]
    assert not order.has(4)
    order.fed(3)
    order.fed(1)
    order.fed(1)
    assert [call for call in (1, 2, 3) if order.has(call)] == [2, 3]
    order.set([1], 0)
    order.fed(1)
    assert order.has(1)
