"""Messages for invalid values, from pydantic's errors.

Only the type and the constraints of an error are used: pydantic's messages describe its parsers.
"""

from collections.abc import Mapping
from typing import Any

_FIXED = {
    "bool_type": "want true or false",
    "bool_parsing": "want true or false",
    "int_type": "want a whole number",
    "int_parsing": "want a whole number",
    "int_parsing_size": "want a smaller number",
    "int_from_float": "want a whole number",
    "float_type": "want a number",
    "float_parsing": "want a number",
    "finite_number": "want a finite number",
    "string_type": "want a string",
    "list_type": "want a list",
    "dict_type": "want a map",
    "missing": "is missing",
    "extra_forbidden": "no such field",
}
_WITH_LIMITS = {
    "greater_than_equal": "want {ge} or more",
    "less_than_equal": "want {le} or less",
    "string_too_short": "want {min_length} characters or more",
    "string_too_long": "want {max_length} characters or less",
    "too_short": "want {min_length} items or more",
    "too_long": "want {max_length} items or less",
    "enum": "want {expected}",
    "literal_error": "want {expected}",
}


def expected(error: Mapping[str, Any]) -> str:
    """The message that says which value is expected."""
    kind, limits = error["type"], error.get("ctx", {})
    if kind in _WITH_LIMITS:
        return _WITH_LIMITS[kind].format_map(
            {name: _shown(value) for name, value in limits.items()}
        )
    return _FIXED.get(kind, str(error["msg"]).removeprefix("Value error, "))


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
