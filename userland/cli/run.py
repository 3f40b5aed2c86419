"""`llmasos run`: one question to a model, its answer on stdout."""

from argparse import Namespace
from collections.abc import Sequence

from llmasos.kernel import limits
from llmasos.kernel import values as v

from . import exits, stdin, talk
from .door import connect
from .show import document, note, speak


def run(arguments: Namespace) -> int:
    prompt = _prompt(arguments.prompt)
    if not prompt:
        raise exits.Usage("there is no prompt", "give it as words, or pipe it in")
    sampling = talk.sampling(arguments)
    with connect() as line:
        spawned = talk.spawn(line, arguments, "run", keep=arguments.keep)
        if arguments.keep or arguments.verbose:
            note(f"pid {spawned.pid}")
        request = v.Generate(
            spawned.pid, [v.Message(v.Role.USER, prompt)], raw=arguments.raw,
            sampling=sampling, timeout_s=arguments.timeout,
            deterministic=arguments.deterministic, **talk.memory(arguments),
        )  # fmt: skip
        turn = talk.say(line, request, _swallow if arguments.json else speak)
        _show(turn, spawned, arguments)
        if not arguments.keep:
            talk.end(line, spawned.pid)
    talk.whole(turn, sampling)
    cut = turn.done is None or turn.done.finish is v.Finish.CANCELLED  # by us or by `kill`
    return exits.INTERRUPTED if cut or turn.interrupted else exits.OK


def _swallow(_text: str) -> None:
    """JSON is printed when it is whole."""


def _show(turn: talk.Turn, spawned: v.Spawned, arguments: Namespace) -> None:
    if arguments.json:
        document({**talk.fields(turn), "pid": spawned.pid, "model": spawned.model})
        return
    if turn.text and not turn.text.endswith("\n"):
        speak("\n")
    if turn.done is None:
        return
    for notice in turn.done.notices:
        note(f"[{notice}]")
    if turn.done.finish is v.Finish.CANCELLED:
        note("[interrupted]")
    if turn.done.finish is v.Finish.LENGTH and not (arguments.schema or arguments.grammar):
        tokens = turn.done.usage.completion_tokens
        note(f"[cut after {tokens} tokens; --max-tokens allows more]")
    if arguments.verbose:
        note(f"[{talk.usage(turn.done)}]")


def _prompt(words: Sequence[str]) -> str:
    """The words, then what is piped in. E2BIG, before anything is started for it."""
    said = talk.clean(" ".join(words), "the prompt")
    piped = stdin.piped(beside=said).strip()
    whole = f"{said}\n\n{piped}" if said and piped else said or piped
    return stdin.bounded(whole, limits.MESSAGE_CHARS, stdin.WHOLE)
