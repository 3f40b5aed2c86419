"""Whether a complete answer satisfies its schema.

Of an endpoint, which may take a schema for a wish; of an engine, for what no grammar can say.

Patterns are the compiler's, whose automata take time that grows with the text only. It is loaded
when a schema has a pattern: most have none, and the kernel's process does not pay for it.
"""

from importlib import import_module

from .check import Check
from .document import Document, loads


def problem(document: Document, answer: str) -> str:
    """What is wrong with an answer; empty: nothing. May take seconds."""
    try:
        value = loads(answer)
        return Check(document, _matches).problem(value, document.root)
    except ValueError as error:
        return f"it is not JSON: {error}"
    except RecursionError:
        return "it is nested too deeply"


def _matches(pattern: str, text: str) -> bool:
    matches: bool = import_module(".compiler", __package__).matches(pattern, text)
    return matches
