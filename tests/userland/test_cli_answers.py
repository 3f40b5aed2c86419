"""The command line on the embedded model: grammars, schemas, probabilities, bias, vectors."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest

from llmasos import LLMasOS
from llmasos.kernel.abi import limits
from llmasos.userland.cli import exits
from llmasos.userland.sdk.prompt import Options
from tests.conftest import Machine, documents


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine on which the embedded model is loaded as it is shipped."""
    machine = Machine(tmp_path_factory.mktemp("answers"))
    machine.sense()
    machine.environment["LLMASOS_TUNE"] = "false"
    try:
        yield machine
    finally:
        machine.down()


def ask(model: Machine, *words: str) -> dict[str, Any]:
    done = model.llmasos("run", "-m", "smollm2", "Is water wet?", "--temperature", "0", "--json",
                         *words)  # fmt: skip
    return documents(done)[0]


def test_an_answer_under_a_grammar(model: Machine, tmp_path: Path) -> None:
    file = tmp_path / "answer.gbnf"
    file.write_text('root ::= "yes" | "no"\n')
    told = ask(model, "--grammar", str(file))
    assert told["text"] in ("yes", "no")
    assert told["finish"] == "stop"
    assert "logprobs" not in told


def test_an_answer_under_a_schema(model: Machine, tmp_path: Path) -> None:
    file = tmp_path / "answer.json"
    file.write_text('{"type": "object", "properties": {"wet": {"type": "boolean"}},'
                    ' "required": ["wet"], "additionalProperties": false}')  # fmt: skip
    text = ask(model, "--schema", str(file))["text"]
    assert json.loads(text).keys() == {"wet"}


@pytest.mark.parametrize("flag", ["--schema", "--grammar"])
def test_a_cut_answer_with_a_form_is_a_failure(model: Machine, tmp_path: Path, flag: str) -> None:
    file = tmp_path / "form"
    schema = '{"type": "array", "items": {"type": "integer"}, "minItems": 50}'
    file.write_text(schema if flag == "--schema" else 'root ::= "[" ([0-9]+ ","){50,} "]"')
    words = ("run", "-m", "smollm2", "Count.", "--max-tokens", "5", flag, str(file))
    done = model.llmasos(*words, check=False)
    assert done.returncode == exits.FAILED
    told = done.stderr.decode()
    assert "the answer was cut off after 5 tokens and does not satisfy the" in told
    assert "--max-tokens" in told
    done = model.llmasos(*words, "--json", check=False)
    assert done.returncode == exits.FAILED
    assert json.loads(done.stdout)["finish"] == "length"
    assert json.loads(done.stderr)["errno"] == "EPROTO"
    chat = ("chat", "-m", "smollm2", "--max-tokens", "5", flag, str(file))
    done = model.llmasos(*chat, stdin="Count.\n", check=False)
    assert done.returncode == exits.FAILED
    assert b"the answer was cut off after 5 tokens" in done.stderr


def test_a_stop_string_in_an_answer_with_a_schema_cuts_it(model: Machine, tmp_path: Path) -> None:
    file = tmp_path / "answer.json"
    file.write_text('{"properties": {"wet": {"type": "boolean"}}, "required": ["wet"]}')
    words = ("run", "-m", "smollm2", "Is it?", "--schema", str(file), "--stop", ":", "--json")
    done = model.llmasos(*words, check=False)
    assert done.returncode == exits.FAILED
    assert json.loads(done.stdout)["finish"] == "length"


def test_probabilities_and_bias(model: Machine) -> None:
    first = ask(model, "--logprobs", "2", "--max-tokens", "3")["logprobs"]
    assert len(first) == 3
    assert [len(one["top"]) for one in first] == [2, 2, 2]
    chosen = first[0]["token"]
    told = ask(model, "--logprobs", "0", "--max-tokens", "3", "--bias", f"{chosen}=-100")
    other = told["logprobs"]
    assert chosen not in [one["token"] for one in other]
    assert other[0]["top"] == []


def test_a_bias_may_name_the_whole_vocabulary(model: Machine) -> None:
    """Every token but one is banned."""
    with _client(model) as client:
        [token] = client.tokenize("smollm2", " wet").tokens
        with client.spawn("smollm2", keep=False) as process:
            bias = {one: -100.0 for one in range(49_152) if one != token}
            reply = process.generate("Is water wet?", bias=bias, max_tokens=3, ignore_eos=True)
    assert reply.text == " wet wet wet"


def test_the_usage_shows_what_was_drafted(model: Machine) -> None:
    asked: Options = {"temperature": 0, "max_tokens": 60, "ignore_eos": True}
    asked["grammar"] = 'root ::= ("the red fox saw the owl; ")+'
    quickly: Options = {**asked, "lookup": True}
    plainly: Options = {**asked, "lookup": False}
    with _client(model) as client:
        ask = client.get_model("smollm2")
        quick = ask.generate("Repeat.", **quickly).usage
        plain = ask.generate("Repeat.", **plainly).usage
    assert quick.drafted_tokens >= quick.accepted_tokens > 20
    assert quick.completion_tokens == plain.completion_tokens == 60
    assert (plain.drafted_tokens, plain.accepted_tokens) == (0, 0)
    line = ("--temperature", "0", "--max-tokens", "60", "--lookup", "-v", "a b c d " * 20)
    assert b" drafted); queue " in model.llmasos("run", *line).stderr


def test_an_answer_under_a_schema_is_an_object(model: Machine) -> None:
    """Of a pydantic model and of a dataclass; an answer that was cut off is none."""
    with _client(model) as client:
        ask = client.get_model("smollm2")
        reply = ask.generate("Is water wet?", schema=Wet, temperature=0)
        assert isinstance(reply.parsed, Wet)
        told = ask.generate("Is water wet?", schema=Told, temperature=0)
        assert isinstance(told.parsed, Told)
        assert told.parsed.kind in ("yes", "no")
        cut = ask.generate("Is water wet?", schema=Told, temperature=0, max_tokens=2)
        assert (cut.finish, cut.parsed) == ("length", None)
        assert ask.generate("Is water wet?", max_tokens=2).parsed is None


class Wet(pydantic.BaseModel):
    wet: bool


@dataclass
class Told:
    kind: Literal["yes", "no"]
    sure: bool


@pytest.mark.parametrize(
    "count",
    [
        limits.EMBED_TEXTS + 6,
        pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_more_texts_than_one_call_takes_become_vectors(model: Machine, count: int) -> None:
    texts = [f"word {number % 100}" for number in range(count)]
    with _client(model) as client:
        vectors = client.embed("smollm2", texts)
        assert client.embed("smollm2", texts[-1]) == [pytest.approx(vectors[-1], abs=1e-3)]
    assert len(vectors) == count
    assert len({len(vector) for vector in vectors}) == 1


def _client(model: Machine) -> LLMasOS:
    model.llmasos("mount", "smollm2", check=False)  # it starts a daemon at need
    return LLMasOS(socket=model.paths.socket, profile="operator")


def test_vectors_of_words_and_of_lines(model: Machine) -> None:
    one, two = documents(model.llmasos("embed", "-m", "smollm2", "hello", "world"))
    assert (one["text"], two["text"]) == ("hello", "world")
    assert sum(value * value for value in one["vector"]) == pytest.approx(1, abs=1e-4)
    [piped] = documents(model.llmasos("embed", "-m", "smollm2", stdin="\nhello\n"))
    assert piped == one


@pytest.mark.parametrize(
    ("content", "flag", "words"),
    [
        ("root ::= foo", "--grammar", "line 1, column 10: rule 'foo' is not defined"),
        ('{"type": "foo"}', "--schema", "refused at /: type is 'foo'"),
        ("{", "--schema", "line 1 column 2"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    model: Machine, tmp_path: Path, content: str, flag: str, words: str
) -> None:
    file = tmp_path / "file"
    file.write_text(content)
    done = model.llmasos("run", "-m", "smollm2", "hi", flag, str(file), check=False)
    assert done.returncode == exits.FAILED
    assert words in done.stderr.decode()
    both = model.llmasos("run", "hi", "--grammar", str(file), "--schema", str(file), check=False)
    assert "a grammar and a schema" in both.stderr.decode()


def test_bad_files_and_tokens_are_refused(model: Machine, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    done = model.llmasos("run", "hi", "--grammar", missing, check=False)
    assert done.returncode == exits.NOT_FOUND
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    done = model.llmasos("chat", "--schema", str(binary), check=False)
    assert b"not valid UTF-8 at byte 0" in done.stderr
    done = model.llmasos("run", "hi", "--bias", "999999=1", check=False)
    assert b"bias of token 999999: 0 to 49151 exist" in done.stderr
    done = model.llmasos("embed", "-m", "echo", "hi", check=False)
    assert b"ENOTSUP" in done.stderr
    done = model.llmasos("embed", "word " * 3000, check=False)
    assert done.returncode == exits.MEMORY
    assert b"text 1 of 1 has 3001 tokens" in done.stderr


def test_a_deterministic_answer_asks_for_a_deterministic_mount(model: Machine) -> None:
    done = model.llmasos("run", "hi", "--deterministic", check=False)
    assert done.returncode == exits.FAILED
    assert b"`llmasos mount smollm2 --deterministic`" in done.stderr
