"""What programs give to the SDK and get from it: errors, types, schemas, prompts, reprs."""

import ast
import copy
import dataclasses
import inspect
import json
import pickle
import pydoc
import typing
from collections.abc import Callable, Iterator
from datetime import date, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest

import llmasos
from llmasos import (
    AsyncLLMasOS,
    AsyncModel,
    AsyncProcess,
    Busy,
    Denied,
    EngineFailed,
    Errno,
    LLMasOS,
    Model,
    NotFound,
    Process,
    SyscallError,
    Timeout,
    TooBig,
)
from llmasos.kernel.abi.errors import error_of
from llmasos.kernel.abi.wire import pack_error, unpack_reply
from llmasos.userland.protocol import error_from_frame
from llmasos.userland.sdk.memory import MemoryCalls
from llmasos.userland.sdk.prompt import messages, request
from llmasos.userland.sdk.schema import parser, schema_text
from tests.conftest import Machine
from tests.loaded import modules_after


@pytest.fixture
def client(shared: Machine) -> Iterator[LLMasOS]:
    with LLMasOS(socket=shared.paths.socket) as client:
        yield client


# --- errors -----------------------------------------------------------------------------------
CLASSES = {
    Errno.ENOENT: NotFound, Errno.ESRCH: NotFound, Errno.EACCES: Denied, Errno.EAGAIN: Busy,
    Errno.EBUSY: Busy, Errno.ETIMEDOUT: Timeout, Errno.E2BIG: TooBig, Errno.EPOISON: EngineFailed,
    Errno.EINVAL: SyscallError,
}  # fmt: skip


@pytest.mark.parametrize("errno", CLASSES)
def test_an_error_of_the_kernel_is_of_the_class_of_its_errno(errno: Errno) -> None:
    frame = pack_error(7, SyscallError(errno, "what happened", "what to do", call="ps", pid=3))
    error = error_from_frame(unpack_reply(frame[4:])[2], "")
    assert type(error) is CLASSES[errno]
    for same in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(same) is type(error)
        assert (same.errno, same.message, same.hint) == (errno, "what happened", "what to do")
        assert (same.call, same.pid) == ("ps", 3)
        assert repr(same) == f"{type(error).__name__}({errno.name}: what happened)"
        assert str(same) == f"{errno.name}: what happened\n  what to do"


def test_only_what_an_engine_failed_at_is_engine_failed() -> None:
    assert type(error_of(Errno.EIO, "the disk is full")) is SyscallError
    assert isinstance(error_of(Errno.ETIMEDOUT, "late"), TimeoutError)
    kinds = (NotFound, Denied, Busy, Timeout, EngineFailed, TooBig, llmasos.ForkError)
    assert all(issubclass(kind, SyscallError) for kind in kinds)


def test_people_catch_errors_by_their_classes(client: LLMasOS) -> None:
    with pytest.raises(NotFound):
        client.get_model("no-such-model")
    with pytest.raises(NotFound):
        client.spawn("no-such-model")
    with pytest.raises(Denied) as denied:
        client.shutdown()
    assert not denied.value.needs_approval
    with client.spawn("echo") as process:
        with pytest.raises(TimeoutError):
            process.wait(timeout_s=0.01)
        with pytest.raises(TooBig):
            process.generate("x" * 1_200_000)
        with pytest.raises(SyscallError) as odd:
            process.generate("x", bias={-1: 2.0})
        assert odd.value.errno is Errno.EINVAL
        assert process.generate("still here", temperature=0).text == "still here"
    with pytest.raises(NotFound):
        process.generate("gone")


# --- exports ----------------------------------------------------------------------------------
def test_every_public_name_is_there_and_importing_loads_nothing() -> None:
    for name in llmasos.__all__:
        assert getattr(llmasos, name) is not None
    heavy = {"pydantic", "anyio", "msgpack", "sqlite3", "httpx", "numpy"}
    assert modules_after("import llmasos") & heavy == set()
    assert "pydantic" not in modules_after("from llmasos import LLMasOS, Reply")


def test_both_clients_have_the_same_methods_with_docstrings() -> None:
    for there, here in ((AsyncProcess, Process), (AsyncModel, Model), (AsyncLLMasOS, LLMasOS)):
        for name, method in inspect.getmembers(there, inspect.isfunction):
            if not name.startswith("_") and name != "reap":
                assert inspect.getdoc(method), f"{there.__name__}.{name}"
                assert inspect.getdoc(getattr(here, name)), f"{here.__name__}.{name}"
                wanted = list(inspect.signature(method).parameters.values())
                found = list(inspect.signature(getattr(here, name)).parameters.values())
                assert [(one.name, one.kind, one.default) for one in found] == [
                    (one.name, one.kind, one.default) for one in wanted
                ], f"{here.__name__}.{name}"
    calls = {name for name, _ in inspect.getmembers(MemoryCalls, inspect.isfunction)}
    assert {name for name in calls if not name.startswith("_")} - {"fsck"} <= set(dir(Process))


@pytest.mark.parametrize(
    ("here", "there", "line"),
    [
        (Process.generate, AsyncProcess.generate, "generate(self, prompt: "),
        (Process.fork, AsyncProcess.fork, "fork(self, count: int = 1, "),
        (Model.chat, AsyncModel.chat, "chat(self, messages: "),
        (LLMasOS.spawn, AsyncLLMasOS.spawn, "spawn(self, model: str, "),
        (LLMasOS.write_mem, AsyncLLMasOS.write_mem, "write_mem(self, pid: int, text: str, "),
        (LLMasOS.watch, AsyncLLMasOS.watch, "watch(self, *, since: int | None = None, "),
    ],
)
def test_help_shows_the_one_docstring_and_the_signature_for_both_clients(
    here: Callable[..., object], there: Callable[..., object], line: str
) -> None:
    shown = pydoc.plain(pydoc.render_doc(here))
    assert line in shown
    assert "async" not in shown.split("\n")[2]
    assert inspect.getdoc(here) == inspect.getdoc(there)
    assert (inspect.getdoc(there) or "").splitlines()[-1] in shown


def docstrings(file: Path) -> set[str]:
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    found = {ast.get_docstring(node) for node in nodes if isinstance(node, FUNCTIONS)}
    return {text for text in found if text}


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def test_the_blocking_client_repeats_no_docstring_of_the_async_one() -> None:
    blocking = Path(inspect.getfile(LLMasOS))
    others = [file for file in blocking.parent.glob("*.py") if file != blocking]
    assert docstrings(blocking)
    assert docstrings(blocking) & set().union(*map(docstrings, others)) == set()


# --- memory, through the process --------------------------------------------------------------
def test_memory_calls_are_methods_of_a_process(client: LLMasOS, tmp_path: Path) -> None:
    with client.spawn("echo") as process, client.spawn("echo") as other:
        [page] = process.write_mem("the key is under the mat", key="key")
        process.pin(page)
        assert process.read_mem()[page].pinned
        process.pin(page, pinned=False)
        process.evict(page)
        assert process.trace_mem(page).page.text == "the key is under the mat"
        shared = process.share(other.pid, page)
        assert other.read_mem()[shared.first].text == "the key is under the mat"
        other.munmap(shared.first)
        assert other.read_mem() == []
        assert process.forget(key="key").pages == 1


def test_a_path_may_be_mapped(shared: Machine, tmp_path: Path) -> None:
    file = tmp_path / "a note.txt"
    file.write_text("The spare key is with Ann.")
    client = LLMasOS(socket=shared.paths.socket, profile="operator")
    with client, client.spawn("echo") as process:
        mapped = process.mmap(file)
        assert mapped.source == f"/files{file}"
        assert process.read_mem()[mapped.first].text == "The spare key is with Ann."
        process.munmap(mapped.first)


# --- prompts ----------------------------------------------------------------------------------
def test_content_parts_of_type_text_are_one_text(client: LLMasOS) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert [one.content for one in messages([{"role": "user", "content": parts}])] == ["one two"]
    model = client.get_model("echo")
    talk = [{"role": "user", "content": parts}]
    assert model.generate(talk, temperature=0).text == "one two"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"type": "image_url", "image_url": {"url": "x"}}], "'image_url'"),
        ([{"type": "input_audio"}], "'input_audio'"),
        ([{"type": "text"}], "no text"),
        (["plain"], "'str'"),
        (None, "NoneType"),
        (5, "int"),
    ],
)
def test_other_content_is_refused_by_name(content: Any, words: str) -> None:
    with pytest.raises(SyscallError, match=words) as caught:
        messages([{"role": "user", "content": content}])
    assert caught.value.errno is Errno.EINVAL


def test_stop_may_be_one_text(client: LLMasOS) -> None:
    reply = client.get_model("echo").generate("one two three", temperature=0, stop="two")
    assert reply.text == "one "
    assert request(1, "x", {"stop": "a"}).sampling.stop == ["a"]
    assert request(1, "x", {"stop": ("a", "b")}).sampling.stop == ["a", "b"]


# --- reprs ------------------------------------------------------------------------------------
def test_reprs_say_what_it_is(client: LLMasOS) -> None:
    assert repr(client).startswith("LLMasOS(app='")
    assert repr(client).endswith("profile='careful', connected)")
    model = client.get_model("echo")
    assert repr(model) == "Model('echo', image='echo', driver='echo')"
    with client.spawn("echo") as process:
        assert repr(process).startswith(f"Process(pid={process.pid}, model='echo', window=")
        assert repr(client.process(7)) == "Process(pid=7, keep=True)"
        answer = process.stream("one " * 50, temperature=0)
        assert repr(answer) == "Answer('', running)"
        assert "".join(answer)
        assert repr(answer).endswith("'..., complete)")
        assert repr(answer.reply).startswith("Reply('one one")
        assert "finish='stop', tokens=" in repr(answer.reply)
    client.close()
    assert "not connected" in repr(client)


# --- schemas ----------------------------------------------------------------------------------
class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Part:
    name: str
    parts: "list[Part]" = dataclasses.field(default_factory=lambda: list[Part]())


@dataclasses.dataclass
class Everything:
    text: str
    count: int
    share: float
    yes: bool
    nothing: None
    maybe: int | None
    either: int | str
    names: list[str]
    pair: tuple[int, str]
    many: tuple[float, ...]
    kinds: set[str]
    sizes: dict[str, int]
    word: Literal["a", 1]
    colour: Colour
    day: date
    moment: datetime
    noted: Annotated[int, "a note"]
    part: Part
    free: Any
    default: int = 7


GIVEN = {
    "text": "t", "count": 1, "share": 2, "yes": True, "nothing": None, "maybe": None, "either": "x",
    "names": ["a"], "pair": [1, "b"], "many": [1, 2.5], "kinds": ["k"], "sizes": {"s": 1},
    "word": "a", "colour": "red", "day": "2026-11-30", "moment": "2026-11-30T06:00:00",
    "noted": 3, "part": {"name": "p", "parts": [{"name": "q"}]}, "free": [1, {"a": None}],
}  # fmt: skip


def parsed(schema: Any, text: str) -> Any:
    parse = parser(schema)
    assert parse is not None
    return parse(text)


def test_a_dataclass_is_a_schema_and_comes_back() -> None:
    schema = json.loads(schema_text(Everything))
    fields = schema["$defs"]["Everything"]
    assert schema["$ref"] == "#/$defs/Everything"
    assert fields["required"] == [f.name for f in dataclasses.fields(Everything)][:-1]
    assert fields["additionalProperties"] is False
    assert fields["properties"]["colour"] == {"enum": ["red", "blue"]}
    assert fields["properties"]["maybe"] == {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    assert schema["$defs"]["Part"]["properties"]["parts"]["items"] == {"$ref": "#/$defs/Part"}
    made = parsed(Everything, json.dumps(GIVEN))
    assert made == Everything(
        "t", 1, 2.0, True, None, None, "x", ["a"], (1, "b"), (1.0, 2.5), {"k"}, {"s": 1}, "a",
        Colour.RED, date(2026, 11, 30), datetime(2026, 11, 30, 6), 3,
        Part("p", [Part("q", [])]), [1, {"a": None}], 7,
    )  # fmt: skip
    assert type(made.share) is float


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": "1"}, "count: '1' is not of type int"),
        ({"count": True}, "count: True is not of type int"),
        ({"names": [1]}, r"names\[0\]: 1 is not of type str"),
        ({"pair": [1]}, "pair: 1 items instead of 2"),
        ({"word": "b"}, "word"),
        ({"colour": "green"}, "green"),
        ({"part": {}}, "part: 'name' is missing"),
        ({"other": 1}, "unknown field 'other'"),
    ],
)
def test_an_answer_that_does_not_fit_is_a_value_error(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parsed(Everything, json.dumps(GIVEN | change))


def test_a_type_without_a_schema_is_named() -> None:
    wrong = dataclasses.make_dataclass("Wrong", [("socket", typing.Callable[[], None])])
    with pytest.raises(SyscallError, match=r"Wrong\.socket.*has no JSON schema") as caught:
        schema_text(wrong)
    assert caught.value.errno is Errno.EINVAL


def test_a_pydantic_model_and_a_plain_schema_are_taken() -> None:
    class Person(pydantic.BaseModel):
        name: str
        age: int = 3

    assert json.loads(schema_text(Person)) == Person.model_json_schema()
    assert parsed(Person, '{"name": "Ann"}') == Person(name="Ann")
    with pytest.raises(ValueError, match="name"):
        parsed(Person, "{}")
    assert schema_text('{"type": "null"}') == '{"type": "null"}'
    assert parsed({"type": "object"}, '{"a": 1}') == {"a": 1}
    assert parsed(list[Part], '[{"name": "x"}]') == [Part("x")]
    assert parser(None) is None
