"""Messages between processes."""

from ..abi import values as v
from ..machine import Machine
from .call import CallContext


async def send(m: Machine, call: CallContext, request: v.Send) -> v.Sent:
    """Send to a process, from the caller or one of its processes. EAGAIN: the mailbox is full."""
    to = m.processes.get_alive(request.pid, call.caller.owner)
    author = call.caller.author
    if request.sender:
        author = f"app:{m.processes.get_alive(request.sender, call.caller.owner).app}"
    return v.Sent(*await call.owner.mail.send(to, request, author))


async def recv(m: Machine, call: CallContext, request: v.Recv) -> v.Mail:
    """The oldest message; waits for one without using a slot. ETIMEDOUT."""
    process = m.processes.get_alive(request.pid, call.caller.owner)
    return await call.owner.mail.receive(process, request, call.caller.connection)
