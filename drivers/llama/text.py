"""Tokenizes texts, and composes the prompt of a conversation.

Runs on the child's main thread and needs the vocabulary only, so it never waits for a step. The
contents of messages are data: the name of a control token in a message is ordinary text and cannot
end the message or begin another role. Only a raw prompt may contain control tokens.
"""

import re
import secrets
from collections.abc import Sequence

from llmasos.drivers.pages import cut_text
from llmasos.kernel.abi.values import Message
from llmasos.kernel.driver import Cut

from .cpp import LlamaModel
from .template import Template


class Texts:
    """The text work of one model."""

    __slots__ = ("_control", "_template", "_vocab")

    def __init__(self, model: LlamaModel) -> None:
        self._vocab = vocab = model.vocab
        values = {"bos_token": vocab.text(vocab.begin), "eos_token": vocab.text(vocab.end)}
        self._template = Template(model.template, values)
        names = sorted(vocab.control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, without control tokens."""
        return self._ordinary(text)

    def to_embed(self, text: str) -> list[int]:
        """The tokens of a text to embed, with the begin token if the model uses one."""
        begin = self._vocab.begin
        first = [begin] if self._vocab.wants_begin and begin is not None else []
        return first + self._ordinary(text)

    def compose(self, messages: Sequence[Message], *, raw: bool) -> list[int]:
        """The prompt's tokens."""
        if raw:
            tokens = self._with_control("".join(message.content for message in messages))
        else:
            tokens = self._rendered(messages)
        begin = self._vocab.begin
        if self._vocab.wants_begin and begin is not None and tokens[:1] != [begin]:
            return [begin, *tokens]
        return tokens

    def cuts(self, text: str) -> list[Cut]:
        """Split a message into pages."""
        return cut_text(text, lambda piece: len(self._vocab.tokenize(piece, special=False)))

    def _ordinary(self, text: str) -> list[int]:
        tokens: list[int] = self._vocab.tokenize(text, special=False).tolist()
        return tokens

    def _with_control(self, text: str) -> list[int]:
        tokens: list[int] = self._vocab.tokenize(text, special=True).tolist()
        return tokens

    def _rendered(self, messages: Sequence[Message]) -> list[int]:
        """Render the template; names of control tokens in the messages become ordinary text.

        They are enclosed in a random fence before rendering and tokenized as text after it.
        """
        fence = f"\ue000{secrets.token_hex(8)}\ue001"
        fenced = [
            Message(m.role, self._control.sub(lambda found: fence + found[0] + fence, m.content))
            for m in messages
        ]
        tokens: list[int] = []
        for index, part in enumerate(self._template.render(fenced).split(fence)):
            tokens += self._ordinary(part) if index % 2 else self._with_control(part)
        return tokens
