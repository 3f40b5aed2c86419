"""Checks answers against `uniqueItems`, which a grammar cannot enforce.

Such an answer is checked when it is complete, in a thread, and its last step is delayed until
then. The steps of all other calls pass at once. A failed answer is an error, not a retry.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from llmasos.drivers.grammar import answer
from llmasos.drivers.grammar.document import SchemaDocument
from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.abi.values import Finish
from llmasos.kernel.driver import Admission, Listener, Step

log = logging.getLogger(__name__)
_UNIQUE = "uniqueItems"
_HINT = "try again with another --seed, or remove uniqueItems from the schema"


@dataclass(frozen=True, slots=True)
class CheckedText:
    """An answer so far."""

    schema: str
    parts: list[str]


class Answers:
    """The calls of one child whose schema contains `uniqueItems`."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._texts: dict[int, CheckedText] = {}  # by call
        self._checks: dict[int, tuple[Step, asyncio.Task[None]]] = {}

    def admit(self, admission: Admission) -> None:
        schema = admission.sampling.schema
        if schema is not None and _UNIQUE in schema:
            self._texts[admission.call] = CheckedText(schema, [])

    def text(self, call: int) -> CheckedText | None:
        """The answer of a call so far, if it will be checked."""
        return self._texts.get(call)

    def restore(self, call: int, text: CheckedText | None) -> None:
        """A call of another process continues after this text."""
        if text is not None:
            self._texts[call] = text

    def cancel(self, call: int) -> None:
        """End a call whose complete answer is being checked."""
        check = self._checks.pop(call, None)
        if check is not None:
            step, task = check
            task.cancel()
            self._listener.stepped([step._replace(finish=Finish.CANCELLED)])

    def disconnected(self) -> None:
        """The child ended, and its calls with it."""
        for _, task in self._checks.values():
            task.cancel()
        self._checks.clear()
        self._texts.clear()

    def released(self, steps: Sequence[Step]) -> list[Step]:
        """The steps that the listener gets now."""
        return [step for step in steps if not self._delays(step)]

    def _delays(self, step: Step) -> bool:
        known = self._texts.get(step.call)
        if known is None:
            return False
        known.parts.append(step.text)
        if step.finish is None and step.error is None:
            return False
        del self._texts[step.call]
        if step.finish is not Finish.STOP:
            return False
        check = self._check(step, known.schema, "".join(known.parts))
        self._checks[step.call] = step, asyncio.create_task(check)
        return True

    async def _check(self, step: Step, schema: str, text: str) -> None:
        try:
            problem = await asyncio.to_thread(_problem, schema, text)
        except Exception as error:  # a bug of ours must not keep the call open
            log.exception("cannot check an answer against its schema")
            problem = f"the check failed: {type(error).__name__}"
        del self._checks[step.call]
        if problem:
            fault = DeviceFault(f"the answer does not satisfy the schema: {problem}", _HINT)
            step = step._replace(finish=None, error=fault)
        self._listener.stepped([step])


def _problem(schema: str, text: str) -> str:
    return answer.problem(SchemaDocument(schema), text)
