"""The embedded model's vocabulary and grammars, loaded once for all tests of a session."""

from functools import cache

from llmasos.drivers.llama import options
from llmasos.drivers.llama.model import LlamaModel, load
from llmasos.drivers.local import gguf
from llmasos.drivers.local.grammar import Grammars, Matcher
from llmasos.kernel.abi.values import Sampling
from tests.drivers.default_model import MODEL


@cache
def model() -> LlamaModel:
    return load(options.settings(MODEL, gguf.read(MODEL), {}))


@cache
def grammars() -> Grammars:
    return Grammars(model().vocab)


def matcher(**fields: str) -> Matcher:
    """Of a grammar=... or a schema=..."""
    found = grammars().matcher(Sampling(**fields))  # type: ignore[arg-type]
    assert found is not None
    return found


def tokens(text: str) -> list[int]:
    found: list[int] = model().vocab.tokenize(text, special=False).tolist()
    return found


def matches(matcher: Matcher, text: str) -> bool:
    """The whole text, and nothing need follow."""
    for token in tokens(text):
        if not matcher.allows(token):
            return False
        matcher.take(token)
    return matcher.may_end
