"""Conversion to Q8_0 without llama.cpp: the same bits as llama.cpp writes."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmasos.drivers.llama.conversion import LlamaConversion
from llmasos.drivers.local import gguf, q8_0
from llmasos.drivers.local.q8_0 import Q8File
from tests.drivers import cut_model

DEADLINE_S = 120.0  # a guard against hangs


def by_llama_cpp(source: Path, wanted: str, target: Path) -> Path:
    LlamaConversion(source, wanted, lambda _: None).write(target)
    return target


def own(source: Path) -> bytes:
    file, target = Q8File(source), io.BytesIO()
    assert file.convertible
    file.convert(target, lambda _: None)
    assert len(target.getvalue()) == file.result_bytes
    return target.getvalue()


@pytest.mark.parametrize("quantisation", ["Q4_1", "Q4_0", "F16", "BF16", "F32"])
def test_a_file_is_converted_to_the_bits_of_llama_cpp(quantisation: str, tmp_path: Path) -> None:
    source = cut_model.path()
    if quantisation != "Q4_1":  # which it has
        source = by_llama_cpp(source, quantisation, tmp_path / "source.gguf")
    converted = tmp_path / "own.gguf"
    converted.write_bytes(own(source))
    assert gguf.probe(converted).quantisation == "Q8_0"
    expected = by_llama_cpp(source, "Q8_0", tmp_path / "expected.gguf")
    assert tensors(converted) == tensors(expected)


def tensors(path: Path) -> dict[str, tuple[int, bytes]]:
    """Type and data of each tensor."""
    file = Q8File(path)
    return {tensor.name: (tensor.kind, data) for tensor, data in file.data()}


def test_halves_are_rounded_away_from_zero() -> None:
    weights = np.zeros((1, 32), np.float32)
    weights[0, :6] = [127, 0.5, -0.5, 1.5, -2.5, 0.49999997]
    [block] = q8_0.quantised(weights.reshape(-1))
    assert block["weights"][:6].tolist() == [127, 1, -1, 2, -3, 0]
    assert block["scale"] == 1


def test_a_file_of_other_types_is_left_to_llama_cpp(tmp_path: Path) -> None:
    source = by_llama_cpp(cut_model.path(), "Q6_K", tmp_path / "source.gguf")
    assert not Q8File(source).convertible


def test_the_embedded_model_is_converted_without_llama_cpp(tmp_path: Path) -> None:
    code = (
        "import sys, runpy; sys.modules['llama_cpp'] = None; "
        "runpy.run_module('llmasos.drivers.llama.requantise', run_name='__main__')"
    )
    target = tmp_path / "x.gguf"
    command = [sys.executable, "-c", code, str(cut_model.path()), str(target), "Q8_0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as task:  # it ends with its stdin
        assert task.wait(DEADLINE_S) == 0
    assert gguf.probe(target).quantisation == "Q8_0"
