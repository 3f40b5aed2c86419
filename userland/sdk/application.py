"""The application name of this program, when it gives none.

The kernel records the application that started each process. The name must be the same on each run
of a program, and differ between programs, even when both scripts are called main.py.
"""

import hashlib
import re
import sys
from pathlib import Path

from llmasos.kernel.abi import limits

INTERACTIVE = "python"  # no file: the interactive prompt, `python -c`, or a program from stdin
_ODD = re.compile(r"[^A-Za-z0-9._+-]+")
_DIGEST_CHARS = 6


def name() -> str:
    """The application name, from the main module.

    `python -m mail.sync` gives mail.sync, an installed command its own name. A script gets a part
    of its path's digest as a suffix, as in main-3f9c02.
    """
    main = sys.modules.get("__main__")
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return _sanitised(str(spec.name).removesuffix(".__main__"), "")
    if file is None:
        return INTERACTIVE
    path = Path(file).resolve()
    if not path.suffix:
        return _sanitised(path.name, "")
    digest = hashlib.blake2b(str(path).encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return _sanitised(path.stem, f"-{digest[:_DIGEST_CHARS]}")


def _sanitised(text: str, end: str) -> str:
    """Replace the characters that a policy rule cannot contain."""
    kept = _ODD.sub("-", text).lstrip("._+-")[: limits.NAME_CHARS - len(end)]
    return (kept or INTERACTIVE) + end


def show(notices: list[str]) -> None:
    """Print the kernel's notices to stderr, each one once per program."""
    for notice in notices:
        if notice not in _shown:
            _shown.add(notice)
            print(f"llmasos: {notice}", file=sys.stderr)


_shown = set[str]()  # notices already printed
