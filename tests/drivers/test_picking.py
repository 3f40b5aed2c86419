"""Tokens are drawn from the distribution that the settings describe, whatever came before.

The reference sorts all tokens and follows the definitions; llama.cpp's chain is a second opinion.
"""

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from llmasos.drivers.local.picking import SamplingPicker, Survivors, drawn, largest, survivors
from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.abi.values import Sampling
from tests.drivers.chains import Chain, surviving

SIZES = (1, 2, 63, 64, 65, 130, 1000, 9000, 49152)


def random_scores(dice: np.random.Generator, size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """As of a model, flat, with many equal ones, with many that are forbidden."""
    kind = dice.integers(5)
    scores = dice.normal(0, (3, 0.01, 3, 3, 8)[kind], size)
    if kind == 2:
        scores = np.round(scores)
    if kind == 3:
        scores[dice.random(size) < 0.999] = -np.inf
        scores[dice.integers(size)] = 1.0
    return scores.astype(np.float32)


def random_settings(dice: random.Random) -> Sampling:
    return Sampling(
        temperature=dice.choice((0.0, 0.01, 0.3, 0.7, 1.0, 2.0, 100.0)),
        top_k=dice.choice((0, 1, 2, 40, 200, 1000, 10**9)),
        top_p=dice.choice((0.0, 0.1, 0.5, 0.95, 0.999, 1.0)),
        min_p=dice.choice((0.0, 0.05, 0.5, 1.0)),
        repeat_penalty=dice.choice((1.0, 1.0, 1.3, 0.7)),
        frequency_penalty=dice.choice((0.0, 0.0, 0.5, -0.5)),
        presence_penalty=dice.choice((0.0, 0.0, 1.5, -1.0)),
        seed=dice.randrange(10**6),
    )


# --- the reference --------------------------------------------------------------------------------
def penalised(scores: list[float], answer: list[int], s: Sampling) -> list[float]:
    scores = list(scores)
    for token, count in Counter(answer).items():
        old = scores[token]
        new = old * s.repeat_penalty if old <= 0 else old / s.repeat_penalty
        scores[token] = new - count * s.frequency_penalty - s.presence_penalty
    return scores


def candidates(scores: list[float], s: Sampling) -> list[int]:
    """The tokens that may be drawn, the best one first."""
    ranked = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    ranked = [token for token in ranked if scores[token] > -math.inf]
    if s.top_k:
        ranked = ranked[: s.top_k]
    best = scores[ranked[0]]
    weights = [math.exp(scores[token] - best) for token in ranked]
    if s.top_p < 1:
        wanted, run, kept = s.top_p * math.fsum(weights), 0.0, 0
        while kept < len(ranked) and (run < wanted or not kept):
            run += weights[kept]
            kept += 1
        ranked = ranked[:kept]
    return [token for token in ranked if math.exp(scores[token] - best) >= s.min_p]


def mass(scores: np.ndarray[Any, np.dtype[np.float32]], tokens: set[int]) -> float:
    """The part of the probability that these tokens have together."""
    weights = np.exp(scores.astype(np.float64) - float(scores.max()))
    return float(weights[list(tokens)].sum() / weights.sum())


@pytest.mark.parametrize("size", SIZES)
def test_the_survivors_are_those_of_the_definitions(size: int) -> None:
    dice, numbers = random.Random(size), np.random.default_rng(size)
    for _ in range(40 if size < 9000 else 4):
        scores, settings = random_scores(numbers, size), random_settings(dice)
        left = survivors(scores, settings)
        ids = range(size) if left.ids is None else left.ids.tolist()
        found = {token for token in ids if scores[token] > -math.inf}
        expected = set(candidates(scores.tolist(), settings))
        assert mass(scores, found ^ expected) < 1e-6, settings
        if left.ids is not None:
            assert left.scores.tolist() == scores[left.ids].tolist()


@pytest.mark.parametrize("size", SIZES)
def test_the_largest_are_the_first_of_all_in_order(size: int) -> None:
    numbers = np.random.default_rng(size)
    for _ in range(20):
        scores = random_scores(numbers, size)
        ranked = sorted(range(size), key=lambda token: (-scores[token], token))
        ranked = [token for token in ranked if scores[token] > -math.inf]
        for count in (1, 2, 40, 255, 3000, size):
            assert largest(scores, count).tolist() == ranked[:count]


@pytest.mark.parametrize("size", [1, 5, 600, 2000])
def test_a_token_is_drawn_by_its_part_of_the_probability(size: int) -> None:
    """Each token has the part of [0, 1) that the definition gives it."""
    numbers = np.random.default_rng(size)
    for temperature in (0.5, 1.0, 3.0):
        scores = random_scores(numbers, size)
        exact = np.exp((scores.astype(np.float64) - float(scores.max())) / temperature)
        ends = (exact / exact.sum()).cumsum()
        left = Survivors(None, scores)
        for token in numbers.choice(size, min(size, 60), replace=False).tolist():
            begin, end = (float(ends[token - 1]) if token else 0.0), float(ends[token])
            if end - begin > 1e-4:
                for at in (0.01, 0.5, 0.99):
                    assert drawn(left, temperature, begin + at * (end - begin)) == token


def test_a_forbidden_token_is_never_drawn() -> None:
    scores = np.full(1500, -np.inf, np.float32)
    scores[[700, 1300]] = 2.0
    for uniform in (0.0, 0.25, 0.5, math.nextafter(1, 0)):
        for settings in (Sampling(top_k=0, top_p=1.0, min_p=0.0), Sampling(top_k=40)):
            assert drawn(survivors(scores, settings), 1.0, uniform) in (700, 1300)


@pytest.mark.parametrize("seed", range(6))
def test_answers_follow_the_reference(seed: int) -> None:
    """Random histories: each token is one that the reference allows, after the same penalties."""
    dice, numbers = random.Random(seed), np.random.default_rng(seed)
    for _ in range(8):
        settings, size = random_settings(dice), dice.choice((3, 65, 400))
        picker = SamplingPicker(settings, size)
        again = SamplingPicker(settings, size)
        answer: list[int] = []
        for _ in range(30):
            scores = random_scores(numbers, size)
            before = scores.copy()
            token = picker.pick(scores)
            assert (scores == before).all()
            assert again.pick(scores) == token  # by its seed
            lowered = penalised(scores.tolist(), answer, settings)
            best = max(lowered)
            if settings.temperature < 1e-3:
                assert lowered[token] == pytest.approx(best, abs=1e-5)
            else:
                allowed = candidates(lowered, settings)
                least = min(lowered[one] for one in allowed)
                assert lowered[token] >= least - 1e-4 * max(1.0, abs(least))
            answer.append(token)
            picker.accept(token)
            again.accept(token)


def test_the_frequencies_are_the_probabilities() -> None:
    scores = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03], np.float32))
    picker = SamplingPicker(Sampling(temperature=1.0, top_p=0.95, min_p=0.0, seed=7), 5)
    found = Counter(picker.pick(scores) for _ in range(20_000))
    assert found.keys() == {0, 1, 2, 3}
    for token, part in enumerate((0.5, 0.25, 0.15, 0.07)):
        assert found[token] / 20_000 == pytest.approx(part / 0.97, abs=0.015)


def test_seeds_differ() -> None:
    scores = np.zeros(1000, np.float32)
    texts = set[tuple[int, ...]]()
    for seed in range(50):
        picker = SamplingPicker(Sampling(temperature=1.0, top_k=0, seed=seed), 1000)
        texts.add(tuple(picker.pick(scores) for _ in range(3)))
    assert len(texts) == 50


def test_a_token_that_is_out_of_range_is_not_accepted() -> None:
    picker = SamplingPicker(Sampling(repeat_penalty=1.5), 10)
    for token in (-1, 10):
        with pytest.raises(DeviceFault, match=f"cannot accept token {token}"):
            picker.accept(token)


# --- llama.cpp ------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [5, 700, 49152])
def test_the_survivors_are_those_of_llama(size: int) -> None:
    dice, numbers = random.Random(size), np.random.default_rng(size)
    for _ in range(30):
        scores = numbers.normal(0, 3, size).astype(np.float32)
        settings = random_settings(dice)
        left = survivors(scores, settings)
        found = set(range(size) if left.ids is None else left.ids.tolist())
        expected = surviving(scores, settings)
        # It adds up in single precision.
        assert mass(scores, found ^ expected) < (1e-3 if settings.top_p < 1 else 1e-9), settings


def test_the_best_after_penalties_is_that_of_llama() -> None:
    dice, numbers = random.Random(3), np.random.default_rng(3)
    for _ in range(40):
        settings = random_settings(dice)
        greedy = Sampling(
            temperature=0.0,
            repeat_penalty=settings.repeat_penalty,
            frequency_penalty=settings.frequency_penalty,
            presence_penalty=settings.presence_penalty,
        )
        ours, theirs = SamplingPicker(greedy, 50), Chain(greedy, 50)
        for _ in range(40):
            scores = numbers.normal(0, 1, 50).astype(np.float32)
            token = ours.pick(scores)
            assert theirs.pick(scores) == token, greedy
            ours.accept(token)
            theirs.accept(token)
        theirs.free()


def test_one_candidate_needs_no_luck() -> None:
    numbers = np.random.default_rng(4)
    for seed in range(10):
        settings = Sampling(temperature=1.0, top_k=1, seed=seed)
        scores = numbers.normal(0, 1, 5000).astype(np.float32)
        chain = Chain(settings, 5000)
        assert SamplingPicker(settings, 5000).pick(scores) == chain.pick(scores) == scores.argmax()
        chain.free()
