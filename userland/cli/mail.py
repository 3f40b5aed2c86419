"""`llmasos send` and `recv`: messages between processes, and from people to them."""

import sys
from argparse import Namespace

from llmasos.kernel import limits
from llmasos.kernel import values as v

from . import exits
from .door import connect
from .show import document, iso, note, speak
from .stdin import said


def send(arguments: Namespace) -> int:
    text = said(arguments.text, limits.MAIL_CHARS, "send it in parts")
    if not text:
        raise exits.Usage("there is no text", "give it as words, or pipe it in")
    with connect() as line:
        sent = line.call("send", v.Send(arguments.pid, text), v.Sent)
    if arguments.json:
        document({"pid": arguments.pid, "number": sent.number, "waiting": sent.waiting})
    return exits.OK


def recv(arguments: Namespace) -> int:
    """A message is dealt with when it is printed."""
    with connect() as line:
        while True:
            mail = line.call("recv", v.Recv(arguments.pid, arguments.timeout), v.Mail)
            if arguments.json:
                document(mail)
            else:
                _show(mail)
            sys.stdout.flush()  # else it is not: whoever reads us may be gone
            line.call("recv", v.Recv(arguments.pid, done=mail.number, take=False), v.Mail)
            if not arguments.follow:
                return exits.OK


def _show(mail: v.Mail) -> None:
    """The text alone goes to stdout."""
    sender = f"process {mail.sender} ({mail.author})" if mail.sender else mail.author
    labels = f", {' '.join(mail.labels)}" if mail.labels else ""
    note(f"[{sender}, {iso(mail.time)}{labels}]")
    speak(mail.body if mail.body.endswith("\n") else f"{mail.body}\n")
