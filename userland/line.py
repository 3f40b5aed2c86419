"""The blocking client: one connection, frames out and in. What the command line speaks through.

Standard library and wire only, so that `llmasos ps` pays for nothing else. One thread uses a line;
a signal handler may send on it too, which is how ctrl-C reaches a process in mid-answer. Frames of
other calls that arrive meanwhile are kept for whoever asks for them.
"""

import os
import socket
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any, Generic, TypeVar

from llmasos.kernel import limits, paths, wire
from llmasos.kernel.errors import Denied, EngineFailed, Errno, SyscallError, error_of
from llmasos.kernel.paths import FD
from llmasos.kernel.values import Hello, Profile, Welcome

Item = TypeVar("Item")
R = TypeVar("R")
T = TypeVar("T")
_CHUNK_BYTES = 1 << 18
COMMAND = limits.COMMAND_APP

GONE = "`llmasos daemon status` tells whether it runs, `llmasos daemon logs` why it left"


_taken = dict[str, object]()  # the inherited descriptor, once somebody here has it


def inherits() -> bool:
    """Whether a kernel started this program, or one above it."""
    return FD in os.environ


def inherited() -> socket.socket | None:
    """The connection that this program came with, once. None when it has none, or none any more:
    then the kernel knows it by its ancestors."""
    number, mine = os.environ.get(FD, ""), object()
    if not number or _taken.setdefault(number, mine) is not mine:  # two threads may ask at once
        return None
    try:
        given = socket.socket(fileno=int(number))
    except (OSError, OverflowError, ValueError):  # closed on the way here, or another file by now
        del _taken[number]
        return None
    if (given.family, given.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        given.detach()  # it is somebody else's here
        del _taken[number]
        return None
    given.set_inheritable(False)  # our children would speak in the midst of our frames
    return given


def own() -> socket.socket:
    """A connection to the kernel that started this program, or else to this user's."""
    return inherited() or _near()


def _near() -> socket.socket:
    """A connection to the daemon of this user's directories. Also EBUSY, see check_state."""
    where = paths.find()
    connection = connect(where.socket)
    try:
        check_state(where)
    except BaseException:
        connection.close()
        raise
    return connection


def check_state(where: paths.Paths) -> None:
    """EBUSY when the daemon that answers at the socket serves another state directory.

    Who names the runtime directory and no state directory wants that socket's daemon, whatever its
    state is; so do the programs that a kernel started.
    """
    named = bool(os.environ.get("LLMASOS_RUNTIME_DIR"))
    if inherits() or (named and not os.environ.get("LLMASOS_STATE_DIR")):
        return
    other = paths.other_state(where)
    if other is None:
        return
    words = f"the daemon at {where.socket} has its state in {other}, not in {where.state}"
    own = f"LLMASOS_RUNTIME_DIR={quote(str(paths.usual_runtime(where.state)))}"
    start = f"{'env -u LLMASOS_RUNTIME_DIR' if named else own} llmasos daemon start"
    ask = f"LLMASOS_STATE_DIR={quote(str(other))} llmasos ps"
    hint = f"`{start}` starts one for {where.state}; `{ask}` asks the one that runs"
    raise SyscallError(Errno.EBUSY, words, hint)


def connect(path: Path) -> socket.socket:
    """A connected socket. ECONNREFUSED when nobody answers, EACCES when it is not ours."""
    check(path)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise refusal(path, error) from error
    return connection


def check(path: Path) -> None:
    """EACCES when somebody else has made our place in the temporary directory first: it would get
    our key and our prompts. A place that was named is taken at its word. ECONNREFUSED when nobody
    has: who made it after this look would not be found out."""
    folder = path.parent
    if not paths.is_temporary(folder):
        return
    try:
        status = folder.lstat()
    except OSError as error:
        raise refusal(path, error) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        hint = "LLMASOS_RUNTIME_DIR names a directory of your own"
        raise Denied(f"{folder} was made by somebody else", hint)


def refusal(path: Path, error: OSError) -> SyscallError:
    """Why a connection was not made, in the caller's words."""
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError, NotADirectoryError)):
        hint = "`llmasos daemon start`"
        if inherits():
            hint = "LLMASOS_RUNTIME_DIR names the directory of the kernel that started this program"
        return SyscallError(Errno.ECONNREFUSED, f"no daemon answers at {path}", hint)
    if isinstance(error, PermissionError):
        hint = "it belongs to another user; LLMASOS_RUNTIME_DIR names a directory of your own"
        return Denied(f"{path} may not be opened", hint)
    hint = "`llmasos config path` shows where it is; LLMASOS_RUNTIME_DIR names another place"
    return SyscallError(Errno.EINVAL, f"{path}: {error}", hint)


def failure(fields: dict[str, Any], call: str) -> SyscallError:
    """The error that an ERROR frame carries. A number of a newer kernel becomes EIO."""
    number = fields.get("errno")
    errno = Errno(number) if number in _ERRNOS else Errno.EIO
    message, hint = str(fields.get("message", "")), str(fields.get("hint", ""))
    error = error_of(errno, message, hint)
    if isinstance(error, Denied):
        error.asks = fields.get("needs_approval") is True
    elif fields.get("engine") is True:
        error = EngineFailed(errno, message, hint)
    error.call, error.pid = str(fields.get("call") or call), int(fields.get("pid") or 0)
    return error


_ERRNOS = frozenset(int(errno) for errno in Errno)


class Stream(Generic[Item, R]):
    """The items of a streaming syscall; `reply` stands there once they have all come."""

    def __init__(self, line: "Line", number: int, name: str, kinds: tuple[type[Item], type[R]]):
        self._line = line
        self._number = number
        self._name = name
        self._item, self._kind = kinds
        self.reply: R | None = None

    def __iter__(self) -> Iterator[Item]:
        while self.reply is None:
            kind, fields = self._line.answer(self._number, self._name)
            if kind == wire.REPLY:
                self.reply = wire.build(self._kind, fields)
                return
            yield wire.build(self._item, fields)

    def cancel(self) -> None:
        """Ask the kernel to end the call: the iteration then ends with ECANCELED."""
        self._line.cancel(self._number)


def _opened(place: Path | socket.socket | None) -> socket.socket:
    if isinstance(place, socket.socket):
        return place
    return own() if place is None else connect(place)


class Line:
    """A connection that has said hello. `welcome` holds the kernel's answer and its notices.

    `place`: the path of a kernel's socket, or a connection that is there already; without it, it is
    the program's own, or goes to this user's kernel. The application that it says it is, is the
    command line.
    """

    def __init__(
        self, place: Path | socket.socket | None = None, *, app: str = COMMAND,
        profile: Profile = Profile.OPERATOR, key: str | None = None,
    ) -> None:  # fmt: skip
        self._frames = wire.Frames()
        self._kept: dict[int, deque[list[Any]]] = {}
        self._outbox: deque[bytes] = deque()
        self._writing = False
        self._last = 0
        self._socket = _opened(place)
        self._socket.settimeout(limits.START_S)  # a kernel that hangs does not hang its clients
        try:
            hello = Hello(limits.PROTOCOL_VERSION, app, profile, key)
            self.welcome = self.call("hello", hello, Welcome)
            self._socket.settimeout(None)
        except BaseException:
            self.close()
            raise

    def call(self, name: str, request: object, reply: type[T]) -> T:
        """The reply of one syscall. Raises SyscallError as the kernel says, EPIPE when it left."""
        number = self.send(name, request)
        while True:
            kind, fields = self.answer(number, name)
            if kind == wire.REPLY:
                return wire.build(reply, fields)

    def stream(
        self, name: str, request: object, item: type[Item], reply: type[R]
    ) -> Stream[Item, R]:
        """Begin a streaming syscall."""
        return Stream(self, self.send(name, request), name, (item, reply))

    def send(self, name: str, request: object) -> int:
        """Begin a call and return its number. Signal handlers may call this. E2BIG."""
        self._last += 1
        number = self._last
        frame = wire.call(number, name, request)
        self._kept[number] = deque()
        self._write(frame)
        return number

    def cancel(self, number: int) -> None:
        self._write(wire.pack([wire.CANCEL, number]))

    def _write(self, frame: bytes) -> None:
        self._outbox.append(frame)
        if self._writing:  # a signal came in the midst of a frame: who writes it sends ours next
            return
        self._writing = True
        try:
            while self._outbox:
                self._socket.sendall(self._outbox.popleft())
        except OSError:
            # The kernel may have said why before it hung up: the read finds out.
            self._outbox.clear()
        finally:
            self._writing = False

    def answer(self, number: int, name: str) -> tuple[int, dict[str, Any]]:
        """The next frame of a call: (kind, fields). Raises what an ERROR frame carries."""
        mine = self._kept[number]
        while not mine:
            self._receive()
        kind, _number, fields = mine.popleft()
        if kind != wire.ITEM:
            del self._kept[number]
        if kind == wire.ERROR:
            raise failure(fields, name)
        return kind, fields

    def _receive(self) -> None:
        """Wait for bytes, and put whole frames where their callers look."""
        try:
            data = self._socket.recv(_CHUNK_BYTES)
        except OSError as error:
            raise SyscallError(Errno.EPIPE, f"the daemon is gone: {error}", GONE) from error
        if not data:
            raise SyscallError(Errno.EPIPE, "the daemon closed the connection", GONE)
        for body in self._frames.feed(data):
            frame = wire.unpack_reply(body)
            if frame[0] == wire.ERROR and frame[1] == 0:
                raise failure(frame[2], "")
            if frame[1] in self._kept:
                self._kept[frame[1]].append(frame)

    def closed(self) -> None:
        """Wait until the kernel has closed its end."""
        try:
            while True:
                self._receive()
        except SyscallError:
            return

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
