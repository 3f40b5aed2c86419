"""What computes here, what could, and where a model goes, with the reason."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from llmasos.drivers.llama import devices, options
from llmasos.drivers.llama import mount as llama
from llmasos.drivers.llama.devices import Seen
from llmasos.drivers.llama.library import amx_kernels, system_info
from llmasos.drivers.llama.placement import Placement, choose, place, without
from llmasos.drivers.local import gguf
from llmasos.drivers.local.processor import processor
from llmasos.kernel.abi.errors import SyscallError
from llmasos.kernel.abi.values import Hardware
from llmasos.userland import bootstrap
from tests.drivers.default_model import MODEL

CPU = Hardware("cpu0", "cpu", "a processor", 16 * 10**9, 8 * 10**9, usable=True, note="")
NONE: frozenset[str] = frozenset()
LAYERS, NEEDED = 31, 10**9


def gpu(number: int, free: int) -> Hardware:
    return Hardware(f"gpu{number}", "gpu", "a card", 10**10, free, usable=True, note="")


def file(root: Path, name: str, text: str = "") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# --- what there is ----------------------------------------------------------------------------
def test_the_processor_is_found_and_everything_has_a_name_of_its_own() -> None:
    found = llama.hardware()
    assert found[0].name == "cpu0"
    assert found[0].usable
    assert found[0].memory >= found[0].free > 0
    names = [one.name for one in found]
    assert len(set(names)) == len(names)
    assert all(one.note for one in found if not one.usable)
    assert "GGML_" not in found[0].note  # how to build for a GPU is told of a GPU that is there


def test_the_processor_is_described_without_llama() -> None:
    ours, theirs = processor(), llama.hardware()[0]
    assert replace(ours, free=0) == replace(theirs, free=0, note="")
    assert ours.memory >= ours.free > 0


def test_a_processor_without_a_name_is_described_too(tmp_path: Path) -> None:
    assert processor(tmp_path).description.startswith("processor, ")
    file(tmp_path, "meminfo", "MemTotal:  ? kB\n")
    assert (processor(tmp_path).memory, processor(tmp_path).free) == (0, 0)


def test_a_machine_without_a_card_shows_none(tmp_path: Path) -> None:
    assert devices.seen(tmp_path) == []


def test_a_card_of_nvidia_is_named_by_its_driver(tmp_path: Path) -> None:
    file(tmp_path, "proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t NVIDIA H100\n")
    file(tmp_path, "dev/nvidia0")
    file(tmp_path, "dev/dri/renderD128")
    file(tmp_path, "sys/class/drm/renderD128/device/vendor", "0x10de\n")
    assert devices.seen(tmp_path) == [Seen("NVIDIA", "NVIDIA H100")]


def test_a_container_shows_the_device_file_alone(tmp_path: Path) -> None:
    file(tmp_path, "dev/nvidia0")
    file(tmp_path, "dev/nvidiactl")
    assert devices.seen(tmp_path) == [Seen("NVIDIA", "NVIDIA GPU")]


def test_other_cards_are_known_by_their_vendor(tmp_path: Path) -> None:
    for number, vendor in ((128, "0x1002"), (129, "0x8086"), (130, "0x1af4")):
        file(tmp_path, f"dev/dri/renderD{number}")
        file(tmp_path, f"sys/class/drm/renderD{number}/device/vendor", f"{vendor}\n")
    file(tmp_path, "dev/kfd")
    assert [card.vendor for card in devices.seen(tmp_path)] == ["AMD", "Intel"]


@pytest.mark.parametrize(
    ("vendor", "flag"), [("NVIDIA", "CUDA"), ("AMD", "HIP"), ("Intel", "VULKAN")]
)
def test_a_card_that_this_build_cannot_use_is_listed_with_the_commands(
    vendor: str, flag: str
) -> None:
    one = devices.named([CPU], [Seen(vendor, "a card")], NONE)[1]
    assert (one.name, one.kind, one.usable) == ("gpu0", "gpu", False)
    assert f'CMAKE_ARGS="-DGGML_{flag}=on" PIP_NO_CACHE_DIR=1 make setup' in one.note
    assert f'CMAKE_ARGS="-DGGML_{flag}=on" pip install --force-reinstall' in one.note
    assert "--no-binary llama-cpp-python llama-cpp-python==" in one.note


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        ("CPU : AVX512 = 1 | AVX512_BF16 = 1 | AMX_INT8 = 1 | REPACK = 1 |", True),
        ("CPU : AVX512 = 1 | AVX512_VNNI = 1 | REPACK = 1 |", False),
        ("CPU : NEON = 1 | AMX_INT8 = 0 |", False),
    ],
)
def test_a_build_with_amx_kernels_is_known_by_its_system_info(build: str, expected: bool) -> None:
    assert amx_kernels(build) is expected


def test_our_own_build_leaves_out_kernels() -> None:
    """Those that end the engine on some processors, or are slow."""
    assert not amx_kernels(system_info())
    if "CMAKE_ARGS" in os.environ:
        pytest.skip("llama.cpp is built with the flags of the environment")
    assert bootstrap.is_built_as_wanted()
    assert devices.NO_AMX in bootstrap.CMAKE_ARGS
    assert devices.NO_AMX in devices.build_without_amx()


def test_a_card_that_llama_cpp_found_is_listed_once() -> None:
    found = [CPU, gpu(0, 10**9)]
    cards = [Seen("NVIDIA", "a card"), Seen("AMD", "another")]
    listed = devices.named(found, cards, frozenset({"CUDA"}))
    assert [(one.name, one.usable) for one in listed[1:]] == [("gpu0", True), ("gpu1", False)]


@pytest.mark.parametrize(("trained", "hinted"), [(512, {"window": 512}), (128, {})])
def test_the_hint_for_a_window_that_is_too_large_works(
    trained: int, hinted: dict[str, int]
) -> None:
    known = gguf.read(MODEL)
    header = replace(known, facts=replace(known.facts, context=trained))
    with pytest.raises(SyscallError, match=f"this model was trained for {trained}") as caught:
        options.settings(MODEL, header, {"window": 1024})
    given = re.findall(r"--set (window)=([0-9]+)", caught.value.hint)
    assert {name: int(value) for name, value in given} == hinted
    assert options.settings(MODEL, header, hinted).window == trained


# --- where a model goes -----------------------------------------------------------------------
def chosen(*gpus: Hardware, layers: int = -1, exact: bool = False) -> Placement:
    asked = {"gpu_layers": layers, "threads": 2, "deterministic": exact}
    settings = options.settings(MODEL, gguf.read(MODEL), asked)
    return choose(settings, [CPU, *gpus], LAYERS, NEEDED)


def test_a_model_that_fits_goes_to_the_card_whole() -> None:
    one = chosen(gpu(0, 4 * 10**9))
    assert (one.on, one.settings.gpu_layers, one.why) == ("gpu0", LAYERS, "all 31 layers")
    assert one.facts()["placement"] == "gpu0: llama.cpp; all 31 layers; 2 threads"


def test_as_many_layers_as_fit_go_there_and_the_numbers_are_said() -> None:
    spare = 512 * 1024**2
    one = chosen(gpu(0, spare + NEEDED // 4), gpu(1, spare + NEEDED // 4))
    assert (one.on, one.settings.gpu_layers) == ("gpu0, gpu1", 15)
    assert one.why == "15 of 31 layers: 953 MB are needed, 476 MB are free on gpu0, gpu1"


def test_a_full_card_leaves_the_model_to_the_processor() -> None:
    one = chosen(gpu(0, 10**6))
    assert (one.on, one.settings.gpu_layers) == ("cpu0", 0)
    assert "0 of 31 layers" in one.why


@pytest.mark.parametrize(
    ("asked", "on", "count", "why"),
    [
        (0, "cpu0", 0, "gpu_layers is 0"),
        (12, "gpu0", 12, "12 of 31 layers"),
        (99, "gpu0", 31, "all 31 layers"),
    ],
)
def test_what_a_person_asks_for_is_done(asked: int, on: str, count: int, why: str) -> None:
    one = chosen(gpu(0, 10**6), layers=asked)
    assert (one.on, one.settings.gpu_layers, one.why) == (on, count, why)


@pytest.mark.parametrize("layers", [0, 12])
def test_a_deterministic_engine_has_flash_attention_everywhere(layers: int) -> None:
    assert chosen(gpu(0, 10**10), layers=layers, exact=True).settings.flash
    assert chosen(gpu(0, 10**10), layers=layers).settings.flash


def test_why_there_is_no_card_to_use() -> None:
    assert without([CPU]) == "no GPU was found"
    listed = devices.named([CPU], [Seen("NVIDIA", "a card")], NONE)
    assert without(listed) == "this build of llama.cpp has no GPU support"


def test_this_machine_places_the_model_somewhere_that_it_found() -> None:
    one = place(options.settings(MODEL, gguf.read(MODEL), {}))
    assert set(one.on.split(", ")) <= {hardware.name for hardware in one.found}
