"""The blocking client: one connection, used by the command line.

protocol.py has the protocol; this file connects, reads and writes. It imports only the standard
library and the wire format, so that `llmasos ps` loads nothing else. One thread uses a client. A
signal handler may also send on it: this is how ctrl-C interrupts a process while it generates.
Events of other calls that arrive meanwhile are queued by call number.
"""

import os
import socket
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Generic, TypeVar

from llmasos.kernel.abi import limits, paths
from llmasos.kernel.abi.errors import Denied, Errno, SyscallError
from llmasos.kernel.abi.paths import CONNECTION_FD_VARIABLE
from llmasos.kernel.abi.values import Hello, Profile, Welcome

from .protocol import (
    HELLO,
    CallEvent,
    CallFailed,
    ClientProtocol,
    ItemReceived,
    ReplyReceived,
    value_from_frame,
)

Item = TypeVar("Item")
R = TypeVar("R")
T = TypeVar("T")
_CHUNK_BYTES = 1 << 18
COMMAND = limits.COMMAND_APP

_claimed = dict[str, object]()  # inherited descriptor -> token of the caller that claimed it


def started_by_kernel() -> bool:
    """Whether a kernel started this program or one of its ancestors."""
    return CONNECTION_FD_VARIABLE in os.environ


def inherited_connection() -> socket.socket | None:
    """The connection inherited from the kernel. Only the first call returns it.

    None when there is none, or when it is already in use: the kernel then identifies the program by
    its ancestors.
    """
    number, token = os.environ.get(CONNECTION_FD_VARIABLE, ""), object()
    if not number or _claimed.setdefault(number, token) is not token:  # two threads may race here
        return None
    try:
        connection = socket.socket(fileno=int(number))
    except (OSError, OverflowError, ValueError):  # closed by an ancestor, or not a socket
        del _claimed[number]
        return None
    if (connection.family, connection.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        connection.detach()  # the number belongs to another file of this program: leave it open
        del _claimed[number]
        return None
    connection.set_inheritable(False)  # frames of a child would be mixed into ours
    return connection


def default_connection() -> socket.socket:
    """A connection to the kernel that started this program, else to this user's daemon."""
    return inherited_connection() or _connect_to_user_daemon()


def _connect_to_user_daemon() -> socket.socket:
    """A connection to the daemon of this user's directories. Also raises EBUSY, see check_state."""
    where = paths.find()
    connection = connect(where.socket)
    try:
        check_state(where)
    except BaseException:
        connection.close()
        raise
    return connection


def check_state(where: paths.Paths) -> None:
    """Raise EBUSY when the daemon at the socket serves another state directory.

    Not checked when only the runtime directory is set, or when a kernel started this program: both
    select the daemon by its socket, whatever its state directory is.
    """
    runtime_set = bool(os.environ.get("LLMASOS_RUNTIME_DIR"))
    if started_by_kernel() or (runtime_set and not os.environ.get("LLMASOS_STATE_DIR")):
        return
    other = paths.foreign_state(where)
    if other is None:
        return
    message = f"the daemon at {where.socket} has its state in {other}, not in {where.state}"
    variable = f"LLMASOS_RUNTIME_DIR={quote(str(paths.default_runtime(where.state)))}"
    start = f"{'env -u LLMASOS_RUNTIME_DIR' if runtime_set else variable} llmasos daemon start"
    query = f"LLMASOS_STATE_DIR={quote(str(other))} llmasos ps"
    hint = f"`{start}` starts one for {where.state}; `{query}` uses the running one"
    raise SyscallError(Errno.EBUSY, message, hint)


def connect(path: Path) -> socket.socket:
    """A connected socket. ECONNREFUSED: no daemon listens; EACCES: it belongs to another user."""
    check_directory(path)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise connect_error(path, error) from error
    return connection


def check_directory(path: Path) -> None:
    """Check who owns the socket's directory below the temporary directory.

    EACCES: another user created it and would receive our key and our prompts. ECONNREFUSED: it does
    not exist; connecting anyway would race with somebody who creates it after this check. A
    directory set with LLMASOS_RUNTIME_DIR is not checked.
    """
    folder = path.parent
    if not paths.is_temporary(folder):
        return
    try:
        status = folder.lstat()
    except OSError as error:
        raise connect_error(path, error) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        hint = "set LLMASOS_RUNTIME_DIR to a directory that you own"
        raise Denied(f"{folder} belongs to another user", hint)


def connect_error(path: Path, error: OSError) -> SyscallError:
    """The SyscallError for a failed connection."""
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError, NotADirectoryError)):
        hint = "`llmasos daemon start`"
        if started_by_kernel():
            hint = "set LLMASOS_RUNTIME_DIR to that of the kernel that started this program"
        return SyscallError(Errno.ECONNREFUSED, f"no daemon answers at {path}", hint)
    if isinstance(error, PermissionError):
        hint = "it belongs to another user; set LLMASOS_RUNTIME_DIR to a directory that you own"
        return Denied(f"cannot open {path}: permission denied", hint)
    hint = "`llmasos config path` shows the path in use; LLMASOS_RUNTIME_DIR sets another directory"
    return SyscallError(Errno.EINVAL, f"{path}: {error}", hint)


class BlockingStream(Generic[Item, R]):
    """The items of a streaming syscall. `reply` is set after the last item."""

    def __init__(
        self, client: "BlockingClient", number: int, item: type[Item], kind: type[R]
    ) -> None:
        self._client = client
        self._number = number
        self._item, self._kind = item, kind
        self.reply: R | None = None

    def __iter__(self) -> Iterator[Item]:
        while self.reply is None:
            event = self._client.next_event(self._number)
            if isinstance(event, ReplyReceived):
                self.reply = value_from_frame(event.fields, self._kind)
                return
            yield value_from_frame(event.fields, self._item)

    def cancel(self) -> None:
        """Cancel the call: the iteration then raises ECANCELED."""
        self._client.cancel(self._number)


def _connected(target: Path | socket.socket | None) -> socket.socket:
    if isinstance(target, socket.socket):
        return target
    return default_connection() if target is None else connect(target)


class _Unsent:
    """Frames that are being written. A signal handler may raise an exception at any moment."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._sent = list[int]()  # bytes of each write

    def send(self, connection: socket.socket) -> bool:
        """Write what is left, or a part of it; whether all is written."""
        rest = self._data[sum(self._sent) :]
        # In one C function, so that no exception comes between the write and its count.
        self._sent.extend(map(connection.send, [rest]))
        return sum(self._sent) == len(self._data)


class BlockingClient:
    """A connection after the `hello` syscall. `welcome` is the kernel's reply with its notices.

    `target`: the path of a kernel's socket, or a connected socket. None: the inherited connection,
    else this user's kernel. `app`: the application that the kernel records; the command line by
    default.
    """

    def __init__(
        self, target: Path | socket.socket | None = None, *, app: str = COMMAND,
        profile: Profile = Profile.OPERATOR, key: str | None = None,
    ) -> None:  # fmt: skip
        self._protocol = ClientProtocol(Hello(limits.PROTOCOL_VERSION, app, profile, key))
        self._events = {HELLO: deque[CallEvent]()}  # not read yet, by call number
        self._writing = False
        self._unsent: _Unsent | None = None
        self._socket = _connected(target)
        self._socket.settimeout(limits.START_S)  # a kernel that hangs does not hang its clients
        try:
            self._write()
            self.welcome = self._reply(HELLO, Welcome)
            self._socket.settimeout(None)
        except BaseException:
            self.close()
            raise

    def call(self, name: str, request: object, reply: type[T]) -> T:
        """The reply of one syscall. Raises the kernel's SyscallError; EPIPE: the kernel exited."""
        return self._reply(self.send(name, request), reply)

    def _reply(self, number: int, kind: type[T]) -> T:
        while isinstance(event := self.next_event(number), ItemReceived):
            pass  # progress, not used here
        return value_from_frame(event.fields, kind)

    def stream(
        self, name: str, request: object, item: type[Item], reply: type[R]
    ) -> BlockingStream[Item, R]:
        """Start a streaming syscall."""
        return BlockingStream(self, self.send(name, request), item, reply)

    def send(self, name: str, request: object) -> int:
        """Start a call and return its number. Signal handlers may call this. E2BIG.

        An exception of a signal handler, such as ctrl-C, cancels the call. The rest of its frame is
        sent before the next one.
        """
        number = self._protocol.call(name, request)
        self._events[number] = deque()
        try:
            self._write()
        except BaseException:
            del self._events[number]
            self._protocol.cancel(number)
            raise
        return number

    def cancel(self, number: int) -> None:
        """Cancel a call."""
        self._hand_out(self._protocol.cancel(number))
        self._write()

    def next_event(self, number: int) -> ItemReceived | ReplyReceived:
        """The next event of a call. Raises the error of a call that failed."""
        events = self._events[number]
        while not events:
            self._receive()
        event = events.popleft()
        if not isinstance(event, ItemReceived):
            del self._events[number]
        if isinstance(event, CallFailed):
            raise event.error
        return event

    def closed(self) -> None:
        """Wait until the kernel closes the connection."""
        while self._protocol.error is None:
            self._receive()

    def _write(self) -> None:
        """Write what the protocol has to send, unless a signal handler interrupted a write."""
        while not self._writing and (self._unsent or self._protocol.has_output):
            try:
                self._writing = True
                unsent = self._unsent = self._unsent or _Unsent(self._protocol.take_output())
                if unsent.send(self._socket):
                    self._unsent = None
            except OSError:
                self._unsent = None  # the next read raises the reason: the kernel may have sent it
            finally:
                self._writing = False

    def _receive(self) -> None:
        """Wait for bytes, and queue their events."""
        try:
            data = self._socket.recv(_CHUNK_BYTES)
        except OSError as error:
            self._hand_out(self._protocol.end(f"the connection to the daemon failed: {error}"))
        else:
            self._hand_out(self._protocol.receive(data))
            self._write()  # a call may have waited for the end of another

    def _hand_out(self, events: list[CallEvent]) -> None:
        for event in events:
            if event.number in self._events:
                self._events[event.number].append(event)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> "BlockingClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
