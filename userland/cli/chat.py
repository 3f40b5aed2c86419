"""`llmasos chat`: a conversation, line by line. Its process keeps it when we leave.

The line editor's history stays in memory: a person's text stands in the owner's directory only.
"""

import signal
import sys
from argparse import Namespace
from types import FrameType

from llmasos.kernel import values as v
from llmasos.kernel.errors import Errno, SyscallError
from llmasos.userland.line import Line

from . import exits, talk
from .door import connect
from .processes import show_processes
from .show import complain, document, note, speak

_HELP = "/stat  the process   /quit, ctrl-D  leave   ctrl-C  stop the answer"
_DEADLY = (Errno.EPIPE, Errno.ECONNREFUSED, Errno.ESRCH)


def chat(arguments: Namespace) -> int:
    terminal = sys.stdin.isatty()
    if terminal:
        import readline as _  # noqa: F401  input() edits lines once it is loaded
    talk.sampling(arguments)  # a file that cannot be read is told before there is a process
    with connect() as line:
        pid = arguments.pid or 0
        if pid:
            _look(line, pid)
        else:
            pid = talk.spawn(line, arguments, "chat", keep=True).pid
        if terminal:
            note(f"pid {pid}.  {_HELP}")
        talking = Talk(line, pid, arguments, terminal=terminal)
        before = signal.getsignal(signal.SIGINT)
        try:
            return talking.run()
        finally:
            signal.signal(signal.SIGINT, before)


def _look(line: Line, pid: int) -> v.ProcessInfo:
    """ESRCH when there is no such process, or it has ended."""
    info = line.call("ps", v.Ps(pid, ended=True), v.Processes).processes[0]
    if info.state is v.State.ENDED:
        raise SyscallError(Errno.ESRCH, f"process {pid} has ended", "`llmasos ps` lists the others")
    return info


class Talk:
    """One conversation at a terminal or a pipe."""

    def __init__(self, line: Line, pid: int, arguments: Namespace, *, terminal: bool) -> None:
        self._line = line
        self._pid = pid
        self._arguments = arguments
        self._sampling = talk.sampling(arguments)
        self._terminal = terminal
        self._noticed: set[str] = set()

    def run(self) -> int:
        code = exits.OK
        try:
            while (said := self._next()) is not None:
                if said:
                    code = self._turn(said) or code  # a failure in between is told at the end
        finally:
            self._leave()
        return code

    def _next(self) -> str | None:
        """The next line. At a terminal, ctrl-C ends nothing but an answer or a line: one that comes
        when the last word of an answer has just been printed was meant for that answer."""
        if not self._terminal:
            return self._read()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return self._read()
        except KeyboardInterrupt:
            note(f"\n{_HELP}")
            return ""
        finally:
            signal.signal(signal.SIGINT, _ignore_once)

    def _read(self) -> str | None:
        """The next line; None when there is no more. Orders are typed: what is piped in is text."""
        try:
            said = input("> " if self._terminal else "").removeprefix("\ufeff").strip()
        except EOFError:
            if self._terminal:
                note("")
            return None
        except UnicodeDecodeError as error:
            words = f"stdin is not valid UTF-8 at byte {error.start}"
            raise SyscallError(Errno.EINVAL, words, "give text in UTF-8") from error
        return self._order(said) if self._terminal and said.startswith("/") else said

    def _order(self, said: str) -> str | None:
        """A line to us and not to the model: None leaves."""
        match said:
            case "/quit" | "/exit":
                return None
            case "/stat":
                show_processes([_look(self._line, self._pid)])
            case "/help":
                note(_HELP)
            case _:
                note(f"{said.split()[0]} is no order here.  {_HELP}")
        return ""

    def _turn(self, said: str) -> int:
        """One question and its answer. An error ends the turn, not the conversation."""
        request = v.Generate(
            self._pid, [v.Message(v.Role.USER, talk.clean(said, "the line"))],
            sampling=self._sampling, timeout_s=self._arguments.timeout,
            deterministic=self._arguments.deterministic, **talk.memory(self._arguments),
        )  # fmt: skip
        json = self._arguments.json
        try:
            turn = talk.say(self._line, request, _swallow if json else speak)
            self._sampling = talk.next_turn(self._sampling)
        except SyscallError as error:
            speak("\n")  # what was said so far stays a line of its own
            if error.errno in _DEADLY:
                raise self._orphaned(error) from error
            complain(error)
            return exits.code(error)
        if json:
            document({**talk.fields(turn), "pid": self._pid})
        else:
            speak("\n")
            self._notice(turn)
        try:
            talk.whole(turn, request.sampling)
        except SyscallError as error:
            complain(error)
            return exits.code(error)
        return exits.OK

    def _notice(self, turn: talk.Turn) -> None:
        """What the kernel has to say, once."""
        for notice in turn.done.notices if turn.done is not None else ():
            if notice not in self._noticed:
                self._noticed.add(notice)
                note(f"[{notice}]")

    def _orphaned(self, error: SyscallError) -> SyscallError:
        """The daemon is gone, the conversation is not."""
        go_on = f"`llmasos chat --pid {self._pid}` goes on before your last question"
        return SyscallError(error.errno, error.message, go_on)

    def _leave(self) -> None:
        """Say how to go on. A conversation in which nobody spoke is not kept."""
        try:
            _look(self._line, self._pid)
            held = self._line.call("read_mem", v.ReadMem(self._pid, 0, 1, texts=False), v.Pages)
        except SyscallError:
            return
        if held.pages or self._arguments.pid:
            note(f"pid {self._pid} keeps this conversation: `llmasos chat --pid {self._pid}`")
        else:
            talk.end(self._line, self._pid)


def _ignore_once(_number: int, _frame: FrameType | None) -> None:
    """The answer that ctrl-C was meant for has ended. A second one is meant for us."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _swallow(_text: str) -> None:
    """JSON is printed when it is whole."""
