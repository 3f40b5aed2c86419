"""One turn with a process, streamed to whoever listens. What `run` and `chat` share.

The first ctrl-C interrupts the process: what it said stays. A second one leaves at once.
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

from llmasos.kernel import limits, paths
from llmasos.kernel import values as v
from llmasos.kernel.errors import Errno, SyscallError
from llmasos.userland.line import Line

from .progress import follow

MODEL = "smollm2"
_SEEDS = limits.SEED_MAX + 1
_SAMPLING = ("max_tokens", "temperature", "repeat_penalty", "seed", "stop", "logprobs")


class Paging(TypedDict):
    overflow: v.Overflow
    recall: bool


class Turn(NamedTuple):
    text: str
    done: v.Generated | None  # None: it was interrupted before it began
    interrupted: bool
    logprobs: list[v.Logprob]  # when asked for


def model(asked: str | None) -> str:
    """The model that was asked for, or this user's default."""
    return asked or os.environ.get("LLMASOS_MODEL") or _configured() or MODEL


def _configured() -> str:
    """What the configuration file says. A file that makes no sense is the daemon's to refuse."""
    try:
        text = paths.find().config_file.read_text(encoding="utf-8-sig")
        return str(tomllib.loads(text).get("model", ""))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return ""


def spawn(line: Line, arguments: Namespace, app: str, *, keep: bool) -> v.Spawned:
    request = v.Spawn(
        model(arguments.model), app=app, nice=arguments.nice,
        system=clean(arguments.system, "the system prompt"), keep=keep,
    )  # fmt: skip
    return follow(line.stream("spawn", request, v.Progress, v.Spawned))


def sampling(arguments: Namespace) -> v.Sampling:
    """What was said on the command line; the kernel knows the rest."""
    said = {name: getattr(arguments, name) for name in _SAMPLING}
    said["bias"] = v.pack_bias(dict(arguments.bias or ()))
    said |= {name: _text(getattr(arguments, name)) for name in ("grammar", "schema")}
    return v.Sampling(**{name: value for name, value in said.items() if value is not None})


def next_turn(sampling: v.Sampling) -> v.Sampling:
    """Another seed for each turn: with the same one small models answer the same again."""
    if sampling.seed is None:
        return sampling
    return replace(sampling, seed=(sampling.seed + 1) % _SEEDS)


def memory(arguments: Namespace) -> Paging:
    """What may happen to the window."""
    return {"overflow": v.Overflow(arguments.overflow), "recall": not arguments.no_recall}


def _text(path: str | None) -> str | None:
    """What a file says."""
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        hint = "give the path of a file"
        raise SyscallError(Errno.ENOENT, f"{path}: {error.strerror}", hint) from error
    except UnicodeDecodeError as error:
        words = f"{path} is not valid UTF-8 at its byte {error.start}"
        raise SyscallError(Errno.EINVAL, words, "give text in UTF-8") from error


def clean(text: str, what: str) -> str:
    """The text, if it can travel. EINVAL when its bytes were not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        words = f"{what} is not valid UTF-8 at its character {error.start}"
        raise SyscallError(Errno.EINVAL, words, "give text in UTF-8") from error
    return text


def say(line: Line, request: v.Generate, write: Callable[[str], object]) -> Turn:
    """Have a process answer; each piece is written as it comes."""
    stream = line.stream("generate", request, v.Delta, v.Generated)
    texts: list[str] = []
    logprobs: list[v.Logprob] = []
    kill = v.Kill(request.pid, v.Signal.INT)
    with interrupting(lambda: line.send("kill", kill)) as interrupts:
        try:
            for delta in stream:
                texts.append(delta.text)
                logprobs += delta.logprobs
                write(delta.text)
        except SyscallError as error:
            if not interrupts or error.errno is not Errno.ECANCELED:
                raise
    return Turn("".join(texts), stream.reply, bool(interrupts), logprobs)


@contextmanager
def interrupting(act: Callable[[], object]) -> Generator[list[int]]:
    """The first ctrl-C acts and is listed, the second is a KeyboardInterrupt."""
    interrupts: list[int] = []

    def first(number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupts.append(number)
        act()

    before = signal.signal(signal.SIGINT, first)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def whole(turn: Turn, sampling: v.Sampling) -> None:
    """EPROTO when an answer that has to have a form was cut before its end."""
    structured = sampling.schema is not None or sampling.grammar is not None
    if structured and turn.done is not None and turn.done.finish is v.Finish.LENGTH:
        what = "schema" if sampling.schema is not None else "grammar"
        tokens = turn.done.usage.completion_tokens
        raise SyscallError(
            Errno.EPROTO,
            f"the answer was cut after {tokens} tokens and does not satisfy the {what}",
            f"allow more, as with `--max-tokens {max(2 * tokens, 2 * limits.MAX_TOKENS)}`",
        )


def end(line: Line, pid: int) -> None:
    """End a process and its pages. One that is gone already is fine."""
    try:
        line.call("kill", v.Kill(pid), v.Nothing)
        line.call("wait", v.Wait(pid), v.Exit)
    except SyscallError as error:
        if error.errno is not Errno.ESRCH:
            raise


def usage(done: v.Generated) -> str:
    """Where the time went, in one line."""
    use = done.usage
    return (
        f"{use.prompt_tokens} prompt tokens ({use.cached_tokens} cached), "
        f"{use.completion_tokens} new; queue {use.queue_s:.2f} s, prefill {use.prefill_s:.2f} s, "
        f"decode {use.decode_s:.2f} s; {done.finish}, seed {done.seed}"
    )


def fields(turn: Turn) -> dict[str, object]:
    """What JSON says of a turn."""
    said: dict[str, object] = {"text": turn.text}
    if turn.logprobs:
        said["logprobs"] = turn.logprobs
    done = turn.done
    if done is None:
        return {**said, "finish": v.Finish.CANCELLED}
    return {
        **said, "call": done.call, "finish": done.finish, "pages": done.pages, "seed": done.seed,
        "usage": done.usage, "window": done.window, "faults": done.faults,
        "evicted": done.evicted, "notices": done.notices,
    }  # fmt: skip
