"""Which application this program is, where it does not say so itself.

The kernel knows processes by the application that started them. A program has to be the same
application each time it runs, and another one than its neighbours, which may be called main.py too.
"""

import hashlib
import re
import sys
from pathlib import Path

from llmasos.kernel import limits

INTERACTIVE = "python"  # no file: a prompt, `python -c`, or a program that comes by stdin
_ODD = re.compile(r"[^A-Za-z0-9._+-]+")
_DIGEST_CHARS = 6


def name() -> str:
    """The name of the main module.

    `python -m mail.sync` is mail.sync and an installed command is called as it is; a script has a
    part of its path's digest behind its name, as main-3f9c02.
    """
    main = sys.modules.get("__main__")
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return _plain(str(spec.name).removesuffix(".__main__"), "")
    if file is None:
        return INTERACTIVE
    path = Path(file).resolve()
    if not path.suffix:
        return _plain(path.name, "")
    digest = hashlib.blake2b(str(path).encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return _plain(path.stem, f"-{digest[:_DIGEST_CHARS]}")


def _plain(text: str, end: str) -> str:
    """In letters that a rule can hold."""
    kept = _ODD.sub("-", text).lstrip("._+-")[: limits.NAME_CHARS - len(end)]
    return (kept or INTERACTIVE) + end


def show(notices: list[str]) -> None:
    """What the kernel wants people to know, once in a program."""
    for notice in notices:
        if notice not in _shown:
            _shown.add(notice)
            print(f"llmasos: {notice}", file=sys.stderr)


_shown = set[str]()  # notices that this program has shown
