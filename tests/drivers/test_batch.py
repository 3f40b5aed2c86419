"""What a step computes, against a simulated engine: gaps, waits, and who goes first."""

from llmasos.drivers.llama.batch import Ready, StepPace, portions
from llmasos.kernel.abi import limits

ANSWER = Ready(0, 500)


def test_answers_are_given_no_prompt_tokens() -> None:
    assert portions([ANSWER, ANSWER], 100) == [0, 0]


def test_prompts_fill_the_room_in_their_order() -> None:
    assert portions([Ready(80, 500), ANSWER, Ready(300, 900)], 128) == [80, 0, 48]


def test_who_owes_little_goes_first_and_long_prompts_wait() -> None:
    long = Ready(2000, 2032)
    assert portions([long, Ready(20, 52)], 128) == [0, 20]
    assert portions([long, Ready(0, 30)], 128) == [0, 0]  # an answer that is nearly done, too


def test_a_long_prompt_is_long_to_its_end() -> None:
    assert portions([Ready(100, 132, prompt_at_start=2000), Ready(0, 30)], 512) == [0, 0]
    assert portions([Ready(100, 132, prompt_at_start=100), Ready(0, 30)], 512) == [100, 0]


def test_prompts_that_are_soon_over_do_not_wait_for_answers_that_are() -> None:
    assert portions([Ready(0, 30), Ready(88, 136), Ready(88, 136), Ready(900, 950)], 512) == [
        0, 88, 88, 0,
    ]  # fmt: skip


def test_a_long_prompt_waits_no_longer_than_aging_allows() -> None:
    old, older = Ready(2000, 2032, limits.AGING_S), Ready(900, 932, 2 * limits.AGING_S)
    assert portions([old, older, Ready(20, 52)], 128) == [108, 0, 20]


def test_the_room_of_a_step_follows_its_time() -> None:
    pace = StepPace()
    assert pace.room(0.3, answering=True) == limits.CHUNK_TOKENS  # nothing is known yet
    for _ in range(40):
        pace.learn(0, 8, 0.05)
        pace.learn(100, 8, 0.25)
    assert 120 <= pace.room(0.3, answering=True) <= 126  # 0.25 s at 2 ms a token
    assert 290 <= pace.room(0.3, answering=False) <= 300
    for _ in range(40):
        pace.learn(50, 8, 0.85)
    assert pace.room(0.3, answering=True) == limits.CHUNK_MIN_TOKENS
    assert pace.room(0.0, answering=True) == limits.WINDOW_MAX


def test_a_stream_of_short_calls_does_not_starve_a_long_prompt() -> None:
    """Steps of a simulated engine: 2 ms a token, 50 ms for the answers."""
    left, now, fed_at = 2000, 0.0, 0.0
    while left:
        calls = [Ready(left, left + 32, now - fed_at), Ready(0, 10)]
        fed = portions(calls, 128)[0]
        left -= fed
        now += 0.05 + 0.002 * fed
        fed_at = now if fed else fed_at
        assert now < 60
    assert now > 12 * limits.AGING_S
