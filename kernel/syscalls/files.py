"""What a caller names outside: files, opened with the rights of that user, and secrets."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from .. import paths, permit, secrets
from ..errors import Denied
from ..filesystem import Access, rights
from ..identity import Caller
from ..machine import Machine

Options = Mapping[str, bool | int | float | str]
_HINT = "`llmasos mem write PID` takes a text from stdin"


def access(m: Machine, caller: Caller) -> Access:
    """For the user who calls. EACCES for one whose rights the kernel cannot take."""
    if caller.owner == m.owner:
        return Access(m.private_paths)
    uid = m.users.uid(caller.owner)
    if uid is None:
        words = f"{caller.owner} is no user of the operating system, and may read no file of it"
        raise Denied(words, _HINT)
    if os.geteuid() != 0:
        words = f"this kernel runs as {m.owner}, and opens files for no other user"
        raise Denied(words, _HINT)
    return Access(m.private_paths, rights(uid))


def claim(m: Machine, caller: Caller, url: str, options: Options) -> Callable[[], None]:
    """What makes sure that the secret of an endpoint is sent to it, once the options make sense.

    A secret goes to one URL. Its owner, who owns this kernel, says to which by the first model that
    has it; others name it for that URL alone. EACCES, at once for them. Blocks.
    """
    name = options.get("secret")
    folder, own = paths.find().secrets, caller.owner == m.owner
    if not url or not isinstance(name, str):
        return lambda: None
    if not own:
        secrets.check_bound(folder, name, url, owner=False)
    return lambda: secrets.claim(folder, name, url) if own else None


def check_secret(m: Machine, caller: Caller, url: str, options: Options) -> None:
    """A mount may name another secret than its image: one that is for the same URL. EACCES."""
    name = options.get("secret")
    if url and isinstance(name, str):
        own = caller.owner == m.owner
        secrets.check_bound(paths.find().secrets, name, url, owner=own)


def why_not(m: Machine, caller: Caller) -> Callable[[Path], str]:
    """What says of a file of a folder why the caller may not map it, or nothing."""

    def why(path: Path) -> str:
        object_ = permit.file_object(f"/files{path}")
        decision = m.policy.check(caller.subjects, "mmap", object_)
        return "" if decision.allowed else decision.rule or f"no rule for {decision.subject}"

    return why
