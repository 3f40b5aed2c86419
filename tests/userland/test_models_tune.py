"""`models tune` and `devices`: what people see of files and hardware."""

import json

import pytest

from llmasos.userland.cli import exits
from tests.conftest import Machine
from tests.drivers import cut_model

LIMIT_S = 110.0  # of a tuning with measurements: a guard against hangs


@pytest.fixture(scope="module")
def tuned(shared: Machine) -> Machine:
    shared.llmasos("models", "tune", "smollm2", "--no-measure")
    return shared


def test_a_tuned_model_is_shown_with_what_it_was(tuned: Machine) -> None:
    done = tuned.llmasos("models", "tune", "smollm2", "--no-measure")
    head, before, after = done.stdout.decode().splitlines()
    assert head.split()[:3] == ["TYPE", "SIZE", "ENGINE"]
    assert before.split()[:3] == ["Q4_1", "45.2", "MB"]
    assert after.split()[:4] == ["*", "Q8_0", "54.4", "MB"]
    assert after.endswith("as requested")
    assert b"made from the Q4_1 file, which is quantised itself" in done.stderr
    assert b"takes effect at the next mount" in done.stderr
    rows = tuned.llmasos("models", "list").stdout.decode().splitlines()
    assert any("smollm2" in row and "Q8_0, tuned" in row for row in rows)


def test_json_has_the_candidates(tuned: Machine) -> None:
    done = tuned.llmasos("models", "tune", "smollm2", "--no-measure", "--json")
    found = json.loads(done.stdout)
    assert [row["quantisation"] for row in found["candidates"]] == ["Q4_1", "Q8_0"]
    image = json.loads(tuned.llmasos("models", "show", "smollm2", "--json").stdout)
    assert image["tuned"] == found["path"]
    assert image["candidates"] == []  # nothing was measured


@pytest.mark.long
def test_what_was_measured_is_shown_later(machine: Machine) -> None:
    machine.start("--mount", "false")
    machine.llmasos("models", "add", "mine", str(cut_model.path()), "--set", "engine=llama")
    with machine.begin("models", "tune", "mine", "--to", "Q8_0") as tuning:
        output, error = tuning.communicate(timeout=LIMIT_S)
    assert tuning.returncode == 0, error.decode()
    head, before, after = output.decode().splitlines()
    assert head[head.index("ENGINE") :].split()[:2] == ["ENGINE", "PROMPT"]
    assert " - " not in before + after
    shown = machine.llmasos("models", "show", "mine").stdout.decode().splitlines()
    assert shown[-3:] == [head, before, after]
    assert shown[-4] == "measured by `llmasos models tune`:"
    machine.stop()
    machine.start("--mount", "false")
    image = json.loads(machine.llmasos("models", "show", "mine", "--json").stdout)
    original, new = image["candidates"]
    assert (original["engine"], original["ratio"]) == ("llama", 1)
    assert (new["made_from"], new["chosen"]) == ("Q4_1", True)


def test_an_unknown_quantisation_lists_the_known(shared: Machine) -> None:
    done = shared.llmasos("models", "tune", "smollm2", "--to", "q5_9", check=False)
    assert done.returncode == exits.FAILED
    assert b"Q5_9" in done.stderr
    assert b"Q5_K_M" in done.stderr


def test_words_that_exclude_each_other_are_refused(shared: Machine) -> None:
    done = shared.llmasos("models", "tune", "smollm2", "--small", "--off", check=False)
    assert done.returncode == exits.FAILED
    assert b"mutually exclusive" in done.stderr


def test_devices_shows_what_computes_before_what_is_mounted(shared: Machine) -> None:
    done = shared.llmasos("devices")
    lines = done.stdout.decode().splitlines()
    assert lines[0].split()[:2] == ["HARDWARE", "KIND"]
    assert lines[1].split()[:2] == ["cpu0", "cpu"]
    assert any(line.startswith("DEVICE") for line in lines)
    found = json.loads(shared.llmasos("devices", "--json").stdout)
    assert found["hardware"][0]["usable"] is True
    notes = [one["note"] for one in found["hardware"] if one["note"]]
    assert all(note.encode() in done.stderr for note in notes)


def test_devices_says_where_a_model_runs_and_why(machine: Machine) -> None:
    machine.start("--mount", "false")
    machine.llmasos("mount", "smollm2", "--set", "slots=1", "--set", "gpu_layers=0")
    done = machine.llmasos("devices")
    assert b"smollm2: cpu0: " in done.stderr
    (device,) = json.loads(machine.llmasos("devices", "--json").stdout)["devices"]
    assert device["on"] == "cpu0"
