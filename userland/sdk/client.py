"""AsyncLLMasOS: one connection to a kernel, one method for each syscall, and models and processes.

The methods have the names of the syscalls; the table is in kernel/abi. Streams (generate, watch,
attach, image_tune) are returned at once and read with `async for`.
"""

import os
import struct
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Self, TypeVar, Unpack

import anyio
from anyio.abc import SocketAttribute

from llmasos.kernel.abi import limits
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, NotFound, SyscallError
from llmasos.userland.remote import Remote

from . import application, fork
from .connection import ClientConnection, PendingCall, ReplyStream
from .dial import ConnectOptions, dial, target
from .process import AsyncModel, AsyncProcess, ForkOptions, ProcessCalls, SpawnOptions
from .prompt import ModelOptions, Prompt, batches, request

T = TypeVar("T")
WEEK_S = 7 * 24 * 3600.0


class AsyncLLMasOS(ProcessCalls):
    """A connection: `async with AsyncLLMasOS() as client: ...`. Many tasks may use it at once.

    `socket` is the path of a kernel's socket. Without it the client connects to the user's own
    kernel, and starts a private one when none answers (not with `autostart=False` or
    LLMASOS_AUTOSTART=0). `host`, or LLMASOS_HOST, is the HOST:PORT of a kernel on another machine.
    It requires a key: `api_key`, LLMASOS_KEY, or the file LLMASOS_KEY_FILE. `tls`, or the files
    LLMASOS_CA, LLMASOS_CLIENT_CERT and LLMASOS_CLIENT_KEY, give the trusted authorities and the
    client certificate.

    `profile` bounds the permissions of the connection: "reader", "careful", "workspace", "open",
    "operator" or "owner". "careful" allows the processes of one application, `app`; by default the
    name of the program's main module (application.py).

    Entering raises SyscallError: ECONNREFUSED when no daemon answers, EACCES for a profile that the
    user is not allowed or an invalid key ("YOUR_API_KEY" counts as no key).
    """

    def __init__(self, api_key: str | None = None, **options: Unpack[ConnectOptions]) -> None:
        self._socket = target(options.get("host"), options.get("socket"))
        self._tls = options.get("tls")
        if api_key is None and isinstance(self._socket, Remote):
            api_key = self._socket.key()
        self._autostart = options.get("autostart", True)
        app = options.get("app") or application.name()
        profile = v.Profile(options.get("profile", v.Profile.CAREFUL))
        self._hello = v.Hello(limits.PROTOCOL_VERSION, app, profile, api_key)
        self._opened: ClientConnection | None = None
        self._stack = AsyncExitStack()
        self.welcome: v.Welcome | None = None  # the kernel's answer to hello

    def __repr__(self) -> str:
        state = "connected" if self._opened is not None and self._opened.alive else "not connected"
        hello = self._hello
        return f"AsyncLLMasOS(app={hello.app!r}, profile={str(hello.profile)!r}, {state})"

    # --- the connection ---------------------------------------------------------------------------
    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stream = await dial(self._socket, self._tls, autostart=self._autostart)
            await stack.enter_async_context(stream)
            descriptor = stream.extra(SocketAttribute.raw_socket).fileno()
            fork.opened(descriptor)
            stack.callback(fork.closed, descriptor)
            connection = ClientConnection(stream, self._hello)
            self.welcome = await connection.handshake()
            application.show(self.welcome.notices)
            group = anyio.create_task_group()
            await group.__aenter__()
            group.start_soon(connection.run)

            async def stop() -> None:
                group.cancel_scope.cancel()
                await group.__aexit__(None, None, None)  # the caller's exception is not wrapped

            stack.push_async_callback(stop)
            self._opened = connection
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self.forked:
            await self._stack.aclose()

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that connected."""
        return self._opened is not None and self._opened.forked

    @property
    def _connection(self) -> ClientConnection:
        if self._opened is None:
            raise RuntimeError("not connected: `async with AsyncLLMasOS() as client:`")
        return self._opened

    async def _call(self, name: str, request: object, reply: type[T]) -> T:
        return await self._connection.call(name, request, reply)

    # --- models and processes ---------------------------------------------------------------------
    async def get_model(self, name: str) -> AsyncModel:
        """A model by its name or alias. NotFound lists the installed models."""
        images = (await self.images()).images
        for image in images:
            if name == image.name or name in image.aliases:
                return AsyncModel(self, name, image)
        names = sorted({known for image in images for known in (image.name, *image.aliases)})
        raise NotFound(
            Errno.ENOENT,
            f"no model {name!r}; installed: {', '.join(names) or 'none'}",
            f"`llmasos models alias {name} EXISTING` makes it an alias of an installed model",
        )

    def process(self, pid: int) -> AsyncProcess:
        """An existing process; its `with` block does not end it.

        The first call on it raises NotFound when it does not exist.
        """
        return AsyncProcess(self, pid, keep=True)

    async def reap(self, pid: int) -> v.Exit:
        """End a process, wait for its exit and remove it. ESRCH when it does not exist."""
        connection = self._connection
        killed, ended = connection.begin("kill", v.Kill(pid)), self._begin_wait(pid)
        # Both are sent before the first wait, so a cancelled caller has ended the process too.
        try:
            await connection.reply(killed, v.Nothing)
        except NotFound:
            pass  # it has exited already: `wait` reaps it
        except SyscallError:
            connection.abandon(ended)
            raise
        return await connection.reply(ended, v.Exit)

    def _begin_wait(self, pid: int) -> PendingCall:
        return self._connection.begin("wait", v.Wait(pid), soon=True)

    def _discard(self, pids: Sequence[int]) -> None:
        """End processes whose caller was cancelled before it received their pids. Never waits."""
        with suppress(SyscallError):  # the connection is closed, and they have ended with it
            for pid in pids:
                self._connection.begin("kill", v.Kill(pid))
                self._begin_wait(pid)

    # --- syscalls ---------------------------------------------------------------------------------
    async def spawn(self, model: str, **options: Unpack[SpawnOptions]) -> AsyncProcess:
        """Start a process on a model, and mount the model if needed.

        The process ends with its `with` block or with this connection, unless `keep=True`. Raises
        NotFound for an unknown model, Busy when the process table is full, TooBig for a system
        prompt that exceeds the window, EngineFailed.
        """
        keep = options.setdefault("keep", False)
        call = self._connection.begin("spawn", v.Spawn(model, **options))
        call.undo = lambda fields: self._discard([fields["pid"]])
        spawned = await self._connection.finish(call, v.Spawned)
        return AsyncProcess(self, spawned.pid, spawned, keep=keep)

    def generate(
        self, pid: int, prompt: Prompt, *, model: str = "", **options: Unpack[ModelOptions]
    ) -> ReplyStream[v.Delta, v.Generated]:
        """Continue a process's conversation. Streams Delta items, then a Generated as `reply`.

        With `pid` 0 and a `model`: a single answer, from a process that exists for this call only.
        The items before its text may report the `loading` of the model. ESRCH, ENOENT, E2BIG,
        EAGAIN while the process is in another call, ETIMEDOUT after `timeout_s`, EIO; EINVAL for
        both a pid and a model.
        """
        asked = request(pid, prompt, options, model)
        return self._connection.stream("generate", asked, v.Delta, v.Generated)

    async def fork(
        self, pid: int, count: int = 1, **options: Unpack[ForkOptions]
    ) -> list[AsyncProcess]:
        """Create `count` children with the parent's context.

        They end with their `with` block or with this connection, unless `keep=True`. Raises
        NotFound, Busy, EngineFailed.
        """
        keep = options.setdefault("keep", False)
        call = self._connection.begin("fork", v.Fork(pid, count, **options))
        call.undo = lambda fields: self._discard(fields["pids"])
        forked = await self._connection.finish(call, v.Forked)
        spawned = (v.Spawned(child, forked.model, forked.window) for child in forked.pids)
        return [AsyncProcess(self, one.pid, one, keep=keep) for one in spawned]

    async def tokenize(self, model: str, text: str) -> v.Tokens:
        """The model's tokens of a text, without special tokens. ENOENT, E2BIG, EIO."""
        return await self._call("tokenize", v.Tokenize(model, text), v.Tokens)

    async def embed(self, model: str, texts: str | Sequence[str]) -> list[list[float]]:
        """Embed texts. Returns one vector of length 1 per text, in order.

        Takes any number of texts and sends up to EMBED_TEXTS of them per syscall. Raises NotFound
        for an unknown model, TooBig for a text that exceeds the model's window, ENOTSUP for a model
        that cannot embed.
        """
        vectors: list[list[float]] = []
        for batch in batches([texts] if isinstance(texts, str) else texts):
            found = await self._call("embed", v.Embed(model, batch), v.Embedded)
            form = struct.Struct(f"<{found.dimensions}f")
            vectors += [list(form.unpack(one)) for one in found.vectors]
        return vectors

    async def wait(self, pid: int, timeout_s: float | None = None) -> v.Exit:
        """Wait for a process to exit, then remove it. ETIMEDOUT after `timeout_s` seconds."""
        return await self._call("wait", v.Wait(pid, timeout_s), v.Exit)

    async def kill(self, pid: int, signal: str = v.Signal.TERM) -> v.Nothing:
        """Send a signal: TERM, KILL, INT (cancel the call in flight), STOP or CONT. ESRCH."""
        return await self._call("kill", v.Kill(pid, v.Signal(signal)), v.Nothing)

    async def nice(self, pid: int, nice: int) -> v.Nothing:
        """Set a process's nice value: -20 (largest share) to 19 (smallest). ESRCH, EINVAL."""
        return await self._call("nice", v.Renice(pid, nice), v.Nothing)

    async def ps(self, *, pid: int = 0, ended: bool = False, after: int = 0) -> v.Processes:
        """Processes by pid, at most PS_ROWS per reply: `next` is the `after` of the next call."""
        return await self._call("ps", v.Ps(pid, ended, after), v.Processes)

    async def stat(self) -> v.Stat:
        """Counters of the kernel."""
        return await self._call("stat", v.Nothing(), v.Stat)

    async def settings(self) -> v.Settings:
        """The kernel's settings, each with its origin. Operators only."""
        return await self._call("settings", v.Nothing(), v.Settings)

    def watch(
        self, *, since: int | None = None, follow: bool = True, pid: int = 0,
        kinds: list[str] | None = None, interval_s: float = 0.0,
    ) -> ReplyStream[v.Events, v.Nothing]:  # fmt: skip
        """Follow the journal in batches, from a cursor (0: the oldest; None: now)."""
        asked = v.Watch(since, follow, pid, kinds or [], interval_s)
        return self._connection.stream("watch", asked, v.Events, v.Nothing)

    def attach(self, pid: int) -> ReplyStream[v.Output, v.Exit]:
        """Follow the output of a process until it exits. ESRCH."""
        return self._connection.stream("attach", v.Attach(pid), v.Output, v.Exit)

    async def images(self) -> v.Images:
        """Installed models."""
        return await self._call("images", v.Nothing(), v.Images)

    async def image_add(
        self, name: str, *, path: str | Path = "", image: str = "", url: str = "",
        options: dict[str, bool | int | float | str] | None = None,
    ) -> v.ImageInfo:  # fmt: skip
        """Install a model: a file `path`, used in place, or the `url` of an OpenAI-compatible
        endpoint.

        `image`: add an alias of an installed model instead. Operators only.
        """
        asked = v.ImageAdd(name, _file(path), image, url, options or {})
        return await self._call("image_add", asked, v.ImageInfo)

    def image_tune(
        self, name: str, *, quantisation: str = "", measure: bool = True, off: bool = False
    ) -> ReplyStream[v.Progress, v.Tuned]:
        """Requantise a model for this machine. Streams Progress, then a Tuned with the candidates.

        Without a `quantisation` it measures those that are fast here and chooses one; with
        `measure=False` it is Q8_0.
        `off`: delete the requantised file and use the original again. Operators only.
        """
        asked = v.ImageTune(name, quantisation, measure, off)
        return self._connection.stream("image_tune", asked, v.Progress, v.Tuned)

    async def image_probe(
        self, name: str, url: str, options: dict[str, bool | int | float | str] | None = None
    ) -> v.Endpoint:
        """List the models of an endpoint without adding it. EIO: it cannot be used."""
        return await self._call("image_probe", v.ImageProbe(name, url, options or {}),
                                v.Endpoint)  # fmt: skip

    async def image_remove(self, name: str) -> v.Nothing:
        """Remove a model or an alias, but no file. EBUSY while it is in use. Operators only."""
        return await self._call("image_remove", v.ImageRemove(name), v.Nothing)

    async def devices(self, *, hardware: bool = False) -> v.Devices:
        """Mounted devices. `hardware`: also detect the hardware of this machine."""
        return await self._call("devices", v.ListDevices(hardware), v.Devices)

    async def mount(
        self, image: str, /, *, pin: bool = False, **options: bool | int | float | str
    ) -> v.DeviceInfo:
        """Start a model's engine with options of its driver. `pin`: never unload it when idle.

        `engine="llama"` or `engine="openvino"` computes a model file on this engine. Allowed for
        users too.
        """
        return await self._call("mount", v.Mount(image, options, pin), v.DeviceInfo)

    async def unmount(self, image: str) -> v.Nothing:
        """Stop a model's engine and end its calls. Operators only."""
        return await self._call("unmount", v.Unmount(image), v.Nothing)

    async def restart(self, device: str) -> v.Restarted:
        """Restart an engine, or "recall", and end its calls. Operators only."""
        return await self._call("restart", v.Restart(device), v.Restarted)

    async def poison_list(self) -> v.Poisons:
        """Quarantined calls: refused, or run exclusively, after an engine crash. Operators only."""
        return await self._call("poison_list", v.Nothing(), v.Poisons)

    async def poison_lift(self, id: str = "", *, all: bool = False) -> v.Poisons:
        """Remove calls from the quarantine, by `id` or `all`. Operators only."""
        return await self._call("poison_lift", v.PoisonLift(id, all), v.Poisons)

    # --- users and keys: owners only --------------------------------------------------------------
    async def user_add(
        self, name: str, *, uid: int | None = None, role: str = v.UserRole.USER
    ) -> v.UserInfo:
        """Add a user, identified by a uid of the operating system, or else by keys. EEXIST."""
        return await self._call("user_add", v.UserAdd(name, uid, v.UserRole(role)), v.UserInfo)

    async def user_list(self) -> v.Users:
        """Users, with the number of keys and connections of each."""
        return await self._call("user_list", v.Nothing(), v.Users)

    async def user_remove(self, name: str) -> v.Nothing:
        """Remove a user with their keys, connections, processes and pages. ENOENT."""
        return await self._call("user_remove", v.UserRemove(name), v.Nothing)

    async def user_role(self, name: str, role: str) -> v.UserInfo:
        """Set a user's role: owner, operator, user or guest. ENOENT."""
        return await self._call("user_role", v.UserChange(name, v.UserRole(role)), v.UserInfo)

    async def key_create(self, user: str, *, expires_s: float | None = None) -> v.KeyCreated:
        """Create a key for a user. Only this reply contains the key itself. ENOENT.

        `expires_s`: lifetime in seconds; None: no expiry.
        """
        return await self._call("key_create", v.KeyCreate(user, expires_s), v.KeyCreated)

    async def key_list(self, user: str = "", *, after: int = 0) -> v.Keys:
        """Keys of a user, or of all, without their secrets, oldest first. ENOENT.

        At most KEYS_ROWS per reply: `more` is the `after` of the next call.
        """
        return await self._call("key_list", v.KeyList(user, after), v.Keys)

    async def key_revoke(self, id: str) -> v.Nothing:
        """Revoke a key by its id and close its connections. ENOENT."""
        return await self._call("key_revoke", v.KeyRevoke(id), v.Nothing)

    # --- the rules --------------------------------------------------------------------------------
    async def policy_list(
        self, *, own: bool = False, after: int = 0, text: bool = False
    ) -> v.Rules:
        """The rules in force, at most POLICY_ROWS per reply.

        `more` is the `after` of the next call. `own`: only the user rules. `text`: the text of the
        user rules file instead. E2BIG when it exceeds one reply.
        """
        return await self._call("policy_list", v.PolicyList(own, after, text), v.Rules)

    async def policy_edit(
        self, *, add: list[str] | None = None, remove: list[str] | None = None,
        text: str | None = None, undo: bool = False, dry: bool = False,
    ) -> v.PolicyChanged:  # fmt: skip
        """Change the user rules: `add` or `remove` rows, replace the `text`, or `undo` an edit.

        Without arguments: reload the file. `dry`: report the result without a change. ENOENT for a
        row that does not exist; EINVAL for an invalid row; errors in a text are in the reply.
        """
        asked = v.PolicyEdit(add or [], remove or [], text, undo, dry)
        return await self._call("policy_edit", asked, v.PolicyChanged)

    async def policy_check(
        self, subjects: list[str] | None = None, action: str = "", object: str = "", *,
        call: int = 0,
    ) -> v.Verdict:  # fmt: skip
        """Evaluate the rules and explain the verdict. ENOENT.

        Give `subjects`, `action` and `object`, as in ["u:ann", "r:careful"], "mount",
        "/dev/image/echo", or `call`, the number in the message of a denied call.
        """
        asked = v.PolicyCheck(subjects or [], action, object, call)
        return await self._call("policy_check", asked, v.Verdict)

    async def policy_simulate(
        self, text: str, *, since_s: float = WEEK_S, file: str = ""
    ) -> v.Simulated:
        """Which calls of the last `since_s` seconds would be decided differently under the user
        rules in `text`. `file`: the name of its file, for messages."""
        request = v.PolicySimulate(text, since_s, file)
        return await self._call("policy_simulate", request, v.Simulated)

    async def policy_learn(
        self, *, pid: int = 0, app: str = "", since_s: float = WEEK_S
    ) -> v.Learned:
        """The minimal rules that allow the calls of a process or an app in the last `since_s`
        seconds."""
        return await self._call("policy_learn", v.PolicyLearn(pid, app, since_s), v.Learned)

    # --- the end ----------------------------------------------------------------------------------
    async def shutdown(self, *, drain: bool = True) -> v.Nothing:
        """Stop the kernel. `drain`: wait some seconds for the calls in flight. Operators only."""
        return await self._call("shutdown", v.Shutdown(drain), v.Nothing)


def _file(path: str | Path) -> str:
    """An absolute path: the kernel has another current directory."""
    return os.path.abspath(path) if path else ""
