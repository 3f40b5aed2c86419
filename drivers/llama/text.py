"""Texts to tokens: tokenizing, and a conversation composed as the model will read it.

Runs on the child's main thread, on the vocabulary alone, so it never waits for a step. What the
messages say is data: the name of a control token inside a message stays plain text and cannot
end the message or open another role. Only a raw prompt may name control tokens.
"""

import re
import secrets
from collections.abc import Sequence

from llmasos.drivers.pages import cut_text
from llmasos.kernel.driver import Cut
from llmasos.kernel.values import Message

from .cpp import Model
from .template import Template


class Texts:
    """The text work of one model."""

    __slots__ = ("_control", "_template", "_vocab")

    def __init__(self, model: Model) -> None:
        self._vocab = vocab = model.vocab
        values = {"bos_token": vocab.text(vocab.begin), "eos_token": vocab.text(vocab.end)}
        self._template = Template(model.template, values)
        names = sorted(vocab.control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def tokenize(self, text: str) -> list[int]:
        """Plain text: no control tokens, no beginning of a conversation."""
        return self._plain(text)

    def to_embed(self, text: str) -> list[int]:
        """As it would stand at the beginning of a conversation."""
        begin = self._vocab.begin
        first = [begin] if self._vocab.wants_begin and begin is not None else []
        return first + self._plain(text)

    def compose(self, messages: Sequence[Message], *, raw: bool) -> list[int]:
        """The prompt's tokens."""
        if raw:
            tokens = self._marked("".join(message.content for message in messages))
        else:
            tokens = self._rendered(messages)
        begin = self._vocab.begin
        if self._vocab.wants_begin and begin is not None and tokens[:1] != [begin]:
            return [begin, *tokens]
        return tokens

    def cuts(self, text: str) -> list[Cut]:
        """A message cut into pages."""
        return cut_text(text, lambda piece: len(self._vocab.tokenize(piece, special=False)))

    def _plain(self, text: str) -> list[int]:
        tokens: list[int] = self._vocab.tokenize(text, special=False).tolist()
        return tokens

    def _marked(self, text: str) -> list[int]:
        tokens: list[int] = self._vocab.tokenize(text, special=True).tolist()
        return tokens

    def _rendered(self, messages: Sequence[Message]) -> list[int]:
        """Fence every control token's name in a message, render, and read the fences as text."""
        fence = f"\ue000{secrets.token_hex(8)}\ue001"
        fenced = [
            Message(m.role, self._control.sub(lambda found: fence + found[0] + fence, m.content))
            for m in messages
        ]
        tokens: list[int] = []
        for index, part in enumerate(self._template.render(fenced).split(fence)):
            tokens += self._plain(part) if index % 2 else self._marked(part)
        return tokens
