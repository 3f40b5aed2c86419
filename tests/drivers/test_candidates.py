"""The candidates of `models tune` are measured, the fastest that loses little is chosen."""

import math
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import anyio
import numpy as np
import pytest
from numpy.typing import NDArray

from llmasos.drivers import model_files
from llmasos.drivers.choice import candidates, loss, tuning
from llmasos.drivers.llama import options
from llmasos.drivers.llama.context import LlamaContext
from llmasos.drivers.llama.model import load
from llmasos.drivers.llama.scorer import PASSAGE, WINDOW, Scorer
from llmasos.drivers.local import gguf
from llmasos.drivers.local.context import Run
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.abi.values import Progress, TuneCandidate
from llmasos.kernel.driver import Option, Tuning
from tests.drivers import cut_model

pytestmark = pytest.mark.anyio
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="it is not installed")

_WINDOW_CHARS = 3_000
ROOT = Path(__file__).resolve().parents[2]
# As measured with the embedded model.
ORIGINAL = TuneCandidate("Q4_1", 98, "", "llama", 265, 111, 202, 29.55, 1.0, 0.0)
Q8 = TuneCandidate("Q8_0", 145, "Q4_1", "llama", 571, 130, 326, 29.66, 1.004, 0.004)
BF16 = TuneCandidate("BF16", 271, "Q4_1", "llama", 1500, 82, 282, 29.55, 1.0, 0.0001)
Q4_0 = TuneCandidate("Q4_0", 92, "Q4_1", "llama", 648, 158, 424, 37.3, 1.263, 0.3)


# --- the candidates ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("original", "flags", "names"),
    [
        ("Q4_1", {"avx2"}, ["Q8_0", "Q4_K_M", "IQ4_NL", "Q4_0"]),
        ("Q4_1", {"avx2", "avx512_bf16"}, ["Q8_0", "BF16", "Q4_K_M", "IQ4_NL", "Q4_0"]),
        ("Q8_0", {"avx2", "avx512_bf16"}, ["BF16", "Q4_K_M", "IQ4_NL", "Q4_0"]),
        ("Q4_0", {"asimddp", "avx2"}, ["Q8_0", "Q4_K_M", "IQ4_NL"]),
        ("F16", set[str](), ["Q8_0"]),
    ],
)
def test_the_processor_decides_what_is_measured(
    original: str, flags: set[str], names: list[str]
) -> None:
    assert candidates.offered(original, flags) == names


# --- the rule ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("others", "slots", "best"),
    [
        ([Q8, Q4_0], 16, "Q8_0"),  # Q4_0 is faster and loses too much
        ([Q8, BF16, Q4_0], 16, "BF16"),
        ([replace(Q8, single=200), BF16], 1, "Q8_0"),
        ([replace(Q4_0, ratio=1.01)], 16, "Q4_0"),
        ([replace(Q8, prompt=100, single=90, full=150)], 16, "Q4_1"),
        ([TuneCandidate("Q8_0", made_from="Q4_1", why="no room")], 16, "Q4_1"),
        ([], 16, "Q4_1"),
    ],
)
def test_the_fastest_that_loses_little_is_chosen(
    others: list[TuneCandidate], slots: int, best: str
) -> None:
    rows = candidates.chosen([ORIGINAL, *others], slots)
    assert [row.quantisation for row in rows if row.chosen] == [best]
    assert all(row.why for row in rows)


def test_each_row_says_why() -> None:
    failed = TuneCandidate("IQ4_NL", made_from="Q4_1", why="no room")
    rows = candidates.chosen([ORIGINAL, Q8, Q4_0, failed], 16)
    assert [row.why for row in rows] == [
        "1.66 x the time of Q8_0",
        "fastest with a ratio up to 1.01",
        "ratio over 1.01",
        "no room",
    ]


def test_an_original_that_could_not_be_measured_is_not_compared() -> None:
    unknown = TuneCandidate("Q4_1", 98, why="not measured: no memory")
    first, second = candidates.chosen([unknown, Q8], 16)
    assert (first.chosen, first.why) == (False, "not measured: no memory")
    assert second.chosen


# --- measured ---------------------------------------------------------------------------------
class TuneRun:
    """Tunings of the cut model with one cache."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.cache = folder / "models", folder / "log", folder / "engines"
        self.heard: list[Progress] = []

    async def rows(
        self,
        quantisation: str = "",
        report: Callable[[Progress], None] | None = None,
        **chosen: Option,
    ) -> list[TuneCandidate]:
        request = Tuning(
            cut_model.path(), self.folder, "x", quantisation, True, self.log,
            {"threads": 1, **chosen}, self.cache,
        )  # fmt: skip
        return list(await model_files.tune(request, report or self.heard.append))

    @property
    def left(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TuneRun:
    """The loss is measured on one window of the passage."""
    text = tmp_path / "text"
    text.write_text(PASSAGE.read_text(encoding="utf-8")[:_WINDOW_CHARS], encoding="utf-8")
    monkeypatch.setattr(tuning, "_TEXT", text)
    return TuneRun(tmp_path)


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this a processor with these instructions, and without a GPU."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr("llmasos.drivers.choice.measurement._CPU_INFO", path)
    monkeypatch.setattr("llmasos.drivers.llama.devices.seen", list)

    def write(names: str) -> None:
        path.write_text(f"model name : One\nflags : {names}\n")

    return write


def repacked(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(candidates.BY_FLAG, "avx2", names)


def patched(folder: Path, patch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes run these lines before their own."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(patch)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")


# Room for Q8_0 (54 MB) and Q4_0, and not for BF16 (102 MB).
SMALL_DISK = """
import shutil
from collections import namedtuple
shutil.disk_usage = lambda path: namedtuple("Usage", "free")(150_000_000)
"""


async def test_all_candidates_are_measured_and_the_chosen_file_is_kept(
    run: TuneRun, flags: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flags("avx2 avx512_bf16")
    repacked(("Q4_0",), monkeypatch)
    patched(tmp_path / "site", SMALL_DISK, monkeypatch)
    rows = await run.rows(engine="llama")
    original, q8, bf16, q4 = rows
    assert [row.quantisation for row in rows] == ["Q4_1", "Q8_0", "BF16", "Q4_0"]
    measured = (original, q8, q4)
    assert all(min(row.prompt, row.single, row.full, row.perplexity) > 0 for row in measured)
    assert {row.engine for row in measured} == {"llama"}
    assert (original.ratio, original.kl, original.made_from) == (1, 0, "")
    assert (q8.made_from, q4.made_from) == ("Q4_1", "Q4_1")
    assert 0 < q8.kl < q4.kl
    assert (bf16.full, bf16.chosen) == (0, False)
    assert "MB are needed" in bf16.why
    assert "150 MB are free" in bf16.why
    [best] = [row for row in rows if row.chosen]
    assert run.left == ([f"x-{best.quantisation}.gguf"] if best.made_from else [])
    stages = [one.stage for one in run.heard]
    assert set(stages) - {"measure loss"} == {"quantise", "measure speed"}
    assert {one.note for one in run.heard} == {
        "Q4_1 (original)", "Q8_0 (1 of 3)", "Q4_0 (3 of 3)",
    }  # fmt: skip


@pytest.mark.long
@needs_openvino
async def test_a_file_is_measured_on_the_engine_that_computes_it(
    run: TuneRun, flags: Callable[[str], None]
) -> None:
    flags("avx512_vnni")
    original, q8 = await run.rows("Q8_0", engine="openvino")
    assert {original.engine, q8.engine} == {"openvino"}
    assert 0 < original.kl < 0.1
    assert (q8.chosen, q8.why) == (True, "as requested")
    assert len(list(run.cache.iterdir())) == 2  # comparisons, which the next mount reads


@pytest.mark.long
@needs_openvino
async def test_what_openvino_refuses_is_measured_on_llama_cpp_or_an_error(
    run: TuneRun, flags: Callable[[str], None]
) -> None:
    flags("avx512_vnni")
    _, row = await run.rows("IQ4_NL")
    assert row.engine == "llama"
    assert min(row.prompt, row.single, row.full) > 0
    with pytest.raises(DeviceFault, match="OpenVINO cannot compute it"):
        await run.rows("IQ4_NL", engine="openvino")
    assert run.left == ["x-IQ4_NL.gguf"]


@pytest.mark.long
async def test_without_room_for_any_candidate_it_is_an_error(
    run: TuneRun, flags: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flags("none")
    patch = "from llmasos.kernel.abi import limits\nlimits.FREE_BYTES = 10**15\n"
    patched(tmp_path / "site", patch, monkeypatch)
    with pytest.raises(SyscallError, match="MB are needed") as caught:
        await run.rows(engine="llama")
    assert caught.value.errno is Errno.ENOSPC
    assert run.left == []


@pytest.mark.parametrize("stage", ["measure speed", "measure loss"])
async def test_a_tuning_that_is_cancelled_at_a_measurement_leaves_nothing(
    stage: str, run: TuneRun, flags: Callable[[str], None]
) -> None:
    flags("none")
    with anyio.CancelScope() as scope:

        def note(progress: Progress) -> None:
            if (progress.stage, progress.note) == (stage, "Q8_0"):
                assert len(list(run.folder.glob(".*.part/Q8_0.gguf"))) == 1
                scope.cancel()

        await run.rows("Q8_0", report=note, engine="llama")
    assert scope.cancelled_caught
    assert run.left == []


async def test_a_measurement_that_takes_too_long_is_an_error_and_leaves_nothing(
    run: TuneRun, flags: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags("none")
    monkeypatch.setattr(limits, "TUNE_S", 0.01)
    with pytest.raises(DeviceFault, match=r"took longer than 0\.01 s"):
        await run.rows("Q8_0", engine="llama")
    assert run.left == []


# --- figures ----------------------------------------------------------------------------------
def test_perplexity_is_the_exponential_of_the_mean_loss_of_second_halves() -> None:
    """Held against the slow way: one token after the other."""
    window = 32
    # One thread: for single tokens two only wait for each other. A GPU rounds lone rows otherwise.
    on: dict[str, Option] = {"slots": 1, "window": 256, "threads": 1, "gpu_layers": 0}
    settings = options.settings(cut_model.path(), gguf.read(cut_model.path()), on)
    model = load(settings)
    context = LlamaContext(model, settings)
    text = PASSAGE.read_text(encoding="utf-8")
    tokens = model.vocab.tokenize(text, special=False)[: 3 * window]
    losses: list[float] = []
    for begin in range(0, 3 * window, window):
        context.keep(0, 0)
        for at in range(window - 1):
            index = context.decode([Run(0, at, [int(tokens[begin + at])], asks=1)])[0]
            scores = context.logits(index).astype(np.float64)
            scores -= scores.max()
            if at >= window // 2:
                losses.append(np.log(np.exp(scores).sum()) - scores[tokens[begin + at + 1]])
    slow = math.exp(sum(losses) / len(losses))
    scorer = Scorer(model, settings, window)
    found = loss.compared(scorer, scorer, np.split(tokens, 3), lambda _: None)
    assert found["perplexity"] == pytest.approx(slow, 0.03)
    assert (found["perplexity"], found["kl"]) == (found["reference"], 0)


def test_divergence_is_that_of_two_distributions() -> None:
    chance = np.random.default_rng(1)

    class Given:
        def __init__(self) -> None:
            rows = chance.normal(size=(3, 5))
            exact = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
            self.rows: NDArray[np.float32] = exact.astype(np.float32)

        def likelihoods(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
            return self.rows

    ours, exact = Given(), Given()
    tokens = np.array([0, 1, 2, 3, 4, 0, 1, 2], np.int32)
    found = loss.compared(ours, exact, [tokens], lambda _: None)
    expected = sum(
        math.exp(p) * (p - q)
        for wanted, given in zip(exact.rows.tolist(), ours.rows.tolist(), strict=True)
        for p, q in zip(wanted, given, strict=True)
    )
    assert found["kl"] == pytest.approx(expected / 3, abs=1e-5)
    mean = -(ours.rows[0][0] + ours.rows[1][1] + ours.rows[2][2]) / 3
    assert found["perplexity"] == pytest.approx(math.exp(mean), 1e-5)


def test_the_passage_fills_the_windows() -> None:
    settings = options.settings(cut_model.path(), gguf.read(cut_model.path()), {})
    text = PASSAGE.read_text(encoding="utf-8")
    assert len(load(settings).vocab.tokenize(text, special=False)) >= 3 * WINDOW
