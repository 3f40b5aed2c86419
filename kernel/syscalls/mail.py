"""Messages between processes."""

from dataclasses import dataclass

from ..abi import values as v
from ..process.table import ProcessTable
from .call import CallContext


@dataclass(frozen=True, slots=True)
class MailSyscalls:
    """The handlers, and the parts of the kernel that they use."""

    processes: ProcessTable

    async def send(self, call: CallContext, request: v.Send) -> v.Sent:
        """Send to a process, from the caller or one of its processes. EAGAIN: a full mailbox."""
        to = self.processes.get_alive(request.pid, call.caller.user)
        author = call.caller.author
        if request.sender:
            author = f"app:{self.processes.get_alive(request.sender, call.caller.user).app}"
        return v.Sent(*await call.data.mail.send(to, request, author))

    async def recv(self, call: CallContext, request: v.Recv) -> v.Mail:
        """The oldest message; waits for one without using a slot. ETIMEDOUT."""
        process = self.processes.get_alive(request.pid, call.caller.user)
        return await call.data.mail.receive(process, request, call.caller.connection)
