"""One short function per syscall; `Syscalls.table` has them in the order of the table of syscalls.

A `def` handler never waits: its reply is sent at once. An `async def` handler may wait, and streams
with `call.send`. dispatch.py has authorised the call before; a handler checks further permissions
only where a call has more objects than the authorised one. The handlers of a file are methods of
one class, whose fields are the parts of the kernel that they use; boot.py sets them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .call import CallContext as CallContext
from .explain import ExplainSyscalls
from .mail import MailSyscalls
from .models import ModelSyscalls
from .pages import PageSyscalls
from .poison import PoisonSyscalls
from .policies import PolicySyscalls
from .processes import ProcessSyscalls
from .system import SystemSyscalls
from .texts import TextSyscalls
from .users import UserSyscalls

Handler = Callable[..., object]  # of a CallContext and a request
# Calls that read or change data of the caller's user, which is open while they run.
CALLS_ON_USER_DATA = frozenset({
    "spawn", "generate", "fork", "read_mem", "write_mem", "search_mem", "pin", "evict", "mmap",
    "munmap", "share", "forget", "trace_mem", "fsck", "send", "recv", "ps",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Syscalls:
    """The handlers of all syscalls; hello is handled by the session."""

    processes: ProcessSyscalls
    texts: TextSyscalls
    pages: PageSyscalls
    mail: MailSyscalls
    system: SystemSyscalls
    models: ModelSyscalls
    poison: PoisonSyscalls
    users: UserSyscalls
    policies: PolicySyscalls
    explain: ExplainSyscalls

    def table(self) -> Mapping[str, Handler]:
        """The handlers by name, in the order of the table of syscalls."""
        processes, texts, pages, models = self.processes, self.texts, self.pages, self.models
        users, policies, system = self.users, self.policies, self.system
        handlers = (
            processes.spawn, texts.generate, processes.fork, texts.tokenize, texts.embed,
            pages.read_mem, pages.write_mem, pages.search_mem, pages.pin, pages.evict, pages.mmap,
            pages.munmap, pages.share, pages.forget, pages.trace_mem, pages.fsck,
            self.mail.send, self.mail.recv,
            processes.wait, processes.kill, processes.nice, processes.ps,
            system.stat, system.settings, system.watch, system.attach,
            models.images, models.image_add, models.image_probe, models.image_remove,
            models.image_tune, models.devices, models.mount, models.unmount, models.restart,
            self.poison.poison_list, self.poison.poison_lift,
            users.user_add, users.user_list, users.user_remove, users.user_role,
            users.key_create, users.key_list, users.key_revoke,
            policies.policy_list, policies.policy_edit, self.explain.policy_check,
            policies.policy_simulate, policies.policy_learn, system.shutdown,
        )  # fmt: skip
        return {handler.__name__: handler for handler in handlers}
