"""A process's memory as tools for its model.

A program has the model generate a call, makes the call, and sends the result to the model:

    tools = process.memory_tools()
    ask = "Where is the key? Look it up."
    call = process.generate(ask, schema=tools.schema, temperature=0).text
    process.generate(f"Result: {tools.call(call)}\\nNow answer.")

`definitions` has the form of OpenAI's `tools`, for endpoints that support it. `schema` is the JSON
schema of one call, `{"name": ..., "arguments": {...}}`, to constrain a local model's output to it.
Tools act on their own process only: they read, write and erase its pages. `share` and `send` reach
other processes and are authorised like any other call. `forget` erases a shared page in every
process that has it.
"""

import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError

from .memory import MemoryCalls, SearchOptions

_PAGE = {"type": "integer", "minimum": 0, "description": "number of a page"}
_TEXT = {"type": "string", "minLength": 1}
_PID = {"type": "integer", "minimum": 1, "description": "number of a process"}
_HITS = 5  # pages that a search returns by default
_COUNT = {"type": "integer", "minimum": 1, "maximum": 20}
_SOURCE = {"type": "string", "pattern": "^/files/.", "description": "/files/PATH"}
_KEY = {"type": "string", "description": "a short name to read it by"}
_LONGEST_S = 60.0  # a model may wait for a message
_WAIT_S = {"type": "number", "minimum": 0, "maximum": _LONGEST_S, "description": "seconds to wait"}
# Tools that erase pages or reach beyond the process's own pages must be named explicitly.
DEFAULT_TOOLS = ("search_mem", "read_mem", "write_mem", "pin", "evict")

Arguments = dict[str, Any]
Do = Callable[[MemoryCalls, int, Arguments], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Tool:
    """A syscall as a model sees it."""

    description: str
    properties: Mapping[str, Mapping[str, Any]]
    required: Sequence[str]
    do: Do

    @property
    def parameters(self) -> dict[str, Any]:
        """JSON schema of its arguments."""
        return {
            "type": "object",
            "properties": dict(self.properties),
            "required": list(self.required),
            "additionalProperties": False,
        }


async def _search(calls: MemoryCalls, pid: int, arguments: Arguments) -> str:
    # Only pages outside the window: the question itself and this call are inside it.
    options: SearchOptions = {"count": arguments.get("count", _HITS), "outside": True}
    found = await calls.search_mem(pid, arguments["question"], **options)
    return listed([hit.page for hit in found.hits]) or "nothing found outside the window"


async def _read(calls: MemoryCalls, pid: int, arguments: Arguments) -> str:
    if "page" in arguments:
        found = await calls.read_mem(pid, first=arguments["page"], count=1)
    elif arguments.get("key"):
        found = await calls.read_mem(pid, key=arguments["key"])
    else:
        raise SyscallError(Errno.EINVAL, "no page is named: give `page` or `key`")
    return listed(found.pages) or "no such page"


async def _write(calls: MemoryCalls, pid: int, arguments: Arguments) -> str:
    pages = await calls.write_mem(pid, **arguments)
    return f"written as page {', '.join(map(str, pages))}"


async def _pin(calls: MemoryCalls, pid: int, arguments: Arguments) -> str:
    await calls.pin(pid, arguments["page"], pinned=arguments.get("pinned", True))
    return "done"


async def _evict(calls: MemoryCalls, pid: int, arguments: Arguments) -> str:
    await calls.evict(pid, arguments["page"])
    return "done"


async def _mmap(calls: MemoryCalls, pid: int, arguments: Arguments) -> str:
    found = await calls.mmap(pid, **arguments, writable=False)
    return f"pages {found.first} to {found.first + found.count - 1}"


async def _share(calls: MemoryCalls, pid: int, arguments: Arguments) -> str:
    found = await calls.share(pid, arguments["to"], arguments["page"])
    return f"process {arguments['to']} has it as page {found.first}"


async def _forget(calls: MemoryCalls, pid: int, arguments: Arguments) -> str:
    found = await calls.forget(pid, arguments["page"])
    return f"{found.pages} page erased {found.note}".strip()


async def _send(calls: MemoryCalls, pid: int, arguments: Arguments) -> str:
    sent = await calls.send(arguments["to"], arguments["body"], sender=pid)
    return f"sent; {sent.waiting} messages wait in its mailbox"


async def _recv(calls: MemoryCalls, pid: int, arguments: Arguments) -> str:
    mail = await calls.recv(pid, arguments.get("timeout_s", 0.0))
    return f"from {mail.author} (process {mail.sender}): {mail.body}"


TOOLS = {
    "search_mem": Tool("Search pages outside the window by meaning.",
                       {"question": _TEXT, "count": _COUNT}, ["question"], _search),
    "read_mem": Tool("Read a page by its number or its key.",
                     {"page": _PAGE, "key": _KEY}, [], _read),
    "write_mem": Tool("Write a text to memory, to be found later.",
                      {"text": _TEXT, "key": _KEY}, ["text"], _write),
    "pin": Tool("Keep a page in the window; pinned false releases it.",
                {"page": _PAGE, "pinned": {"type": "boolean"}}, ["page"], _pin),
    "evict": Tool("Move a page out of the window; it returns when it is needed.",
                  {"page": _PAGE}, ["page"], _evict),
    "mmap": Tool("Map a document or a folder as pages.",
                 {"source": _SOURCE}, ["source"], _mmap),
    "share": Tool("Share a page with another process.",
                  {"page": _PAGE, "to": _PID}, ["page", "to"], _share),
    "forget": Tool("Erase a page permanently.", {"page": _PAGE}, ["page"], _forget),
    "send": Tool("Send a message to another process.",
                 {"to": _PID, "body": _TEXT}, ["to", "body"], _send),
    "recv": Tool("Read the oldest message that was sent to you.",
                 {"timeout_s": _WAIT_S}, [], _recv),
}  # fmt: skip


class AsyncMemoryTools:
    """Memory tools of one process. EINVAL for an unknown name, or for no name."""

    def __init__(self, calls: MemoryCalls, pid: int, names: Sequence[str] = DEFAULT_TOOLS) -> None:
        unknown = sorted(set(names) - set(TOOLS))
        if unknown or not names:
            what = f"no tool {unknown[0]!r}" if unknown else "no tool is named"
            raise SyscallError(Errno.EINVAL, what, f"available: {', '.join(TOOLS)}")
        self._calls, self._pid = calls, pid
        self._tools = {name: TOOLS[name] for name in names}

    @property
    def definitions(self) -> list[dict[str, Any]]:
        """The tools in the form of OpenAI's `tools`."""
        return [
            {"type": "function", "function": {
                "name": name, "description": tool.description, "parameters": tool.parameters,
            }}
            for name, tool in self._tools.items()
        ]  # fmt: skip

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of one call."""
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": tool.parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for name, tool in self._tools.items()
        ]
        return {"oneOf": calls}

    async def call(self, call: str | Mapping[str, Any]) -> str:
        """Make a call as the model wrote it. Returns the result as a text for the model.

        An invalid or denied call returns the error as text, so that the model can try again.
        Raises SyscallError only when the connection to the kernel is lost (EPIPE).
        """
        try:
            tool, arguments = self._read(call)
            return await tool.do(self._calls, self._pid, arguments)
        except SyscallError as error:
            if error.errno is Errno.EPIPE:
                raise
            return f"error {error}"

    def _read(self, call: str | Mapping[str, Any]) -> tuple[Tool, Arguments]:
        fields = _object(call, "a call")
        tool = self._tools.get(str(fields.get("name")))
        if tool is None:
            message = f"no tool {fields.get('name')!r}; available: {', '.join(self._tools)}"
            raise SyscallError(Errno.EINVAL, message)
        return tool, _checked(tool, _object(fields.get("arguments", {}), "`arguments`"))


def _object(value: object, what: str) -> Arguments:
    """A JSON object, or its text: OpenAI's models give arguments as a text. EINVAL."""
    try:
        found: object = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise SyscallError(Errno.EINVAL, f"{what} is not JSON: {error}") from error
    if not isinstance(found, Mapping):
        raise SyscallError(Errno.EINVAL, f"{what} must be a JSON object")
    return dict(cast("Mapping[str, Any]", found))


def _checked(tool: Tool, arguments: Arguments) -> Arguments:
    """EINVAL for a missing, unknown or out-of-range argument. The kernel checks the types."""
    missing = [name for name in tool.required if name not in arguments]
    unknown = [name for name in arguments if name not in tool.properties]
    if missing or unknown:
        what = f"{missing[0]!r} is missing" if missing else f"unknown argument {unknown[0]!r}"
        raise SyscallError(Errno.EINVAL, f"{what}; allowed: {', '.join(tool.properties)}")
    for name, value in arguments.items():
        _check_range(name, value, tool.properties[name])
    return arguments


def _check_range(name: str, value: object, schema: Mapping[str, Any]) -> None:
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    if isinstance(value, int | float) and not low <= value <= high:
        limits = f"from {low:g} to {high:g}" if high < math.inf else f"at least {low}"
        raise SyscallError(Errno.EINVAL, f"{name}={value}: must be {limits}")
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        what = schema.get("description", schema.get("pattern"))
        raise SyscallError(Errno.EINVAL, f"{name}={value!r}: must be {what}")


def listed(pages: Sequence[v.Page]) -> str:
    """Pages as text for the model, one line per page."""
    lines: list[str] = []
    for page in pages:
        day = datetime.fromtimestamp(page.time, UTC).strftime(", %Y-%m-%d") if page.time else ""
        mark = " (summary)" if page.kind is v.Kind.SUMMARY else ""
        lines.append(
            f"page {page.number}, {page.speaker or page.author}{mark}{day}: {page.text.strip()}"
        )
    return "\n".join(lines)
