"""Answers whose schema says what no grammar can: that all items of a list differ.

Such an answer is looked at when it is complete, in a thread: its last step waits for that. All
others pass. What an engine's child has computed is not computed again.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from llmasos.drivers.grammar import answer
from llmasos.drivers.grammar.document import Document
from llmasos.kernel.driver import Admission, Listener, Step
from llmasos.kernel.errors import DeviceFault
from llmasos.kernel.values import Finish

log = logging.getLogger(__name__)
_UNIQUE = "uniqueItems"  # of a schema
_HINT = "ask again with another --seed; in a schema of your own, leave uniqueItems out"


class Answers:
    """Of one child."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._texts: dict[int, tuple[str, list[str]]] = {}  # schema and answer, by call
        self._checks: dict[int, tuple[Step, asyncio.Task[None]]] = {}

    def admit(self, admission: Admission) -> None:
        schema = admission.sampling.schema
        if schema is not None and _UNIQUE in schema:
            self._texts[admission.call] = schema, []

    def cancel(self, call: int) -> None:
        """End a call whose answer is complete, and not looked at yet."""
        check = self._checks.pop(call, None)
        if check is not None:
            step, task = check
            task.cancel()
            self._listener.stepped([replace(step, finish=Finish.CANCELLED)])

    def lost(self) -> None:
        """The child is gone, and with it its calls."""
        for _, task in self._checks.values():
            task.cancel()
        self._checks.clear()
        self._texts.clear()

    def passed(self, steps: Sequence[Step]) -> list[Step]:
        """Those that the listener gets now."""
        return [step for step in steps if not self._holds(step)]

    def _holds(self, step: Step) -> bool:
        known = self._texts.get(step.call)
        if known is None:
            return False
        schema, texts = known
        texts.append(step.text)
        if step.finish is None and step.error is None:
            return False
        del self._texts[step.call]
        if step.finish is not Finish.STOP:
            return False
        check = self._check(step, schema, "".join(texts))
        self._checks[step.call] = step, asyncio.create_task(check)
        return True

    async def _check(self, step: Step, schema: str, text: str) -> None:
        try:
            words = await asyncio.to_thread(_problem, schema, text)
        except Exception as error:  # ours: the call must end all the same
            log.exception("an answer was not compared with its schema")
            words = f"it cannot be compared with the answer: {type(error).__name__}"
        del self._checks[step.call]
        if words:
            fault = DeviceFault(f"the answer does not satisfy the schema: {words}", _HINT)
            step = replace(step, finish=None, error=fault)
        self._listener.stepped([step])


def _problem(schema: str, text: str) -> str:
    return answer.problem(Document(schema), text)
