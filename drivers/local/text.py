"""Tokenizes texts, and composes the prompt of a conversation.

Runs on the child's main thread and needs the vocabulary only, so it never waits for a step. The
contents of messages are data: the name of a control token in a message is ordinary text and cannot
end the message or begin another role. Only a raw prompt may contain control tokens.

A longer conversation is composed from a shorter one: where a control token ends (dividing.py), the
text on both sides is tokenized independently, so the tokens of the common beginning are reused.
"""

import re
import secrets
import sys
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from llmasos.drivers.pages import cut_text
from llmasos.kernel.abi.values import Message
from llmasos.kernel.driver import Cut

from .context import Vocab
from .dividing import Divider
from .prefix_tree import common
from .template import Template

_MESSAGE_BYTES = 200  # of a message, besides its content


@dataclass(frozen=True, slots=True)
class Composed:
    """A composed conversation. Its texts contain the fence."""

    raw: bool
    fence: str  # encloses the names of control tokens in the contents
    messages: Sequence[Message]
    rendered: str
    ends: Sequence[int]  # where `rendered` can be divided, ascending
    counts: Sequence[int]  # tokens before each of these places
    tokens: "array[int]"

    @property
    def bytes(self) -> int:
        contents = sum(sys.getsizeof(one.content) + _MESSAGE_BYTES for one in self.messages)
        numbers = 4 * len(self.tokens) + 8 * (len(self.ends) + len(self.counts))
        return contents + sys.getsizeof(self.rendered) + numbers


class Texts:
    """The text work of one model."""

    __slots__ = ("_control", "_divider", "_template", "_vocab")

    def __init__(self, vocab: Vocab, template: str) -> None:
        self._vocab = vocab
        values = {"bos_token": vocab.text(vocab.begin), "eos_token": vocab.text(vocab.end)}
        self._template = Template(template, values)
        names = sorted(vocab.control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._divider = Divider(vocab.names, vocab.dividing)

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, without control tokens."""
        tokens: list[int] = self._vocab.tokenize(text, special=False).tolist()
        return tokens

    def to_embed(self, text: str) -> list[int]:
        """The tokens of a text to embed, with the begin token if the model uses one."""
        begin = self._vocab.begin
        first = [begin] if self._vocab.wants_begin and begin is not None else []
        return first + self.tokenize(text)

    def cuts(self, text: str) -> list[Cut]:
        """Split a message into pages."""
        return cut_text(text, lambda piece: len(self._vocab.tokenize(piece, special=False)))

    # --- conversations ------------------------------------------------------------------------
    def compose(self, messages: Sequence[Message], *, raw: bool) -> Composed:
        """The prompt of a conversation."""
        fence = f"\ue000{secrets.token_hex(8)}\ue001"
        whole = messages if raw else self._fenced(messages, fence)
        return self._composed(Composed(raw, fence, (), "", (), (), array("i")), whole)

    def extend(self, before: Composed, kept: int, messages: Sequence[Message]) -> Composed:
        """The prompt of the first `kept` messages of another one, and of these."""
        more = messages if before.raw else self._fenced(messages, before.fence)
        return self._composed(before, [*before.messages[:kept], *more])

    def _fenced(self, messages: Sequence[Message], fence: str) -> list[Message]:
        """Enclose the names of control tokens in contents: they become ordinary text."""
        return [
            Message(m.role, self._control.sub(lambda found: fence + found[0] + fence, m.content))
            for m in messages
        ]

    def _composed(self, before: Composed, messages: Sequence[Message]) -> Composed:
        """Render all messages; tokenize what comes after the common part of the text before."""
        raw, fence = before.raw, before.fence
        rendered = "".join(m.content for m in messages) if raw else self._template.render(messages)
        known = self._reusable(before, rendered)
        ends, counts = [*before.ends[:known]], [*before.counts[:known]]
        tokens = before.tokens[: counts[-1]] if known else array("i")
        at = ends[-1] if known else 0
        sections = [rendered[at:]] if raw else rendered[at:].split(fence)
        for index, section in enumerate(sections):
            ordinary = index % 2 == 1  # between two fences
            if index and not ordinary:
                ends.append(at)
                counts.append(len(tokens))
            begin = 0
            for end in () if ordinary else self._divider.places(section):
                self._append(tokens, section[begin:end], special=True)
                ends.append(at + end)
                counts.append(len(tokens))
                begin = end
            self._append(tokens, section[begin:], special=not ordinary)
            at += len(section) + len(fence)
        if not known and self._needs_begin(tokens):
            tokens.insert(0, self._vocab.begin or 0)
            counts = [count + 1 for count in counts]
        return Composed(raw, fence, messages, rendered, ends, counts, tokens)

    def _reusable(self, before: Composed, rendered: str) -> int:
        """At how many of its places the text before can be divided from the new one."""
        same = common(before.rendered, rendered)
        known = bisect_right(before.ends, same)
        while known and not self._divider.divides(rendered, before.ends[known - 1]):
            known -= 1
        return known

    def _append(self, tokens: "array[int]", text: str, *, special: bool) -> None:
        """Tokenize a part of a text."""
        if text:
            tokens.frombytes(self._vocab.tokenize(text, special=special).tobytes())

    def _needs_begin(self, tokens: "array[int]") -> bool:
        """Whether the model uses a begin token and the text does not begin with it."""
        return self._vocab.wants_begin and tokens[:1] != array("i", [self._vocab.begin or 0])
