"""`llmasos run`: sends one prompt to a model and prints the answer on stdout.

The answer is one call on a process that exists for it only; `--keep` starts a process that is kept.
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace

from llmasos.kernel.abi import limits
from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient

from . import exits, generation, stdin
from .connection import connect
from .show import note, print_json, write_text


def run(arguments: Namespace) -> int:
    prompt = _prompt(arguments.prompt)
    if not prompt:
        raise exits.UsageError("no prompt given", "give it as arguments, or pipe it in")
    sampling = generation.sampling(arguments)
    with connect() as client:
        request = _request(client, arguments, prompt, sampling)
        turn = generation.generate(client, request, _discard if arguments.json else write_text)
        _show(turn, request, arguments)
    generation.check_complete(turn, sampling)
    cancelled = (
        turn.done is None or turn.done.finish is v.Finish.CANCELLED
    )  # by ctrl-C or by `kill`
    return exits.INTERRUPTED if cancelled or turn.interrupted else exits.OK


def _request(
    client: BlockingClient, arguments: Namespace, prompt: str, sampling: v.Sampling
) -> v.Generate:
    """The call: of a new process with --keep, else on the model."""
    single = v.Generate(
        0, [v.Message(v.Role.USER, prompt)], raw=arguments.raw, sampling=sampling,
        timeout_s=arguments.timeout, deterministic=arguments.deterministic,
        model=generation.model(arguments.model), app="run", nice=arguments.nice,
        **generation.memory(arguments),
    )  # fmt: skip
    if arguments.keep:
        pid = generation.spawn(client, arguments, "run").pid
        note(f"pid {pid}")
        return replace(single, pid=pid, model="", app="", nice=0)
    if arguments.system:
        system = v.Message(v.Role.SYSTEM, generation.clean(arguments.system, "the system prompt"))
        return replace(single, messages=[system, *single.messages])
    return single


def _discard(_text: str) -> None:
    """With --json the answer is printed as one document at the end."""


def _show(turn: generation.PromptTurn, request: v.Generate, arguments: Namespace) -> None:
    if arguments.json:
        named = turn.done or request
        print_json({**generation.turn_fields(turn), "pid": named.pid, "model": named.model})
        return
    if turn.text and not turn.text.endswith("\n"):
        write_text("\n")
    if turn.done is None:
        note("[interrupted]")
    else:
        _show_notes(turn.done, arguments)


def _show_notes(done: v.Generated, arguments: Namespace) -> None:
    for notice in done.notices:
        note(f"[{notice}]")
    if done.finish is v.Finish.CANCELLED:
        note("[interrupted]")
    if done.finish is v.Finish.LENGTH and not (arguments.schema or arguments.grammar):
        tokens = done.usage.completion_tokens
        note(f"[cut off after {tokens} tokens; raise the limit with --max-tokens]")
    if arguments.verbose and not arguments.keep:
        note(f"pid {done.pid}")
    if arguments.verbose:
        note(f"[{generation.usage_line(done)}]")


def _prompt(words: Sequence[str]) -> str:
    """The words, then stdin. Raises E2BIG before a daemon is started."""
    text = generation.clean(" ".join(words), "the prompt")
    piped = stdin.piped(prefix=text).strip()
    joined = f"{text}\n\n{piped}" if text and piped else text or piped
    return stdin.bounded(joined, limits.MESSAGE_CHARS, stdin.WHOLE)
