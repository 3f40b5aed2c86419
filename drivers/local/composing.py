"""Answers the text requests of the kernel, and keeps the prompts that it composes.

A call gets the tokens of a kept prompt when it is admitted, and the engine thread adds the answer
when it ends. So a turn of a process needs the new messages only.
"""

from collections.abc import Sequence
from typing import Any

from llmasos.drivers.frames import Frame
from llmasos.drivers.prompts import KeptPrompts, last_messages
from llmasos.kernel.abi.values import Message, Role
from llmasos.kernel.driver import Beginning, Keep, Prompt, token_digest

from . import frames
from .text import Composed, Texts


class TextRequests:
    """The text work of one engine."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self.prompts = KeptPrompts[Composed]()

    def answer(self, frame: Frame) -> list[Any]:
        """The values of the answer to a request. EINVAL, ETIMEDOUT."""
        match frame:
            case [frames.TOKENIZE, _, text]:
                return [frames.tokens_out(self.texts.tokenize(text))]
            case [frames.CUT, _, text]:
                return [frames.lengths_out(self.texts.cuts(text))]
            case [frames.COMPOSE, _, pairs, raw, fresh, keep]:
                messages = _messages(pairs)
                composed = self.texts.compose(messages, raw=raw)
                return self._composed(composed, messages, fresh, keep)
            case [frames.EXTEND, _, beginning, pairs, fresh, keep]:
                return self._extended(Beginning(*beginning), _messages(pairs), fresh, keep)
            case _:
                raise ValueError(f"unknown text request {frame[0]}")

    def prompt(self, source: int | bytes, domain: str) -> Prompt | None:
        """The prompt of these tokens, or the kept one with this number; None: it is not kept."""
        if isinstance(source, bytes):
            return Prompt(frames.tokens_in(source), ())
        found = self.prompts.get(source, domain)
        return None if found is None else Prompt(found.prompt.tokens.tolist(), (), kept=source)

    def drop(self, frame: Frame) -> None:
        """FORGET the prompts of a process, or PURGE those of a domain."""
        match frame:
            case [frames.FORGET, int(history)]:
                self.prompts.forget(history)
            case [frames.PURGE, str(domain)]:
                self.prompts.purge(domain)
            case _:
                raise ValueError(f"unknown command {frame[0]}")

    def _extended(
        self, beginning: Beginning, messages: Sequence[Message], fresh: int, keep: list[Any]
    ) -> list[Any]:
        """No values when the beginning is not kept."""
        found = self.prompts.find(beginning, Keep(*keep).domain)
        if found is None:
            return []
        answer = [Message(Role.ASSISTANT, found.answer or "")] if beginning.answered else []
        more = [*answer, *messages]
        composed = self.texts.extend(found.prompt, beginning.messages, more)
        return self._composed(composed, messages, fresh, keep)

    def _composed(
        self, composed: Composed, messages: Sequence[Message], fresh: int, keep: list[Any]
    ) -> list[Any]:
        """The size of a prompt, its digest if it is kept or else its tokens, and the cuts."""
        last = last_messages(messages, fresh)
        cuts = [frames.lengths_out(self.texts.cuts(message.content)) for message in last]
        tokens = composed.tokens
        if not keep:
            return [len(tokens), b"", tokens.tobytes(), cuts]
        self.prompts.put(Keep(*keep), composed, composed.bytes)
        return [len(tokens), token_digest(tokens), b"", cuts]


def _messages(pairs: Sequence[Sequence[str]]) -> list[Message]:
    return [Message(Role(role), content) for role, content in pairs]
