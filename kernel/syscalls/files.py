"""Access for a caller to what is outside the kernel: files, with the user's rights, and secrets."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from ..abi import paths, secrets
from ..abi.errors import Denied
from ..access.identity import Caller
from ..access.permissions import file_object
from ..machine import Machine
from ..storage.filesystem import Access, rights

Options = Mapping[str, bool | int | float | str]
_HINT = "`llmasos mem write PID` reads the text from stdin"


def access(m: Machine, caller: Caller) -> Access:
    """File access with the rights of the calling user. EACCES when the kernel cannot take them."""
    if caller.owner == m.owner:
        return Access(m.private_paths)
    uid = m.users.uid(caller.owner)
    if uid is None:
        message = f"{caller.owner} is not a user of the operating system and cannot read its files"
        raise Denied(message, _HINT)
    if os.geteuid() != 0:
        message = f"this kernel runs as {m.owner} and cannot open files as another user"
        raise Denied(message, _HINT)
    return Access(m.private_paths, rights(uid))


def claim(m: Machine, caller: Caller, url: str, options: Options) -> Callable[[], None]:
    """A function, called after the options were checked, that binds a secret to an endpoint's URL.

    A secret is sent to one URL only: the URL of the first model with which the machine's owner uses
    it. Other users can use it for that URL only; for them EACCES is raised at once. Blocks.
    """
    name = options.get("secret")
    folder, own = paths.find().secrets, caller.owner == m.owner
    if not url or not isinstance(name, str):
        return lambda: None
    if not own:
        secrets.check_bound(folder, name, url, owner=False)
    return lambda: secrets.claim(folder, name, url) if own else None


def check_secret(m: Machine, caller: Caller, url: str, options: Options) -> None:
    """EACCES when the secret in the options of a mount is not bound to the URL of the image."""
    name = options.get("secret")
    if url and isinstance(name, str):
        own = caller.owner == m.owner
        secrets.check_bound(paths.find().secrets, name, url, owner=own)


def why_not(m: Machine, caller: Caller) -> Callable[[Path], str]:
    """A function that returns why the caller is not allowed to map a file; empty: it is allowed."""

    def why(path: Path) -> str:
        object_ = file_object(f"/files{path}")
        decision = m.policy.check(caller.subjects, "mmap", object_)
        return "" if decision.allowed else decision.rule or f"no rule for {decision.subject}"

    return why
