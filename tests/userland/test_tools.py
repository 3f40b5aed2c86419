"""A process's memory as tools for its own model."""

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from llmasos import Errno, LLMasOS, SyscallError
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.values import Kind
from llmasos.userland.sdk import tools as tools_file
from llmasos.userland.sdk.blocking import Process
from llmasos.userland.sdk.tools import DEFAULT_TOOLS, TOOLS, listed
from tests.conftest import Machine


@pytest.fixture
def process(shared: Machine) -> Iterator[Process]:
    with (
        LLMasOS(socket=shared.paths.socket, profile="operator") as client,
        client.spawn("echo", keep=False) as process,
    ):
        yield process


def test_what_is_written_down_is_found_and_read(process: Process) -> None:
    tools = process.memory_tools()
    said = {"text": "The cabin's key lies below the blue pot.", "key": "cabin"}
    assert tools.call({"name": "write_mem", "arguments": said}) == "written as page 0"
    found = tools.call('{"name": "search_mem", "arguments": {"question": "Where is the key?"}}')
    assert "page 0" in found
    assert "blue pot" in found
    for arguments in ({"page": 0}, {"key": "cabin"}):
        assert "blue pot" in tools.call({"name": "read_mem", "arguments": arguments})
    assert tools.call({"name": "pin", "arguments": {"page": 0}}) == "done"
    assert process.read_mem()[0].pinned
    assert "EBUSY" in tools.call({"name": "evict", "arguments": {"page": 0}})
    assert tools.call({"name": "pin", "arguments": {"page": 0, "pinned": False}}) == "done"
    assert tools.call({"name": "evict", "arguments": {"page": 0}}) == "done"


def test_arguments_may_be_a_text_as_openais_models_give_them(process: Process) -> None:
    call = {"name": "write_mem", "arguments": json.dumps({"text": "a note"})}
    assert process.memory_tools().call(call) == "written as page 0"


def test_pages_are_shared_sent_mapped_and_erased_where_that_is_allowed(
    process: Process, shared: Machine, tmp_path: object
) -> None:
    tools = process.memory_tools(list(TOOLS))
    tools.call({"name": "write_mem", "arguments": {"text": "Tangerine opens the vault."}})
    with LLMasOS(socket=shared.paths.socket) as client, client.spawn("echo") as other:
        shared_as = tools.call({"name": "share", "arguments": {"page": 0, "to": other.pid}})
        assert shared_as == f"process {other.pid} has it as page 0"
        tools.call({"name": "send", "arguments": {"to": other.pid, "body": "read page 0"}})
        heard = other.memory_tools(["recv"]).call({"name": "recv", "arguments": {}})
        assert heard.endswith("read page 0")
        assert "1 page erased" in tools.call({"name": "forget", "arguments": {"page": 0}})
        assert other.read_mem() == []
    document = f"{tmp_path}/notes.md"
    with open(document, "w", encoding="utf-8") as file:
        file.write("The harbour closes at nine.")
        theirs = tools.call({"name": "mmap", "arguments": {"source": f"/proc/{other.pid}/mem"}})
        assert theirs.startswith("error EINVAL: source=")
        assert "must be /files/PATH" in theirs
    mapped = tools.call({"name": "mmap", "arguments": {"source": f"/files{document}"}})
    assert mapped == "pages 1 to 1"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("not json", "not JSON"),
        ("[]", "must be a JSON object"),
        ('{"name": "shell", "arguments": {}}', "no tool 'shell'; available: search_mem"),
        ('{"name": "forget", "arguments": {"page": 0}}', "no tool 'forget'"),
        ('{"name": "pin"}', "'page' is missing"),
        ('{"name": "pin", "arguments": {"page": 0, "pid": 1}}', "unknown argument 'pid'"),
        ('{"name": "pin", "arguments": {"page": "first"}}', "EINVAL"),
        ('{"name": "pin", "arguments": "{"}', "`arguments` is not JSON"),
        ('{"name": "pin", "arguments": [0]}', "`arguments` must be"),
        ('{"name": "pin", "arguments": {"page": 7}}', "ENOENT"),
        ('{"name": "search_mem", "arguments": {"question": ""}}', "EINVAL"),
        (
            '{"name": "search_mem", "arguments": {"question": "x", "count": 21}}',
            "count=21: must be from 1 to 20",
        ),
        ('{"name": "pin", "arguments": {"page": -1}}', "page=-1: must be at least 0"),
        ('{"name": "read_mem", "arguments": {}}', "give `page` or `key`"),
        ('{"name": "read_mem", "arguments": {"key": ""}}', "give `page` or `key`"),
    ],
)
def test_what_is_wrong_with_a_call_is_told_to_the_model(
    process: Process, call: str, words: str
) -> None:
    said = process.memory_tools().call(call)
    assert said.startswith("error ")
    assert words in said


def test_what_the_table_says_of_a_value_is_in_the_schema(process: Process) -> None:
    tools = process.memory_tools(list(TOOLS))
    parts = {one["function"]["name"]: one["function"]["parameters"] for one in tools.definitions}
    assert parts["mmap"]["properties"]["source"]["pattern"] == "^/files/."
    assert parts["recv"]["properties"]["timeout_s"]["maximum"] == 60
    said = tools.call({"name": "recv", "arguments": {"timeout_s": 61}})
    assert said == "error EINVAL: timeout_s=61: must be from 0 to 60"


def test_a_search_leaves_out_what_the_model_sees(process: Process) -> None:
    question = "Where is the key of the cabin?"
    process.generate(question)
    tools = process.memory_tools()
    search = {"name": "search_mem", "arguments": {"question": question}}
    assert process.search_mem(question).hits
    assert tools.call(search) == "nothing found outside the window"
    process.write_mem("The cabin's key lies below the blue pot.")
    (line,) = tools.call(search).splitlines()
    assert line.endswith("blue pot.")


def test_a_summary_is_marked_as_one() -> None:
    page = v.Page(
        3, 0, "ann", Kind.SUMMARY, "chat", 0.0, "", "", 4, "They talked of tea.", [], False,
        v.Where.STORE, 0, "",
    )  # fmt: skip
    assert listed([page]) == "page 3, chat (summary): They talked of tea."


def test_a_name_that_is_no_tool_is_refused(process: Process) -> None:
    for names in (["shell"], []):
        with pytest.raises(SyscallError) as caught:
            process.memory_tools(names)
        assert caught.value.errno is Errno.EINVAL


@pytest.mark.timeout(300)
def test_the_embedded_model_can_only_say_a_call(machine: Machine) -> None:
    machine.sense()
    # What it answers freely may fill the window: a small one bounds that.
    machine.start("--mount", "false", "--tune", "false", "--window", "256")
    with LLMasOS(socket=machine.paths.socket) as client, client.spawn("smollm2") as process:
        process.write_mem("The spare key lies under the blue flower pot.")
        tools = process.memory_tools(["search_mem"])
        assert [one["function"]["name"] for one in tools.definitions] == ["search_mem"]
        lines = [line for line in (tools_file.__doc__ or "").splitlines() if line[:4] == " " * 4]
        assert len(lines) == 4
        names: dict[str, Any] = {"process": process}
        exec(textwrap.dedent("\n".join(lines)), names)
        assert json.loads(names["call"])["name"] in DEFAULT_TOOLS
        spoken = [page.text for page in process.read_mem() if page.kind is Kind.USER]
        assert spoken[0] == names["ask"]
        assert spoken[1].startswith("Result: ")
        assert "error" not in spoken[1]
        asked = "Search your memory for the spare key."
        said = process.generate(asked, schema=tools.schema, temperature=0, max_tokens=80).text
        assert json.loads(said)["name"] == "search_mem"
        result = tools.call(said)
        assert not result.startswith("error"), (said, result)
        every = process.memory_tools(DEFAULT_TOOLS)
        said = process.generate(asked, schema=every.schema, temperature=0, max_tokens=40).text
        # How long the argument becomes is up to the model: the call may be cut here.
        # White space may stand between any two tokens of JSON.
        name = re.match(r'\{\s*"name"\s*:\s*"(\w+)"\s*,\s*"arguments"\s*:\s*\{', said)
        assert name is not None, said
        assert name[1] in DEFAULT_TOOLS
