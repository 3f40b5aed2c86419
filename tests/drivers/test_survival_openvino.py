"""Nothing that our wrapper of OpenVINO can be asked ends the process: it is refused, or handled.

survival_openvino.py does each case in one interpreter of its own. Here stands what must become of
each, and what cannot be asked at all, with the reason.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.drivers import q8_model, survival_cases
from tests.drivers.survival_cases import ROOT

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed"),
]
FAULT = "EIO: "
INVALID = "EINVAL: "
UNSUPPORTED = "ENOTSUP: OpenVINO: its frontend cannot convert "
NO_TOKEN = FAULT + "a token id is out of range: the vocabulary has 0 to 49151"
BECOMES = {
    "a_batch_over_its_size": FAULT + "the batch has 300 tokens; 1 to 288 are allowed",
    "an_empty_batch": FAULT + "the batch has no runs",
    "a_run_without_tokens": FAULT + "the batch has 0 tokens",
    "a_slot_that_is_not_there": FAULT + "no slot 4: the context has 4 slots",
    "a_negative_slot": FAULT + "no slot -1: the context has 4 slots",
    "a_token_that_is_not_there": NO_TOKEN,
    "a_negative_token": NO_TOKEN,
    "a_token_beyond_32_bits": NO_TOKEN,
    "a_gap_in_the_positions": FAULT + "slot 0 has 0 tokens; a run cannot start at position 5",
    "a_negative_position": FAULT + "slot 0 has 0 tokens; a run cannot start at position -1",
    "a_position_twice": FAULT + "slot 0 has 2 tokens; a run cannot start at position 1",
    "logits_of_more_tokens_than_there_are": FAULT + "a run of 2 tokens asks for 3 logits",
    "a_slot_twice_in_a_batch": FAULT + "two of the 2 runs of a batch are of one slot",
    "a_full_slot": FAULT + "position 256 of slot 0 exceeds the window of 256 tokens",
    "two_threads_on_a_context": "returned 'the context is used by a second thread'",
    "more_threads_than_there_are": "returned 0",
    "logits_that_were_not_asked_for": FAULT + "no logits at index 0",
    "logits_of_the_batch_before": FAULT + "no logits at index 1",
    "logits_after_a_refused_batch": "returned (49152,)",
    "more_tokens_than_the_pool_has": FAULT
    + "the step needs 1 KV blocks of 32 tokens, 0 of 3 are free",
    "what_did_not_fit_changed_nothing": "returned (32, 0, [1])",
    "two_writers_of_a_block": "returned (True, True)",
    "an_error_of_openvino": FAULT + "OpenVINO failed: ParameterMismatch",
    "a_shape_that_does_not_fit": FAULT + "OpenVINO failed: Can't set the input tensor",
    "a_copy_onto_a_slot_that_is_not_there": FAULT + "no slot 9: the context has 4 slots",
    "a_copy_onto_a_slot_in_use": FAULT + "sequence 1 is not empty",
    "keeping_of_a_slot_that_is_not_there": FAULT + "no slot 4: the context has 4 slots",
    "keeping_more_than_there_is": FAULT + "cannot keep 2 tokens",
    "keeping_fewer_than_none": FAULT + "cannot keep -1 tokens",
    "the_length_of_a_slot_that_is_not_there": FAULT + "no slot 4: the context has 4 slots",
    "saving_a_slot_that_is_not_there": FAULT + "no slot 4: the context has 4 slots",
    "loading_into_a_slot_that_is_not_there": FAULT + "no slot 4: the context has 4 slots",
    "loading_into_a_slot_in_use": FAULT + "sequence 0 is not empty",
    "blocks_of_another_context": FAULT + "cannot load a state of another context",
    "blocks_that_were_freed": FAULT + "cannot load a state that was freed",
    "blocks_freed_twice": "returned (3, [0])",
    "saved_blocks_that_outlive_their_slot": "returned True",
    "a_missing_file": UNSUPPORTED + "nowhere.gguf: Can not open file",
    "a_file_cut_short": UNSUPPORTED + "short.gguf: [load_gguf] tensor 'token_embd.weight' data",
    "a_garbled_file": UNSUPPORTED + "garbled.gguf: [load_gguf] unsupported GGUF version",
    "an_architecture_that_is_not_supported": UNSUPPORTED
    + "other.gguf: [GGUF] native GGUF builder does not support architecture 'lamas'",
    "a_window_over_the_trained_length": INVALID
    + "the window is 8448 tokens, this model was trained for 8192",
    "vectors_of_too_many_tokens_at_once": FAULT + "a piece has 1000 tokens; 1 to 128 are allowed",
    "vectors_over_the_window": FAULT + "position 256 exceeds the window of 256 tokens",
    "vectors_with_a_gap": FAULT + "0 tokens of the text are computed; a piece cannot start at 7",
    "vectors_of_a_token_that_is_not_there": NO_TOKEN,
}
# Known failures for which the wrapper has no words: name in OpenVINO, reason.
UNSPEAKABLE = {
    "import_model": "a compiled paged model cannot be imported: files are converted at each load",
    "ENABLE_SAGE_ATTN": "it requires instructions that few processors have",
    "set_shape": "a tensor is made for each step, of the size of its array",
}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def outcomes(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("survival")
    words = [str(q8_model.cut()), str(folder)]
    return survival_cases.outcomes("tests.drivers.survival_openvino", words, os.environ)


@pytest.mark.parametrize("case", BECOMES)
async def test_openvino_survives(case: str, outcomes: dict[str, str]) -> None:
    assert outcomes[case].startswith(BECOMES[case])


async def test_openvino_is_alive_after_all_of_them(outcomes: dict[str, str]) -> None:
    assert outcomes.keys() == {*BECOMES, "alive"}
    assert outcomes["alive"]


def test_what_cannot_be_asked_of_openvino_is_not_called() -> None:
    sources = [path.read_text() for path in Path(ROOT, "drivers", "openvino").glob("*.py")]
    for call in UNSPEAKABLE:
        assert not any(call in source for source in sources), call
