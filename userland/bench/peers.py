"""Other servers and pipelines in child processes, and a fast client for them, to compare with.

The client speaks HTTP over plain sockets in this process, as the SDK runs in this process on our
side, so that only the server is measured. A peer that is not installed is `Absent`; the message
says how to install it.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from .answers import Crowded, TimedAnswer
from .rig import READY_S, STOP_S, RigError, ends_with_us
from .texts import Chat

HOST = "127.0.0.1"
LLAMA, PYTHON, GENAI = "llama.cpp server", "llama_cpp.server", "openvino-genai"
ENDS = ("<|im_end|>", "<|endoftext|>")  # of MODEL: forbidden where a server cannot ignore them
HEAD_BYTES = 65_536
_SETTINGS = ("n_ctx", "n_batch", "n_ubatch", "flash_attn", "logits_all", "cache")
_PRINT_SETTINGS = """
import json, sys
from llama_cpp.server.settings import ModelSettings, ServerSettings
settings = ModelSettings(model=sys.argv[1])
print(json.dumps({name: getattr(settings, name) for name in sys.argv[2:]}))
"""


class Absent(Exception):
    """A peer that did not start; usually it is not installed."""

    def __init__(self, peer: str, output: str) -> None:
        super().__init__(f"{peer} ({last_line(output)})")


@dataclass(frozen=True, slots=True)
class PeerServer:
    """A peer that is ready."""

    name: str
    port: int
    settings: Mapping[str, object]

    def together(self, chats: Sequence[Chat], new: int) -> list[TimedAnswer]:
        """Run all chats at once, streaming, with `new` greedy tokens each."""
        bodies = [{**_body(self.name), **_chat_body(chat, new)} for chat in chats]
        try:
            return anyio.run(_all, self.port, bodies)
        except ExceptionGroup as failed:
            raise RigError(f"{self.name}: {failed.exceptions[0]!r}") from failed


def _chat_body(chat: Chat, new: int) -> dict[str, object]:
    messages = [{"role": one.role, "content": one.content} for one in chat.messages]
    return {"messages": messages, "max_tokens": new}


def _body(name: str) -> dict[str, object]:
    plain: dict[str, object] = {"stream": True, "temperature": 0}
    if name == LLAMA:
        return {**plain, "ignore_eos": True, "stream_options": {"include_usage": True}}
    bias = dict.fromkeys(ENDS, -100)
    return {**plain, "model": "peer", "logit_bias": bias, "logit_bias_type": "tokens"}


# --- the client -------------------------------------------------------------------------------
async def _all(port: int, bodies: Sequence[Mapping[str, object]]) -> list[TimedAnswer]:
    answers = list[TimedAnswer]()
    async with anyio.create_task_group() as group:
        for body in bodies:
            answers.append(TimedAnswer(time.perf_counter()))
            group.start_soon(_one, port, json.dumps(body).encode(), answers[-1])
    return answers


async def _one(port: int, body: bytes, answer: TimedAnswer) -> None:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    texts = list[str]()
    async with await anyio.connect_tcp(HOST, port) as connection:
        await connection.send(head.encode() + body)
        async for event in _events(BufferedByteReceiveStream(connection)):
            for choice in event.get("choices", ()):
                text = choice["delta"].get("content")
                if text:
                    answer.arrived(time.perf_counter(), 1)
                    texts.append(text)
                answer.whole = answer.whole or choice.get("finish_reason") == "length"
            usage: dict[str, int] = event.get("usage") or {}
            answer.tokens = usage.get("completion_tokens", answer.tokens)
            answer.prompt_tokens = usage.get("prompt_tokens", answer.prompt_tokens)
    answer.ended = time.perf_counter()
    answer.text = "".join(texts)


async def _events(reader: BufferedByteReceiveStream) -> AsyncGenerator[dict[str, Any]]:
    """The events of a chunked answer, up to [DONE]."""
    head = await reader.receive_until(b"\r\n\r\n", HEAD_BYTES)
    status, _, rest = head.partition(b"\r\n")
    if b" 200 " not in status or b"chunked" not in rest.lower():
        raise RigError(status.decode(errors="replace"))
    rest_of_line = b""
    while size := int(await reader.receive_until(b"\r\n", HEAD_BYTES), 16):
        rest_of_line += (await reader.receive_exactly(size + 2))[:-2]
        *lines, rest_of_line = rest_of_line.split(b"\n")
        for line in lines:
            word = line.removeprefix(b"data: ").strip()
            if word == b"[DONE]":
                return
            if line.startswith(b"data: "):
                yield json.loads(word)
    raise RigError("the stream ended without [DONE]")


# --- a pipeline in one process --------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class PeerPipeline:
    """A peer that computes in its own process and gets raw prompts."""

    name: str
    settings: Mapping[str, object]
    requests: IO[str]
    replies: IO[str]

    def answered(self, prompts: Sequence[Sequence[int]], new: int) -> Crowded:
        """Generate `new` tokens for all prompts at once."""
        self.requests.write(json.dumps({"prompts": prompts, "new": new}) + "\n")
        self.requests.flush()
        line = self.replies.readline()
        if not line:
            raise RigError(f"{self.name} ended")
        report = json.loads(line)
        if report["tokens"] != len(prompts) * new:
            wanted = len(prompts) * new
            raise RigError(f"{self.name} made {report['tokens']} tokens, not {wanted}")
        return Crowded(report["tokens"] / report["wall_s"], 0.0, 0.0, "")


@contextmanager
def pipeline(path: str) -> Generator[PeerPipeline]:
    """openvino-genai's continuous batching. Absent when it is not installed."""
    line = [sys.executable, "-m", f"{__package__}.genai", path, str(os.cpu_count() or 1)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        child = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True,
            preexec_fn=ends_with_us(),
        )  # fmt: skip
        try:
            if child.stdin is None or child.stdout is None:
                raise RigError(f"{GENAI} has no pipes")
            settings = child.stdout.readline()
            if not settings:
                child.wait()
                err.seek(0)
                raise Absent(GENAI, err.read())
            yield PeerPipeline(GENAI, json.loads(settings), child.stdin, child.stdout)
        finally:
            _end(child)


# --- the servers ------------------------------------------------------------------------------
@contextmanager
def llama_server(path: str, slots: int, window: int) -> Generator[PeerServer]:
    """The server of llama.cpp, with a slot for each client. Absent without xllamacpp."""
    port, threads = _free_port(), os.cpu_count() or 1
    words = [path, *map(str, (port, slots, threads, window))]
    line = [sys.executable, "-m", f"{__package__}.llama_server", *words]
    with _running(LLAMA, line, f"http://{HOST}:{port}/health") as settings:
        yield PeerServer(LLAMA, port, json.loads(settings))


@contextmanager
def python_server(path: str) -> Generator[PeerServer]:
    """The server of llama-cpp-python. Absent without its extra `server`."""
    port, threads = _free_port(), str(os.cpu_count() or 1)
    ours = {"n_threads": threads, "n_threads_batch": threads, "interrupt_requests": "False"}
    flags = [word for name, value in ours.items() for word in (f"--{name}", value)]
    line = [
        sys.executable, "-m", "llama_cpp.server", "--model", path, "--host", HOST,
        "--port", str(port), *flags,
    ]  # fmt: skip
    asked = [sys.executable, "-c", _PRINT_SETTINGS, path, *_SETTINGS]
    defaults = subprocess.run(asked, capture_output=True, text=True)
    if defaults.returncode:
        raise Absent(PYTHON, defaults.stderr)
    with _running(PYTHON, line, f"http://{HOST}:{port}/v1/models"):
        yield PeerServer(PYTHON, port, {**ours, **json.loads(defaults.stdout)})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _running(name: str, line: Sequence[str], ready: str) -> Generator[str]:
    """Run a server until the block ends; yields its first line of output once it is ready."""
    with tempfile.TemporaryDirectory(prefix="llmasos-bench-") as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        with out.open("wb") as to_out, err.open("wb") as to_err:
            child = subprocess.Popen(
                line, stdin=subprocess.PIPE, stdout=to_out, stderr=to_err,
                preexec_fn=ends_with_us(),
            )  # fmt: skip
        try:
            _wait_ready(child, name, ready, err)
            yield out.read_text(encoding="utf-8").partition("\n")[0]
        finally:
            _end(child)


def _end(child: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    child.terminate()
    try:
        child.communicate(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()


def _wait_ready(child: subprocess.Popen[bytes], name: str, url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while not _answers(url):
        if child.poll() is not None:
            raise Absent(name, log.read_text(encoding="utf-8", errors="replace"))
        if time.monotonic() > deadline:
            raise RigError(f"{name} was not ready within {READY_S:g} s")
        time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=READY_S) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]
