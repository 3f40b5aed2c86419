"""Messages between processes."""

from .. import values as v
from ..machine import Machine
from .call import Call


async def send(m: Machine, call: Call, request: v.Send) -> v.Sent:
    """To a process, from whoever calls or from a process of theirs. EAGAIN: its mailbox is full."""
    to = m.processes.living(request.pid, call.caller.owner)
    author = call.caller.author
    if request.sender:
        author = f"app:{m.processes.living(request.sender, call.caller.owner).app}"
    return v.Sent(*await m.mail.send(to, request, author))


async def recv(m: Machine, call: Call, request: v.Recv) -> v.Mail:
    """The oldest message; whoever waits for one holds no slot. ETIMEDOUT."""
    process = m.processes.living(request.pid, call.caller.owner)
    return await m.mail.receive(process, request, call.caller.connection)
