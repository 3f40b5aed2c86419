"""`llmasos run`: sends one prompt to a model and prints the answer on stdout."""

from argparse import Namespace
from collections.abc import Sequence

from llmasos.kernel.abi import limits
from llmasos.kernel.abi import values as v

from . import exits, generation, stdin
from .connection import connect
from .show import note, print_json, write_text


def run(arguments: Namespace) -> int:
    prompt = _prompt(arguments.prompt)
    if not prompt:
        raise exits.UsageError("no prompt given", "give it as arguments, or pipe it in")
    sampling = generation.sampling(arguments)
    with connect() as client:
        spawned = generation.spawn(client, arguments, "run", keep=arguments.keep)
        if arguments.keep or arguments.verbose:
            note(f"pid {spawned.pid}")
        request = v.Generate(
            spawned.pid, [v.Message(v.Role.USER, prompt)], raw=arguments.raw,
            sampling=sampling, timeout_s=arguments.timeout,
            deterministic=arguments.deterministic, **generation.memory(arguments),
        )  # fmt: skip
        turn = generation.generate(client, request, _discard if arguments.json else write_text)
        _show(turn, spawned, arguments)
        if not arguments.keep:
            generation.remove_process(client, spawned.pid)
    generation.check_complete(turn, sampling)
    cancelled = (
        turn.done is None or turn.done.finish is v.Finish.CANCELLED
    )  # by ctrl-C or by `kill`
    return exits.INTERRUPTED if cancelled or turn.interrupted else exits.OK


def _discard(_text: str) -> None:
    """With --json the answer is printed as one document at the end."""


def _show(turn: generation.PromptTurn, spawned: v.Spawned, arguments: Namespace) -> None:
    if arguments.json:
        print_json({**generation.turn_fields(turn), "pid": spawned.pid, "model": spawned.model})
        return
    if turn.text and not turn.text.endswith("\n"):
        write_text("\n")
    if turn.done is None:
        return
    for notice in turn.done.notices:
        note(f"[{notice}]")
    if turn.done.finish is v.Finish.CANCELLED:
        note("[interrupted]")
    if turn.done.finish is v.Finish.LENGTH and not (arguments.schema or arguments.grammar):
        tokens = turn.done.usage.completion_tokens
        note(f"[cut off after {tokens} tokens; raise the limit with --max-tokens]")
    if arguments.verbose:
        note(f"[{generation.usage_line(turn.done)}]")


def _prompt(words: Sequence[str]) -> str:
    """The words, then stdin. Raises E2BIG before a daemon is started."""
    text = generation.clean(" ".join(words), "the prompt")
    piped = stdin.piped(prefix=text).strip()
    joined = f"{text}\n\n{piped}" if text and piped else text or piped
    return stdin.bounded(joined, limits.MESSAGE_CHARS, stdin.WHOLE)
