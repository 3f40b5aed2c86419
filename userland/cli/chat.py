"""`llmasos chat`: a conversation, line by line. Its process keeps the conversation afterwards.

The history of the line editor stays in memory: a user's text is stored in the owner's directory
only.
"""

import signal
import sys
from argparse import Namespace
from types import FrameType

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient

from . import exits, generation
from .connection import connect
from .processes import show_processes
from .show import note, print_error, print_json, write_text

_HELP = "/stat  the process   /quit, ctrl-D  leave   ctrl-C  stop the answer"
_FATAL = (Errno.EPIPE, Errno.ECONNREFUSED, Errno.ESRCH)


def chat(arguments: Namespace) -> int:
    terminal = sys.stdin.isatty()
    if terminal:
        import readline as _  # noqa: F401  input() edits lines once it is loaded
    generation.sampling(arguments)  # report an unreadable file before creating a process
    with connect() as client:
        pid = arguments.pid or 0
        if pid:
            _process(client, pid)
        else:
            pid = generation.spawn(client, arguments, "chat").pid
        if terminal:
            note(f"pid {pid}.  {_HELP}")
        session = ChatSession(client, pid, arguments, terminal=terminal)
        before = signal.getsignal(signal.SIGINT)
        try:
            return session.run()
        finally:
            signal.signal(signal.SIGINT, before)


def _process(client: BlockingClient, pid: int) -> v.ProcessInfo:
    """A process that has not ended. Raises ESRCH otherwise."""
    info = client.call("ps", v.Ps(pid, ended=True), v.Processes).processes[0]
    if info.state is v.State.ENDED:
        raise SyscallError(Errno.ESRCH, f"process {pid} has ended", "`llmasos ps` lists processes")
    return info


class ChatSession:
    """One conversation at a terminal or a pipe."""

    def __init__(
        self, client: BlockingClient, pid: int, arguments: Namespace, *, terminal: bool
    ) -> None:
        self._client = client
        self._pid = pid
        self._arguments = arguments
        self._sampling = generation.sampling(arguments)
        self._terminal = terminal
        self._shown_notices: set[str] = set()

    def run(self) -> int:
        code = exits.OK
        try:
            while (text := self._next()) is not None:
                if text:
                    code = self._turn(text) or code  # the exit code is that of the last failed turn
        finally:
            self._finish()
        return code

    def _next(self) -> str | None:
        """The next line. At a terminal, ctrl-C discards the line that is being typed.

        A ctrl-C that arrives just after an answer has ended was meant for the answer: the first
        one outside a prompt is ignored.
        """
        if not self._terminal:
            return self._read()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return self._read()
        except KeyboardInterrupt:
            note(f"\n{_HELP}")
            return ""
        finally:
            signal.signal(signal.SIGINT, _ignore_first_interrupt)

    def _read(self) -> str | None:
        """The next line; None at the end of input. Commands are read from a terminal only."""
        try:
            text = input("> " if self._terminal else "").removeprefix("\ufeff").strip()
        except EOFError:
            if self._terminal:
                note("")
            return None
        except UnicodeDecodeError as error:
            message = f"stdin is not valid UTF-8 at byte {error.start}"
            raise SyscallError(Errno.EINVAL, message, "give text in UTF-8") from error
        return self._command(text) if self._terminal and text.startswith("/") else text

    def _command(self, text: str) -> str | None:
        """Run a command such as /stat. Returns None to leave the chat."""
        match text:
            case "/quit" | "/exit":
                return None
            case "/stat":
                show_processes([_process(self._client, self._pid)])
            case "/help":
                note(_HELP)
            case _:
                note(f"{text.split()[0]} is not a command.  {_HELP}")
        return ""

    def _turn(self, text: str) -> int:
        """Send one message and print the answer. An error ends the turn, not the conversation."""
        request = v.Generate(
            self._pid, [v.Message(v.Role.USER, generation.clean(text, "the line"))],
            sampling=self._sampling, timeout_s=self._arguments.timeout,
            deterministic=self._arguments.deterministic, **generation.memory(self._arguments),
        )  # fmt: skip
        json = self._arguments.json
        try:
            turn = generation.generate(self._client, request, _discard if json else write_text)
            self._sampling = generation.next_turn(self._sampling)
        except SyscallError as error:
            write_text("\n")  # end the line of the partial answer
            if error.errno in _FATAL:
                raise self._with_resume_hint(error) from error
            print_error(error)
            return exits.code(error)
        if json:
            print_json({**generation.turn_fields(turn), "pid": self._pid})
        else:
            write_text("\n")
            self._print_notices(turn)
        try:
            generation.check_complete(turn, request.sampling)
        except SyscallError as error:
            print_error(error)
            return exits.code(error)
        return exits.OK

    def _print_notices(self, turn: generation.PromptTurn) -> None:
        """Print each notice of the kernel once per session."""
        for notice in turn.done.notices if turn.done is not None else ():
            if notice not in self._shown_notices:
                self._shown_notices.add(notice)
                note(f"[{notice}]")

    def _with_resume_hint(self, error: SyscallError) -> SyscallError:
        """The error with a hint: the daemon has gone, but the conversation is stored."""
        hint = f"`llmasos chat --pid {self._pid}` continues before your last message"
        return SyscallError(error.errno, error.message, hint)

    def _finish(self) -> None:
        """Print how to continue the conversation. Removes the process of an empty one."""
        try:
            _process(self._client, self._pid)
            stored = self._client.call("read_mem", v.ReadMem(self._pid, 0, 1, texts=False), v.Pages)
        except SyscallError:
            return
        if stored.pages or self._arguments.pid:
            note(f"pid {self._pid} keeps this conversation: `llmasos chat --pid {self._pid}`")
        else:
            generation.remove_process(self._client, self._pid)


def _ignore_first_interrupt(_number: int, _frame: FrameType | None) -> None:
    """Ignore a ctrl-C that was meant for an answer that has just ended; the next one interrupts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _discard(_text: str) -> None:
    """With --json the answer is printed as one document at the end."""
