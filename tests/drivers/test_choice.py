"""The engines are compared on a file once, what OpenVINO may compute follows from it."""

import json
import os
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmasos.drivers.choice import comparison, measurement
from llmasos.drivers.choice.comparison import EngineComparison, verdict
from llmasos.drivers.choice.measurement import MeasuredFile
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault
from tests.drivers import cut_model, q8_model
from tests.drivers.gguf_files import as_iq4_nl

pytestmark = pytest.mark.anyio
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="it is not installed")
LONG_S = 120.0  # a guard against hangs, for a busy machine
ROOT = Path(__file__).resolve().parents[2]
# As measured with a file in Q8_0 and one in Q4_K_M.
FAST = EngineComparison("", "", 0.03, 0.95, 1047, 170, 567, 2789, 140, 1188)
SLOW_ALONE = EngineComparison("", "", 0.03, 0.95, 261, 58, 169, 469, 36, 221)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MEASURE_S", LONG_S)


class Asked:
    """Comparisons with one cache, and how often a process reported its progress."""

    def __init__(self, folder: Path) -> None:
        self.cache, self.log = folder / "cache", folder / "log"
        self.reports: list[float] = []

    async def compared(self, path: Path) -> EngineComparison:
        wanted = MeasuredFile(path, 1, self.log)
        return await measurement.compared(wanted, self.cache, self.reports.append)

    @property
    def stored(self) -> list[Path]:
        return list(self.cache.iterdir())


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path)


# --- what follows -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("found", "slots", "chosen", "why"),
    [
        (FAST, 16, True, "measured 1.0 x as fast as llama.cpp, 2.3 x with 16 sequences"),
        (FAST, 1, False, "measured 1.0 x as fast as llama.cpp"),
        (replace(FAST, openvino_single=170), 1, True, "measured 1.2 x as fast as llama.cpp"),
        (SLOW_ALONE, 1, False, "measured 0.8 x as fast as llama.cpp"),
        (SLOW_ALONE, 16, True, "measured 0.8 x as fast as llama.cpp, 1.5 x with 16 sequences"),
        (replace(SLOW_ALONE, openvino_full=90), 16, False, "measured 0.8 x"),
    ],
)
def test_the_faster_engine_for_the_slots_is_chosen(
    found: EngineComparison, slots: int, chosen: bool, why: str
) -> None:
    decided = verdict(found, slots)
    assert (decided.accepted, decided.chosen) == (True, chosen)
    assert decided.why.startswith(why)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (replace(FAST, difference=0.4, agreeing=0.2), "its logits differ from llama.cpp's by 40%"),
        (replace(FAST, agreeing=0.5), "50% of the most likely tokens are the same"),
        (replace(FAST, difference=float("nan")), "its logits differ"),
        (EngineComparison(refusal="no such type"), "no such type"),
    ],
)
def test_what_computes_something_else_is_not_accepted(found: EngineComparison, why: str) -> None:
    decided = verdict(found, 16)
    assert (decided.accepted, decided.chosen) == (False, False)
    assert why in decided.why


# --- measured and stored ----------------------------------------------------------------------
@needs_openvino
@pytest.mark.usefixtures("patience")
async def test_a_file_is_compared_once(q8: Path, asked: Asked) -> None:
    found = await asked.compared(q8)
    assert verdict(found, 16).accepted
    assert 0 < found.difference < 0.06
    assert min(found.llama_full, found.openvino_full) > 0
    assert asked.reports == sorted(asked.reports)
    [stored] = asked.stored
    assert comparison.read(json.loads(stored.read_text())) == found
    assert stored.stat().st_size < 1_000
    asked.reports.clear()
    assert await asked.compared(q8) == found
    assert asked.reports == []


def patched(folder: Path, patch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes run these lines before their own."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(patch)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{ROOT}")


GRAPH = "from llmasos.drivers.openvino import graph\n"


@needs_openvino
@pytest.mark.usefixtures("patience")
async def test_a_graph_that_is_wrong_is_not_accepted(
    q8: Path, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its queries and keys are turned as pairs that they are not."""
    patched(tmp_path / "site", GRAPH + "graph._Weight.reorder = lambda self: None", monkeypatch)
    found = await asked.compared(q8)
    assert found.difference > 0.3
    assert not verdict(found, 16).accepted


@needs_openvino
@pytest.mark.usefixtures("patience")
async def test_a_type_that_openvino_cannot_read_is_a_stored_refusal(
    asked: Asked, tmp_path: Path
) -> None:
    path = as_iq4_nl(await q8_model.make(cut_model.path(), tmp_path, "Q4_0"))
    found = await asked.compared(path)
    assert found.refusal.startswith("OpenVINO: its frontend cannot convert")
    assert "\n" not in found.refusal
    asked.reports.clear()
    assert (await asked.compared(path), asked.reports) == (found, [])


@needs_openvino
@pytest.mark.usefixtures("patience")
async def test_a_crash_of_openvino_is_a_stored_refusal(
    q8: Path, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = "import os, signal\ngraph.convert = lambda path: os.kill(os.getpid(), signal.SIGSEGV)"
    patched(tmp_path / "site", GRAPH + crash, monkeypatch)
    found = await asked.compared(q8)
    assert "SIGSEGV" in found.refusal
    assert len(asked.stored) == 1


async def test_what_llama_cpp_cannot_load_is_not_compared(asked: Asked, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(
        cut_model.path().read_bytes().replace(b"blk.3.attn_norm", b"blk.3.attn_morn")
    )
    with pytest.raises(DeviceFault, match="cannot load"):
        await asked.compared(broken)
    assert not asked.cache.exists()


async def test_a_comparison_that_takes_long_is_ended_and_tried_a_day_later(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MEASURE_S", 0.01)
    found = await asked.compared(cut_model.path())
    assert found.failure == "the comparison took longer than 0.01 s"
    [stored] = asked.stored
    stored.write_text(json.dumps(asdict(EngineComparison(failure="earlier"))))
    assert (await asked.compared(cut_model.path())).failure == "earlier"
    os.utime(stored, (0, 0))
    assert await asked.compared(cut_model.path()) == found


async def test_without_memory_for_both_engines_nothing_is_compared(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmasos.drivers.local.options.available_bytes", lambda: 100 * 1024 * 1024)
    with pytest.raises(DeviceFault, match=r"the comparison needs \d+ MB, 100 MB are free"):
        await asked.compared(cut_model.path())


async def test_a_cache_that_cannot_be_written_costs_a_comparison_only(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MEASURE_S", 0.01)
    asked.cache.touch()
    assert (await asked.compared(cut_model.path())).failure


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"refusal": 1}', '{"colour": "red"}', '{"difference": "0.1"}']
)
async def test_a_damaged_comparison_is_measured_again(
    text: str, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MEASURE_S", 0.01)
    asked.cache.mkdir()
    stored = asked.cache / f"{measurement.key(cut_model.path(), 1)}.json"
    stored.write_text(text)
    assert (await asked.compared(cut_model.path())).failure
    assert comparison.read(json.loads(stored.read_text())).failure


def test_a_comparison_holds_for_a_file_a_processor_and_the_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"one")
    other.write_bytes(b"two")
    keys = [measurement.key(one, 1), measurement.key(other, 1), measurement.key(one, 2)]

    def changed(name: str, value: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(measurement, name, value)
            keys.append(measurement.key(one, 1))

    def version(package: str) -> str:
        return "2026.5" if package == "openvino" else "0"

    cpu = tmp_path / "cpuinfo"
    cpu.write_text("processor : 0\nmodel name : Another\nflags : avx2 avx512_vnni\n\nflags : sse\n")
    changed("_CPU_INFO", cpu)
    changed("_CPU_INFO", tmp_path / "none")
    changed("_GRAPHS", 9)
    changed("version", version)
    assert len(set(keys)) == len(keys)
    assert measurement.key(one, 1) == keys[0]
    monkeypatch.setattr(measurement, "_CPU_INFO", cpu)
    assert measurement.processor() == ("Another", "avx2 avx512_vnni")
