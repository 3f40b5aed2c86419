"""A model file is computed by the better engine that can, and says why."""

import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmasos.drivers import model_files
from llmasos.drivers.local import options
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.driver import Option
from tests.drivers import contract, cut_model, q8_model
from tests.drivers.default_model import MODEL
from tests.drivers.gguf_files import as_iq4_nl
from tests.drivers.rig import Rig

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed"),
]
SMALL: dict[str, Option] = {**contract.SMALL, "threads": 1}
MEGA = 1024 * 1024


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that lists the processor: one with the instructions, on each machine."""
    path = tmp_path / "cpuinfo"
    path.write_text("model name : One\nflags : avx2 avx512_vnni\n")
    monkeypatch.setattr("llmasos.drivers.choice.measurement._CPU_INFO", path)
    monkeypatch.setattr("llmasos.drivers.llama.devices.seen", list)
    return path


async def placed(path: Path, folder: Path, **chosen: Option) -> str:
    """Where a file is computed and why; it answers."""
    async with Rig(model_files, path, folder / "log", **{**SMALL, **chosen}) as rig:
        assert (await rig.run(await rig.prompt())).last.error is None
        return rig.facts.placement


async def refused(path: Path, folder: Path, **chosen: Option) -> SyscallError:
    with pytest.raises(SyscallError) as error:
        await Rig(model_files, path, folder / "log", **{**SMALL, **chosen}).__aenter__()
    return error.value


# --- choosing ---------------------------------------------------------------------------------
async def test_without_a_comparison_the_type_and_the_architecture_decide(
    q8: Path, tmp_path: Path
) -> None:
    why = "not compared, the setting tune is false"
    assert await placed(q8, tmp_path) == f"cpu0: OpenVINO; 1 threads; {why}"
    found = await placed(cut_model.path(), tmp_path)
    assert found.startswith("cpu0: llama.cpp; ")
    assert found.endswith(f"; 1 threads; not OpenVINO: {why}")


async def test_the_option_engine_decides(q8: Path, tmp_path: Path) -> None:
    found = await placed(q8, tmp_path, engine="llama")
    assert found.startswith("cpu0: llama.cpp; ")
    assert found.endswith("; as the option engine requests")
    found = await placed(cut_model.path(), tmp_path, engine="openvino")
    assert found == "cpu0: OpenVINO; 1 threads; as the option engine requests"


async def test_the_engines_are_compared_at_the_first_mount(
    q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MEASURE_S", 120.0)
    stages: list[str] = []

    def note(_done: float, stage: str = "load") -> None:
        stages.append(stage)

    for _ in range(2):
        rig = Rig(model_files, q8, tmp_path / "log", **SMALL)
        rig.engine = model_files.engine(q8, SMALL, tmp_path / "log", tmp_path / "cache")
        monkeypatch.setattr(rig.ear, "loading", note)
        async with rig:
            assert "measured " in rig.facts.placement
            assert (await rig.run(await rig.prompt())).last.error is None
        stages.append("up")
    first, second = stages[: stages.index("up")], stages[stages.index("up") :]
    assert first[0] == "measure"
    assert "measure" not in second


@pytest.mark.parametrize(
    ("chosen", "why"),
    [({"flash": False}, "option flash is llama.cpp's"), ({"gpu_layers": 0}, "option gpu_layers")],
)
async def test_options_of_llama_cpp_are_for_llama_cpp(
    chosen: dict[str, Option], why: str, q8: Path, tmp_path: Path
) -> None:
    assert f"not OpenVINO: {why}" in await placed(q8, tmp_path, **chosen)
    with pytest.raises(SyscallError, match="unknown option"):
        model_files.check({**chosen, "engine": "openvino"})


@pytest.mark.parametrize("engine", ["", "vllm", 1, True])
def test_an_engine_that_does_not_exist_is_refused_with_those_that_do(engine: Option) -> None:
    with pytest.raises(SyscallError, match="for option engine") as error:
        model_files.check({"engine": engine})
    assert error.value.errno is Errno.EINVAL
    assert error.value.hint == "engine is auto, llama, openvino"


async def test_a_processor_without_the_instructions_stays_with_llama_cpp(
    q8: Path, tmp_path: Path, processor: Path
) -> None:
    processor.write_text("model name : Two\nflags : avx2\n")
    assert "not OpenVINO: this processor has no avx512_vnni" in await placed(q8, tmp_path)


# --- a package that is missing or too old -----------------------------------------------------
def install(folder: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package openvino of this version before the installed one."""
    (folder / "openvino").mkdir(parents=True)
    (folder / "openvino" / "__init__.py").touch()
    described = folder / f"openvino-{version}.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(f"Name: openvino\nVersion: {version}\n")
    monkeypatch.setattr("sys.path", [str(folder), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(folder))


async def test_a_package_that_is_too_old_is_not_used(
    q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "old", "2025.4.1", monkeypatch)
    old = "openvino 2025.4.1 is too old: 2026.4 or later is required"
    assert (await placed(q8, tmp_path)).endswith(f"; not OpenVINO: {old}")
    with pytest.raises(SyscallError, match=old) as error:
        model_files.check({"engine": "openvino"})
    assert error.value.errno is Errno.ENOTSUP
    assert "`pip install --upgrade openvino`" in error.value.hint


async def test_a_package_without_what_is_needed_is_replaced_by_llama_cpp(
    q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It claims to be recent, and has neither the frontend nor paged attention."""
    install(tmp_path / "other", "2026.9.0", monkeypatch)
    found = await placed(q8, tmp_path)
    assert found.startswith("cpu0: llama.cpp; ")
    assert "; not openvino: " in found
    assert "ImportError" in found


def test_a_package_that_is_missing_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(_name: str) -> None:
        return None

    monkeypatch.setattr(model_files, "find_spec", find)
    with pytest.raises(SyscallError, match="the package openvino is not installed"):
        model_files.check({"engine": "openvino"})
    model_files.check({"engine": "auto"})


# --- files and memory -------------------------------------------------------------------------
async def test_a_type_that_openvino_cannot_read_is_computed_by_llama_cpp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_iq4_nl(await q8_model.make(cut_model.path(), tmp_path, "Q4_0"))
    monkeypatch.setattr(model_files, "_FAST", {"IQ4_NL"})
    found = await placed(path, tmp_path)
    assert found.startswith("cpu0: llama.cpp; ")
    assert "; not openvino: OpenVINO: its frontend cannot convert" in found
    error = await refused(path, tmp_path, engine="openvino")
    assert "its frontend cannot convert" in error.message


async def test_a_damaged_header_is_refused_before_any_engine(q8: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(q8.read_bytes()[:100_000])
    error = await refused(broken, tmp_path)
    assert error.errno is Errno.EINVAL
    assert not (tmp_path / "log").exists()


async def test_a_file_that_no_engine_loads_has_the_words_of_both(q8: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(q8.read_bytes().replace(b"blk.3.attn_norm", b"blk.3.attn_morn"))
    error = await refused(broken, tmp_path)
    assert isinstance(error, DeviceFault)
    assert "openvino: OpenVINO: " in error.message
    assert "llama: llama.cpp cannot load" in error.message


async def test_a_window_over_the_trained_length_is_refused(q8: Path, tmp_path: Path) -> None:
    error = await refused(q8, tmp_path, window=8448)
    assert error.errno is Errno.EINVAL
    assert "8448 tokens, this model was trained for 8192" in error.message


async def test_what_fits_llama_cpp_only_is_computed_by_it(
    q8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO has the weights twice while it loads."""
    free = 256 * MEGA + q8.stat().st_size * 3 // 2
    monkeypatch.setattr(options, "available_bytes", lambda: free)
    found = await placed(q8, tmp_path)
    assert found.startswith("cpu0: llama.cpp; ")
    assert "; not openvino: " in found
    assert f"{free // MEGA} MB are free" in found


async def test_what_fits_no_engine_is_refused_with_the_numbers_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "_FAST", {"Q4_1"})
    monkeypatch.setattr(options, "available_bytes", lambda: 200 * MEGA)
    error = await refused(MODEL, tmp_path)
    assert error.errno is Errno.ENOMEM
    assert error.message.count("200 MB are free") == 2
    assert "fewer slots or a smaller window" in error.hint


# --- restarts ---------------------------------------------------------------------------------
async def test_a_restart_keeps_the_engine(q8: Path, tmp_path: Path) -> None:
    async with Rig(model_files, q8, tmp_path / "log", **SMALL) as rig:
        before = rig.facts.placement
        os.kill(rig.facts.os_pid, signal.SIGSEGV)
        await rig.ear.until(lambda: rig.ear.ups == 2)
        assert rig.facts.placement == before
        assert "OpenVINO" in before
        assert (await rig.run(await rig.prompt())).last.error is None
