"""One turn of a process or one answer of a model, streamed to a callback: for `run` and `chat`.

The first ctrl-C interrupts the process, which keeps the partial answer, or cancels the call on a
model. A second one exits at once.
"""

import os
import signal
import tomllib
from argparse import Namespace
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NamedTuple, TypedDict

from llmasos.kernel.abi import limits, paths
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient

from .progress import follow, progress_meter

MODEL = "smollm2"
_SEEDS = limits.SEED_MAX + 1
_SAMPLING = ("max_tokens", "temperature", "repeat_penalty", "seed", "stop", "logprobs", "lookup")


class Paging(TypedDict):
    overflow: v.Overflow
    recall: bool


class PromptTurn(NamedTuple):
    text: str
    done: v.Generated | None  # None: interrupted before it began
    interrupted: bool
    logprobs: list[v.Logprob]  # if requested


def model(requested: str | None) -> str:
    """The requested model, or the default of this user."""
    return requested or os.environ.get("LLMASOS_MODEL") or _configured() or MODEL


def _configured() -> str:
    """The model set in the configuration file. Ignores an invalid file: the daemon reports it."""
    try:
        text = paths.find().config_file.read_text(encoding="utf-8-sig")
        return str(tomllib.loads(text).get("model", ""))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return ""


def spawn(client: BlockingClient, arguments: Namespace, app: str) -> v.Spawned:
    """Start a process that is kept, and show the progress of loading its model."""
    request = v.Spawn(
        model(arguments.model), app=app, nice=arguments.nice,
        system=clean(arguments.system, "the system prompt"),
    )  # fmt: skip
    return follow(client.stream("spawn", request, v.Progress, v.Spawned))


def sampling(arguments: Namespace) -> v.Sampling:
    """The options given on the command line; the kernel has defaults for the others."""
    fields = {name: getattr(arguments, name) for name in _SAMPLING}
    fields["bias"] = v.pack_bias(dict(arguments.bias or ()))
    fields |= {name: _read_file(getattr(arguments, name)) for name in ("grammar", "schema")}
    return v.Sampling(**{name: value for name, value in fields.items() if value is not None})


def next_turn(sampling: v.Sampling) -> v.Sampling:
    """A different seed for each turn: with the same seed small models repeat their answers."""
    if sampling.seed is None:
        return sampling
    return replace(sampling, seed=(sampling.seed + 1) % _SEEDS)


def memory(arguments: Namespace) -> Paging:
    """The options on paging."""
    return {"overflow": v.Overflow(arguments.overflow), "recall": not arguments.no_recall}


def _read_file(path: str | None) -> str | None:
    """The text of a file. Raises ENOENT, EINVAL."""
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        hint = "give the path of a file"
        raise SyscallError(Errno.ENOENT, f"{path}: {error.strerror}", hint) from error
    except UnicodeDecodeError as error:
        message = f"{path} is not valid UTF-8 at byte {error.start}"
        raise SyscallError(Errno.EINVAL, message, "give text in UTF-8") from error


def clean(text: str, what: str) -> str:
    """The text, unchanged. Raises EINVAL if it is not valid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"{what} is not valid UTF-8 at character {error.start}"
        raise SyscallError(Errno.EINVAL, message, "give text in UTF-8") from error
    return text


def generate(
    client: BlockingClient, request: v.Generate, write: Callable[[str], object]
) -> PromptTurn:
    """Run a generate call and write each piece of the answer as it arrives."""
    stream = client.stream("generate", request, v.Delta, v.Generated)
    texts: list[str] = []
    logprobs: list[v.Logprob] = []

    def interrupt() -> None:
        if request.pid:
            client.send("kill", v.Kill(request.pid, v.Signal.INT))
        else:
            stream.cancel()

    with on_first_interrupt(interrupt) as interrupts, progress_meter() as meter:
        try:
            for delta in stream:
                if delta.loading is not None:
                    meter.take(delta.loading)
                    continue
                meter.close()
                texts.append(delta.text)
                logprobs += delta.logprobs
                write(delta.text)
        except SyscallError as error:
            if not interrupts or error.errno is not Errno.ECANCELED:
                raise
    return PromptTurn("".join(texts), stream.reply, bool(interrupts), logprobs)


@contextmanager
def on_first_interrupt(act: Callable[[], object]) -> Generator[list[int]]:
    """The first ctrl-C runs `act` and is added to the list; a second raises KeyboardInterrupt."""
    interrupts: list[int] = []

    def on_interrupt(number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupts.append(number)
        act()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def check_complete(turn: PromptTurn, sampling: v.Sampling) -> None:
    """Raise EPROTO if an answer with a schema or a grammar was cut off."""
    structured = sampling.schema is not None or sampling.grammar is not None
    if structured and turn.done is not None and turn.done.finish is v.Finish.LENGTH:
        what = "schema" if sampling.schema is not None else "grammar"
        tokens = turn.done.usage.completion_tokens
        raise SyscallError(
            Errno.EPROTO,
            f"the answer was cut off after {tokens} tokens and does not satisfy the {what}",
            f"raise the limit: --max-tokens {max(2 * tokens, 2 * limits.MAX_TOKENS)}",
        )


def remove_process(client: BlockingClient, pid: int) -> None:
    """End a process and remove its pages. Does nothing if it no longer exists."""
    try:
        client.call("kill", v.Kill(pid), v.Nothing)
        client.call("wait", v.Wait(pid), v.Exit)
    except SyscallError as error:
        if error.errno is not Errno.ESRCH:
            raise


def usage_line(done: v.Generated) -> str:
    """Token counts and times in one line."""
    use = done.usage
    drafted = f" ({use.accepted_tokens} of {use.drafted_tokens} drafted)"
    return (
        f"{use.prompt_tokens} prompt tokens ({use.cached_tokens} cached), "
        f"{use.completion_tokens} new{drafted if use.drafted_tokens else ''}; "
        f"queue {use.queue_s:.2f} s, prefill {use.prefill_s:.2f} s, "
        f"decode {use.decode_s:.2f} s; {done.finish}, seed {done.seed}"
    )


def turn_fields(turn: PromptTurn) -> dict[str, object]:
    """The fields of a turn for JSON output."""
    fields: dict[str, object] = {"text": turn.text}
    if turn.logprobs:
        fields["logprobs"] = turn.logprobs
    done = turn.done
    if done is None:
        return {**fields, "finish": v.Finish.CANCELLED}
    return {
        **fields, "call": done.call, "finish": done.finish, "pages": done.pages, "seed": done.seed,
        "usage": done.usage, "window": done.window, "faults": done.faults,
        "evicted": done.evicted, "notices": done.notices,
    }  # fmt: skip
