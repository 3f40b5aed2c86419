"""Nothing that our wrapper can be asked ends the process: it is refused before C, or handled.

survival.py does each case in one interpreter of its own. Here stands what must become of each, and
what cannot be asked at all, with the reason.
"""

import os

import pytest

from tests.drivers import cut_model, survival_cases
from tests.drivers.survival_cases import ROOT

FAULT = "EIO: "
INVALID = "EINVAL: "
BECOMES = {
    "a_batch_over_its_size": FAULT + "the batch has 33 tokens; 1 to 32 are allowed",
    "a_batch_smaller_than_the_slots": "returned [0, 1, 2, 3, 4, 5, 6, 7]",
    "a_batch_of_2_to_31": INVALID + "invalid value 2147483648 for option batch",
    "an_empty_batch": FAULT + "the batch has no runs",
    "a_run_without_tokens": FAULT + "the batch has 0 tokens",
    "a_slot_that_is_not_there": FAULT + "no slot 4: the context has 4 slots",
    "a_negative_slot": FAULT + "no slot -1: the context has 4 slots",
    "a_token_that_is_not_there": FAULT
    + "a token id is out of range: the vocabulary has 0 to 49151",
    "a_negative_token": FAULT + "a token id is out of range: the vocabulary has 0 to 49151",
    "a_gap_in_the_positions": FAULT + "slot 0 has 0 tokens; a run cannot start at position 5",
    "a_position_twice": FAULT + "slot 0 has 2 tokens; a run cannot start at position 1",
    "logits_of_more_tokens_than_there_are": FAULT + "a run of 2 tokens asks for 3 logits",
    "a_slot_twice_in_a_batch": FAULT + "two of the 2 runs of a batch are of one slot",
    "a_full_slot": FAULT + "position 256 of slot 0 exceeds the window of 256 tokens",
    "a_closed_context": FAULT + "the context is closed",
    "a_context_closed_twice": "returned 'closed'",
    "two_threads_on_a_context": "returned 'the context is closed, or used by a second thread'",
    "a_context_of_257_slots": FAULT + "llama.cpp cannot create a context of 257 slots",
    "a_context_of_200_million_tokens": INVALID + "invalid value 200000000 for option window",
    "logits_that_were_not_asked_for": FAULT + "no logits at index 1",
    "a_choice_at_an_index_without_logits": FAULT + "no logits at index 31",
    "logits_of_the_batch_before": FAULT + "no logits at index 1",
    "a_sampler_told_a_token_that_is_not_there": FAULT + "the sampler cannot accept token 49152",
    "scores_that_are_no_numbers": FAULT + "the model returned logits that are not finite",
    "scores_without_a_finite_one": FAULT + "the model returned logits that are not finite",
    "a_bias_on_a_token_that_is_not_there": FAULT
    + "a biased token is out of range: the vocabulary has 0 to 49151",
    "a_forbidden_token_told_to_a_grammar": FAULT + "the grammar failed",
    "a_token_told_to_a_grammar_twice": FAULT + "the grammar failed",
    "top_k_of_one_beside_a_grammar": "returned '",
    "a_grammar_that_leaves_no_token": FAULT + "the grammar",
    "every_end_banned_and_nothing_else_allowed": "returned True",
    "a_bias_on_thousands_of_tokens": "returned True",
    "a_grammar_without_a_root": FAULT + "the grammar has no rule 'root'",
    "a_grammar_that_is_none": FAULT + "grammar, line 1, column 12",
    "a_left_recursive_grammar": "returned True",
    "a_chain_of_rules_deeper_than_a_stack": "returned True",
    "the_piece_of_a_token_that_is_not_there": FAULT + "token 49152",
    "the_piece_of_a_negative_token": FAULT + "token -1",
    "the_text_of_a_token_that_is_not_there": "returned ['', '', '']",
    "a_text_that_is_not_unicode": INVALID + "the text is not valid Unicode",
    "a_long_text_without_spaces": "returned True",
    "a_copy_onto_a_slot_that_is_not_there": FAULT + "no slot 9: the context has 4 slots",
    "a_copy_onto_a_slot_in_use": FAULT + "slot 1 is not empty",
    "keeping_of_a_slot_that_is_not_there": FAULT + "no slot 4: the context has 4 slots",
    "keeping_more_than_there_is": FAULT + "cannot keep 2 tokens",
    "keeping_fewer_than_none": FAULT + "cannot keep -1 tokens",
    "the_length_of_a_slot_that_is_not_there": FAULT + "no slot 4: the context has 4 slots",
    "saving_a_slot_that_is_not_there": FAULT + "no slot 4: the context has 4 slots",
    "loading_into_a_slot_that_is_not_there": FAULT + "no slot 4: the context has 4 slots",
    "an_empty_state": FAULT + "cannot load an empty state",
    "a_state_cut_short": FAULT + "cannot load a state of ",
    "a_state_of_random_bytes": FAULT + "cannot load a state of 50000 bytes",
    "a_state_whose_head_is_garbled": FAULT + "cannot load a state of ",
    "a_state_of_another_context": FAULT + "cannot load a state of ",
    "a_state_without_room": FAULT + "cannot load a state of ",
    "a_missing_file": FAULT + "llama.cpp cannot load /",
    "a_file_cut_short": FAULT + "llama.cpp cannot load /",
    "a_garbled_file": FAULT + "llama.cpp cannot load /",
    "a_log_line_after_the_collector_ran": FAULT + "llama.cpp cannot load /",
    "vectors_of_too_many_tokens_at_once": FAULT + "a piece has 1000 tokens; 1 to 128 are allowed",
    "vectors_over_the_window": FAULT + "position 256 exceeds the window of 256 tokens",
    "vectors_with_a_gap": FAULT + "0 tokens of the text are computed; a piece cannot start at 7",
    "vectors_of_a_token_that_is_not_there": FAULT
    + "a token id is out of range: the vocabulary has 0 to 49151",
}
# Known ways to end a process for which the wrapper has no words: call in llama.cpp, reason.
UNSPEAKABLE = {
    "llama_sampler_sample": "it chooses and takes note in one call; we apply and accept apart",
    "llama_sampler_init_grammar": "grammars are another library's, which refuses",
    "llama_model_free": "a model lives as long as its process, so no context outlives it",
    "llama_set_abort_callback": "there is none: a step is short",
    "llama_adapter_lora_init": "there are no adapters",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    words = [str(cut_model.path()), str(tmp_path_factory.mktemp("survival"))]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    return survival_cases.outcomes("tests.drivers.survival", words, environment)


@pytest.mark.parametrize("case", BECOMES)
def test_it_survives(case: str, outcomes: dict[str, str]) -> None:
    assert outcomes[case].startswith(BECOMES[case])


def test_it_is_alive_after_all_of_them(outcomes: dict[str, str]) -> None:
    assert outcomes.keys() == {*BECOMES, "alive"}
    assert outcomes["alive"]


def test_what_cannot_be_asked_is_not_called() -> None:
    sources = [path.read_text() for path in (ROOT / "drivers" / "llama").glob("*.py")]
    for call in UNSPEAKABLE:
        assert not any(f"lib.{call}(" in source for source in sources), call
