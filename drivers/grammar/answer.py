"""Checks whether a complete answer satisfies its schema.

Used for endpoints, which may ignore the schema, and for constraints that no grammar can express.

Patterns are matched by the compiler, whose automata take time linear in the text. It is imported
only when a schema has a pattern: most have none, and the import costs the kernel process memory.
"""

from importlib import import_module

from .check import Check
from .document import SchemaDocument, loads


def problem(document: SchemaDocument, answer: str) -> str:
    """The first problem of an answer; empty: none. May take seconds."""
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
