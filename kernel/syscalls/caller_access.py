"""What a caller may use outside the kernel: files, with the user's rights, and secrets."""

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
    """Files that a caller names, and the secrets that its models send to endpoints."""

    machine_owner: str
    users: UserTable
    policy: Policy
    private_paths: tuple[Path, ...]  # files under these are opened for no caller

    def file_access(self, caller: Caller) -> Access:
        """File access with the rights of the calling user.

        EACCES when the kernel cannot act with them.
        """
        if caller.user == self.machine_owner:
            return Access(self.private_paths)
        uid = self.users.uid(caller.user)
        if uid is None:
            who = f"{caller.user} is not a user of the operating system"
            raise Denied(f"{who}, so the kernel cannot open files with its rights", _HINT)
        if os.geteuid() != 0:
            message = (
                f"this kernel runs as {self.machine_owner} and cannot open files as another user"
            )
            raise Denied(message, _HINT)
        return Access(self.private_paths, rights(uid))

    def secret_binder(self, caller: Caller, url: str, options: Options) -> Callable[[], None]:
        """A function that binds the secret in the options of a model to the origin of its URL.

        Call it once the options are checked; it blocks. A secret is sent to one origin (scheme,
        host, port): that given with `secrets set --url`, else that of the first model which the
        machine's owner adds with it. For other users EACCES is raised at once, unless it is bound
        to this origin.
        """
        name = options.get("secret")
        folder, is_machine_owner = paths.find().secrets, caller.user == self.machine_owner
        if not url or not isinstance(name, str):
            return lambda: None
        if not is_machine_owner:
            secrets.check_bound(folder, name, url, is_machine_owner=False)
        return lambda: secrets.bind(folder, name, url) if is_machine_owner else None

    def check_secret(self, caller: Caller, url: str, options: Options) -> None:
        """EACCES when the secret in a model's options is not bound to the origin of its URL."""
        name = options.get("secret")
        if url and isinstance(name, str):
            secrets.check_bound(
                paths.find().secrets, name, url,
                is_machine_owner=caller.user == self.machine_owner,
            )  # fmt: skip

    def why_not(self, caller: Caller) -> Callable[[Path], str]:
        """A function that returns why the caller may not map a file; empty: it is allowed."""

        def why(path: Path) -> str:
            object_ = file_object(f"/files{path}")
            # Not cached: each file of a folder is asked about once.
            decision = self.policy.decide(self.policy.evaluator, caller.subjects, "mmap", object_)
            return "" if decision.allowed else decision.rule or f"no rule for {decision.subject}"

        return why
