"""Access for a caller to what is outside the kernel: files, with the user's rights, and secrets."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..abi import paths, secrets
from ..abi.errors import Denied
from ..access.decisions import Policy
from ..access.identity import Caller
from ..access.permissions import file_object
from ..access.users import UserTable
from ..storage.filesystem import Access, rights

Options = Mapping[str, bool | int | float | str]
_HINT = "`llmasos mem write PID` reads the text from stdin"


@dataclass(frozen=True, slots=True)
class CallerAccess:
    """What a caller may use outside of the kernel: files, and secrets for endpoints."""

    owner: str  # of the machine
    users: UserTable
    policy: Policy
    private_paths: tuple[Path, ...]  # files under these are opened for no caller

    def access(self, caller: Caller) -> Access:
        """File access with the rights of the calling user. EACCES: the kernel cannot take them."""
        if caller.owner == self.owner:
            return Access(self.private_paths)
        uid = self.users.uid(caller.owner)
        if uid is None:
            who = f"{caller.owner} is not a user of the operating system"
            raise Denied(f"{who} and cannot read its files", _HINT)
        if os.geteuid() != 0:
            message = f"this kernel runs as {self.owner} and cannot open files as another user"
            raise Denied(message, _HINT)
        return Access(self.private_paths, rights(uid))

    def claim(self, caller: Caller, url: str, options: Options) -> Callable[[], None]:
        """A function that binds a secret to an endpoint's URL, for after the check of the options.

        A secret is sent to one URL only: the URL of the first model with which the machine's owner
        uses it. Other users can use it for that URL only; for them EACCES is raised at once.
        Blocks.
        """
        name = options.get("secret")
        folder, own = paths.find().secrets, caller.owner == self.owner
        if not url or not isinstance(name, str):
            return lambda: None
        if not own:
            secrets.check_bound(folder, name, url, owner=False)
        return lambda: secrets.claim(folder, name, url) if own else None

    def check_secret(self, caller: Caller, url: str, options: Options) -> None:
        """EACCES when the secret in the options of a mount is not bound to the URL of the image."""
        name = options.get("secret")
        if url and isinstance(name, str):
            own = caller.owner == self.owner
            secrets.check_bound(paths.find().secrets, name, url, owner=own)

    def why_not(self, caller: Caller) -> Callable[[Path], str]:
        """A function that returns why the caller may not map a file; empty: it is allowed."""

        def why(path: Path) -> str:
            object_ = file_object(f"/files{path}")
            # Not cached: each file of a folder is asked about once.
            decision = self.policy.decide(self.policy.evaluator, caller.subjects, "mmap", object_)
            return "" if decision.allowed else decision.rule or f"no rule for {decision.subject}"

        return why
