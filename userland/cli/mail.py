"""`llmasos send` and `recv`: messages between processes, and from users to processes."""

import sys
from argparse import Namespace

from llmasos.kernel.abi import limits
from llmasos.kernel.abi import values as v

from . import exits
from .connection import connect
from .show import iso, note, print_json, write_text
from .stdin import text_argument


def send(arguments: Namespace) -> int:
    text = text_argument(arguments.text, limits.MAIL_CHARS, "send it in parts")
    if not text:
        raise exits.UsageError("no text given", "give it as arguments, or pipe it in")
    with connect() as client:
        sent = client.call("send", v.Send(arguments.pid, text), v.Sent)
    if arguments.json:
        print_json({"pid": arguments.pid, "number": sent.number, "waiting": sent.waiting})
    return exits.OK


def recv(arguments: Namespace) -> int:
    """Print messages. Each one is acknowledged after it has been printed."""
    with connect() as client:
        while True:
            mail = client.call("recv", v.Recv(arguments.pid, arguments.timeout), v.Mail)
            if arguments.json:
                print_json(mail)
            else:
                _show(mail)
            sys.stdout.flush()  # raises if the reader closed the pipe: no acknowledgement
            client.call("recv", v.Recv(arguments.pid, done=mail.number, take=False), v.Mail)
            if not arguments.follow:
                return exits.OK


def _show(mail: v.Mail) -> None:
    """Print the text on stdout and the sender on stderr."""
    sender = f"process {mail.sender} ({mail.author})" if mail.sender else mail.author
    labels = f", {' '.join(mail.labels)}" if mail.labels else ""
    note(f"[{sender}, {iso(mail.time)}{labels}]")
    write_text(mail.body if mail.body.endswith("\n") else f"{mail.body}\n")
