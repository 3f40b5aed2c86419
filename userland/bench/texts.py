"""Texts of an exact number of tokens, and conversations whose prompt is exactly as long as asked.

A chat template adds tokens of its own; how many is measured once, by a conversation that is fed.
Whoever uses the texts checks again what was fed.
"""

import re
from dataclasses import dataclass
from typing import Self

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient

from .rig import MODEL, RigError

WORDS = tuple(re.findall("[a-z]+", "the ship left at dawn and nobody knew where it would go next"))
SYSTEM_EXTRA = 5  # tokens that the template adds to the system prompt


@dataclass(frozen=True, slots=True)
class Chat:
    """A system prompt and a message of the user."""

    system: str
    user: str

    @property
    def messages(self) -> list[v.Message]:
        return [v.Message(v.Role.SYSTEM, self.system), v.Message(v.Role.USER, self.user)]


@dataclass(frozen=True, slots=True)
class Writer:
    """Makes texts of an exact length with the model's tokenizer."""

    client: BlockingClient
    extra: int  # tokens that the template adds to a system prompt and a user's message

    @classmethod
    def of(cls, client: BlockingClient) -> Self:
        pid = client.call("spawn", v.Spawn(MODEL, app="bench"), v.Spawned).pid
        once = v.Sampling(max_tokens=1, temperature=0, ignore_eos=True)
        asked = v.Generate(pid, Chat("A", "A").messages, sampling=once)
        stream = client.stream("generate", asked, v.Delta, v.Generated)
        for _ in stream:
            pass
        client.call("kill", v.Kill(pid), v.Nothing)
        if stream.reply is None:
            raise RigError("a generation ended without a reply")
        return cls(client, stream.reply.usage.prompt_tokens - 2 * len(tokens(client, "A")))

    def exact(self, name: str, count: int, shift: int = 0) -> str:
        """A text of exactly `count` tokens that begins with `name`."""
        shift %= len(WORDS)
        words = [f"{name}:", *((WORDS[shift:] + WORDS) * (count // len(WORDS) + 1))[:count]]
        while words and len(tokens(self.client, " ".join(words))) > count:
            words.pop()
        while words and len(tokens(self.client, " ".join(words))) < count:
            words.append("and")
        if not words or len(tokens(self.client, " ".join(words))) != count:
            raise RigError(f"no text of {count} tokens begins with {name} for {MODEL}")
        return " ".join(words)

    def private(self, repeat: int, index: int, count: int) -> str:
        """A text of exactly `count` tokens that shares no prefix with another."""
        return self.exact(f"{letter(index)}{repeat}", count, index)

    def private_chat(self, repeat: int, index: int, count: int) -> Chat:
        """A conversation of exactly `count` tokens that shares no word with another."""
        system = count // 4
        user = count - self.extra - system
        return Chat(self.private(repeat, index, system), self.exact("Q", user, index))

    def shared_chat(self, name: str, index: int, common: int, own: int) -> Chat:
        """One of many that begin with the same `common` tokens and go on with their `own`."""
        rest = own - (self.extra - SYSTEM_EXTRA)
        return Chat(
            self.exact(name, common - SYSTEM_EXTRA),
            self.exact(f"{letter(index)}{name}", rest, index),
        )


def letter(index: int) -> str:
    return chr(65 + index % 26) + str(index // 26 or "")


def tokens(client: BlockingClient, text: str) -> list[int]:
    return client.call("tokenize", v.Tokenize(MODEL, text), v.Tokens).tokens
