"""One short function per syscall; HANDLERS has them in the order of the table.

A `def` handler never waits: its reply is sent at once. An `async def` handler may wait, and streams
with `call.send`. dispatch.py has authorised the call before; a handler checks further permissions
only where a call has more objects than the authorised one.
"""

from collections.abc import Callable, Mapping

from . import explain, mail, models, pages, poison, policies, processes, system, texts, users
from .call import CallContext as CallContext

# Used by dispatch.py; hello is handled by the session. A test compares it with the syscall table.
Handler = Callable[..., object]
HANDLERS: Mapping[str, Handler] = {
    f.__name__: f
    for f in (
        processes.spawn, texts.generate, processes.fork, texts.tokenize, texts.embed,
        pages.read_mem, pages.write_mem, pages.search_mem, pages.pin, pages.evict, pages.mmap,
        pages.munmap, pages.share, pages.forget, pages.trace_mem, pages.fsck, mail.send, mail.recv,
        processes.wait, processes.kill, processes.nice, processes.ps,
        system.stat, system.settings, system.watch, system.attach,
        models.images, models.image_add, models.image_probe, models.image_remove, models.image_tune,
        models.devices, models.mount, models.unmount, models.restart,
        poison.poison_list, poison.poison_lift,
        users.user_add, users.user_list, users.user_remove, users.user_role,
        users.key_create, users.key_list, users.key_revoke,
        policies.policy_list, policies.policy_edit, explain.policy_check,
        policies.policy_simulate, policies.policy_learn, system.shutdown,
    )
}  # fmt: skip
# Calls that read or change the caller's data, which is open while they run.
OWNER_CALLS = frozenset({
    "spawn", "generate", "fork", "read_mem", "write_mem", "search_mem", "pin", "evict", "mmap",
    "munmap", "share", "forget", "trace_mem", "fsck", "send", "recv", "ps",
})  # fmt: skip
