"""AsyncLLMasOS: one connection to a kernel, one method for each syscall, and models and processes.

The methods are named as the syscalls are; each says what it adds to the table in kernel/abi.py.
Streams (generate, watch, attach) are returned at once and read with `async for`.
"""

import os
import struct
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack

import anyio
from anyio.abc import SocketAttribute

from llmasos.kernel import limits
from llmasos.kernel import values as v
from llmasos.kernel.errors import Errno, NotFound, SyscallError
from llmasos.userland.remote import Remote

from . import application, fork
from .dial import ConnectOptions, dial, target
from .link import Flight, Link, Stream
from .process import AsyncModel, AsyncProcess, Calls, ForkOptions, SpawnOptions
from .prompt import Options, Prompt, batches, request

T = TypeVar("T")
WEEK_S = 7 * 24 * 3600.0


class AsyncLLMasOS(Calls):
    """A connection: `async with AsyncLLMasOS() as client: ...`. Many tasks may use it at once.

    `socket` names a kernel's socket; without it the user's own kernel is meant, and a private one
    is started when none answers (`autostart=False` or LLMASOS_AUTOSTART=0 forbids that).
    `host`, or LLMASOS_HOST, is the HOST:PORT of a kernel on another machine, with a key: `api_key`,
    LLMASOS_KEY, or the file LLMASOS_KEY_FILE. `tls`, or the files LLMASOS_CA, LLMASOS_CLIENT_CERT
    and LLMASOS_CLIENT_KEY, say which certificates are trusted and shown.
    `profile` is the most that it may do: "reader", "careful", "workspace", "open", "operator" or
    "owner". With "careful" that is the processes of its own application, which `app` names; without
    a name it is the program's main module (application.py). Entering raises SyscallError:
    ECONNREFUSED without a daemon, EACCES for a profile that the user may not have or a key that is
    none ("YOUR_API_KEY" counts as no key).
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
        self._open: Link | None = None
        self._stack = AsyncExitStack()
        self.welcome: v.Welcome | None = None  # the kernel's answer to hello

    def __repr__(self) -> str:
        state = "connected" if self._open is not None and self._open.alive else "not connected"
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
            link = Link(stream)
            self.welcome = await link.greet(self._hello)
            application.show(self.welcome.notices)
            group = anyio.create_task_group()
            await group.__aenter__()
            group.start_soon(link.run)

            async def stop() -> None:
                group.cancel_scope.cancel()
                await group.__aexit__(None, None, None)  # an error of the caller stays as it is

            stack.push_async_callback(stop)
            self._open = link
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if not self.forked:
            await self._stack.aclose()

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that connected."""
        return self._open is not None and self._open.forked

    @property
    def _link(self) -> Link:
        if self._open is None:
            raise RuntimeError("not connected: `async with AsyncLLMasOS() as client:`")
        return self._open

    async def _call(self, name: str, request: object, reply: type[T]) -> T:
        return await self._link.call(name, request, reply)

    # --- models and processes ---------------------------------------------------------------------
    async def get_model(self, name: str) -> AsyncModel:
        """A model by its name or alias. ENOENT lists what there is and how to make an alias."""
        images = (await self.images()).images
        for image in images:
            if name == image.name or name in image.aliases:
                return AsyncModel(self, self._begin, name, image)
        names = sorted({known for image in images for known in (image.name, *image.aliases)})
        raise NotFound(
            Errno.ENOENT,
            f"there is no model {name!r}; there are: {', '.join(names) or 'none'}",
            f"`llmasos models alias {name} EXISTING` gives one this name",
        )

    async def _begin(self, model: str) -> AsyncProcess:
        return await self.spawn(model, app="model", keep=False)

    def process(self, pid: int) -> AsyncProcess:
        """A process that exists already; `async with` does not end it.

        Its first call raises NotFound when it does not exist.
        """
        return AsyncProcess(self, pid, keep=True)

    async def reap(self, pid: int) -> v.Exit:
        """End a process and wait until it is gone. ESRCH when it is already."""
        link = self._link
        killed, ended = link.begin("kill", v.Kill(pid)), self._reaping(pid)
        # Both are sent before anything is waited for, so whoever is cancelled now has ended it.
        try:
            await link.reply(killed, v.Nothing)
        except NotFound:
            pass  # it has ended by itself: the wait reaps it
        except SyscallError:
            link.abandon(ended)
            raise
        return await link.reply(ended, v.Exit)

    def _reaping(self, pid: int) -> Flight:
        return self._link.begin("wait", v.Wait(pid), soon=True)

    def _discard(self, pids: Sequence[int]) -> None:
        """End processes whose maker was cancelled before it knew them. Never waits."""
        with suppress(SyscallError):  # the connection is gone, and they are gone with it
            for pid in pids:
                self._link.begin("kill", v.Kill(pid))
                self._reaping(pid)

    # --- syscalls ---------------------------------------------------------------------------------
    async def spawn(self, model: str, **options: Unpack[SpawnOptions]) -> AsyncProcess:
        """Start a process on a model, which is mounted if need be.

        It ends with its `async with` or with this connection, unless `keep=True`. Raises NotFound
        for a model that is not there, Busy when the table is full, TooBig for a system prompt over
        the window, EngineFailed.
        """
        keep = options.setdefault("keep", False)
        flight = self._link.begin("spawn", v.Spawn(model, **options))
        flight.undo = lambda fields: self._discard([fields["pid"]])
        spawned = await self._link.finish(flight, v.Spawned)
        return AsyncProcess(self, spawned.pid, spawned, keep=keep)

    def generate(
        self, pid: int, prompt: Prompt, **options: Unpack[Options]
    ) -> Stream[v.Delta, v.Generated]:
        """Continue a process's conversation: deltas of text, then a Generated as `reply`.

        ESRCH, E2BIG, EAGAIN while it is in another call, ETIMEDOUT after `timeout_s`, EIO.
        """
        asked = request(pid, prompt, options)
        return Stream(self._link, self._link.begin("generate", asked), v.Delta, v.Generated)

    async def fork(
        self, pid: int, count: int = 1, **options: Unpack[ForkOptions]
    ) -> list[AsyncProcess]:
        """Children that go on from what a process has read and said.

        They end with their `async with` or with this connection, unless `keep=True`. Raises
        NotFound, Busy, EngineFailed.
        """
        keep = options.setdefault("keep", False)
        flight = self._link.begin("fork", v.Fork(pid, count, **options))
        flight.undo = lambda fields: self._discard(fields["pids"])
        forked = await self._link.finish(flight, v.Forked)
        spawned = (v.Spawned(child, forked.model, forked.window) for child in forked.pids)
        return [AsyncProcess(self, one.pid, one, keep=keep) for one in spawned]

    async def tokenize(self, model: str, text: str) -> v.Tokens:
        """The model's tokens of a text, without special ones. ENOENT, E2BIG, EIO."""
        return await self._call("tokenize", v.Tokenize(model, text), v.Tokens)

    async def embed(self, model: str, texts: str | Sequence[str]) -> list[list[float]]:
        """Texts as vectors of length 1, one list of floats a text, in order.

        Any number of texts: EMBED_TEXTS go in one call of the kernel. Raises NotFound for a model
        that is not there, TooBig for one text over the model's window, ENOTSUP when it cannot.
        """
        vectors: list[list[float]] = []
        for batch in batches([texts] if isinstance(texts, str) else texts):
            found = await self._call("embed", v.Embed(model, batch), v.Embedded)
            form = struct.Struct(f"<{found.dimensions}f")
            vectors += [list(form.unpack(one)) for one in found.vectors]
        return vectors

    async def wait(self, pid: int, timeout_s: float | None = None) -> v.Exit:
        """Wait for a process to end, then remove it. ETIMEDOUT after `timeout_s` seconds."""
        return await self._call("wait", v.Wait(pid, timeout_s), v.Exit)

    async def kill(self, pid: int, signal: str = v.Signal.TERM) -> v.Nothing:
        """Send TERM, KILL, INT (end the call in flight), STOP or CONT. ESRCH."""
        return await self._call("kill", v.Kill(pid, v.Signal(signal)), v.Nothing)

    async def nice(self, pid: int, nice: int) -> v.Nothing:
        """Change a process's share: -20 (large) to 19 (small). ESRCH, EINVAL."""
        return await self._call("nice", v.Renice(pid, nice), v.Nothing)

    async def ps(self, *, pid: int = 0, ended: bool = False, after: int = 0) -> v.Processes:
        """Processes by pid, at most PS_ROWS a reply: `next` is the `after` of the next call."""
        return await self._call("ps", v.Ps(pid, ended, after), v.Processes)

    async def stat(self) -> v.Stat:
        """Counters of the kernel."""
        return await self._call("stat", v.Nothing(), v.Stat)

    async def settings(self) -> v.Settings:
        """The settings that the kernel was started with, and where each is from. Operators only."""
        return await self._call("settings", v.Nothing(), v.Settings)

    def watch(
        self, *, since: int | None = None, follow: bool = True, pid: int = 0,
        kinds: list[str] | None = None, interval_s: float = 0.0,
    ) -> Stream[v.Events, v.Nothing]:  # fmt: skip
        """Follow the journal in batches, from a cursor (0: the oldest; None: now)."""
        asked = v.Watch(since, follow, pid, kinds or [], interval_s)
        return Stream(self._link, self._link.begin("watch", asked), v.Events, v.Nothing)

    def attach(self, pid: int) -> Stream[v.Output, v.Exit]:
        """Follow what a process says until it ends. ESRCH."""
        return Stream(self._link, self._link.begin("attach", v.Attach(pid)), v.Output, v.Exit)

    async def images(self) -> v.Images:
        """Installed models."""
        return await self._call("images", v.Nothing(), v.Images)

    async def image_add(
        self, name: str, *, path: str | Path = "", image: str = "", url: str = "",
        options: dict[str, bool | int | float | str] | None = None,
    ) -> v.ImageInfo:  # fmt: skip
        """Install a model file, used in place, or the url of an OpenAI-compatible endpoint.

        Or give an image a second name. Operators only.
        """
        asked = v.ImageAdd(name, _file(path), image, url, options or {})
        return await self._call("image_add", asked, v.ImageInfo)

    def image_tune(
        self, name: str, *, quantisation: str = "Q8_0", measure: bool = True, off: bool = False
    ) -> Stream[v.Progress, v.Tuned]:
        """Requantise a model for this machine: progress, then what was gained. Operators only.

        `off`: delete what was made, and use the original file again.
        """
        asked = v.ImageTune(name, quantisation, measure, off)
        return Stream(self._link, self._link.begin("image_tune", asked), v.Progress, v.Tuned)

    async def image_probe(
        self, name: str, url: str, options: dict[str, bool | int | float | str] | None = None
    ) -> v.Endpoint:
        """Ask an endpoint which models it has, before it is added. EIO: it cannot be used."""
        return await self._call("image_probe", v.ImageProbe(name, url, options or {}),
                                v.Endpoint)  # fmt: skip

    async def image_remove(self, name: str) -> v.Nothing:
        """Forget a model or an alias; the file stays. EBUSY while it is used. Operators only."""
        return await self._call("image_remove", v.ImageRemove(name), v.Nothing)

    async def devices(self, *, hardware: bool = False) -> v.Devices:
        """Mounted devices. `hardware`: find out what there is, mounted or not."""
        return await self._call("devices", v.Look(hardware), v.Devices)

    async def mount(
        self, image: str, /, *, pin: bool = False, **options: bool | int | float | str
    ) -> v.DeviceInfo:
        """Start a model's engine with options of its driver; `pin` keeps it. Users may, too."""
        return await self._call("mount", v.Mount(image, options, pin), v.DeviceInfo)

    async def unmount(self, image: str) -> v.Nothing:
        """Stop a model's engine; its calls end. Operators only."""
        return await self._call("unmount", v.Unmount(image), v.Nothing)

    async def restart(self, device: str) -> v.Restarted:
        """End an engine, or "recall", and start it again; its calls end. Operators only."""
        return await self._call("restart", v.Restart(device), v.Restarted)

    async def poison_list(self) -> v.Poisons:
        """Calls that are refused, or run alone, as their engine crashed. Operators only."""
        return await self._call("poison_list", v.Nothing(), v.Poisons)

    async def poison_lift(self, id: str = "", *, all: bool = False) -> v.Poisons:
        """Let such calls run again. Operators only."""
        return await self._call("poison_lift", v.PoisonLift(id, all), v.Poisons)

    # --- users and keys: owners only --------------------------------------------------------------
    async def user_add(
        self, name: str, *, uid: int | None = None, role: str = v.UserRole.USER
    ) -> v.UserInfo:
        """Let somebody in, by a uid of the operating system or else by keys. EEXIST."""
        return await self._call("user_add", v.UserAdd(name, uid, v.UserRole(role)), v.UserInfo)

    async def user_list(self) -> v.Users:
        """Users, with how many keys and connections each has."""
        return await self._call("user_list", v.Nothing(), v.Users)

    async def user_remove(self, name: str) -> v.Nothing:
        """Let a user in no more; their keys, connections, processes and pages are gone. ENOENT."""
        return await self._call("user_remove", v.UserRemove(name), v.Nothing)

    async def user_role(self, name: str, role: str) -> v.UserInfo:
        """Make a user an owner, operator, user or guest. ENOENT."""
        return await self._call("user_role", v.UserChange(name, v.UserRole(role)), v.UserInfo)

    async def key_create(self, user: str, *, expires_s: float | None = None) -> v.KeyCreated:
        """Make a key of a user; the reply is the only place where it ever stands. ENOENT."""
        return await self._call("key_create", v.KeyCreate(user, expires_s), v.KeyCreated)

    async def key_list(self, user: str = "", *, after: int = 0) -> v.Keys:
        """Keys of a user, or of all, without what is secret in them, the oldest first. ENOENT.

        KEYS_ROWS at once: go on after `more`.
        """
        return await self._call("key_list", v.KeyList(user, after), v.Keys)

    async def key_revoke(self, id: str) -> v.Nothing:
        """End a key by its id; its connections close. ENOENT."""
        return await self._call("key_revoke", v.KeyRevoke(id), v.Nothing)

    # --- the rules --------------------------------------------------------------------------------
    async def policy_list(
        self, *, own: bool = False, after: int = 0, text: bool = False
    ) -> v.Rules:
        """The rules in force, POLICY_ROWS at once: go on after `more`. `own`: the owner's only.

        `text`: instead, the text of the owner's file. E2BIG when no reply can carry it.
        """
        return await self._call("policy_list", v.PolicyList(own, after, text), v.Rules)

    async def policy_edit(
        self, *, add: list[str] | None = None, remove: list[str] | None = None,
        text: str | None = None, undo: bool = False, dry: bool = False,
    ) -> v.PolicyChanged:  # fmt: skip
        """Change the owner's rules: some rows, or all of the text, or back to what was before.

        Nothing given: read the file again. `dry`: only say what would be. ENOENT for a row that is
        not there; EINVAL for rows with mistakes; mistakes of a text are in the reply.
        """
        asked = v.PolicyEdit(add or [], remove or [], text, undo, dry)
        return await self._call("policy_edit", asked, v.PolicyChanged)

    async def policy_check(
        self, subjects: list[str] | None = None, action: str = "", object: str = "", *,
        call: int = 0,
    ) -> v.Verdict:  # fmt: skip
        """What the rules say, and why: of a question, or of the `call` that a refusal told. ENOENT.

        A question is as ["u:ann", "r:careful"], "mount", "/dev/image/echo".
        """
        asked = v.PolicyCheck(subjects or [], action, object, call)
        return await self._call("policy_check", asked, v.Verdict)

    async def policy_simulate(self, text: str, *, since_s: float = WEEK_S) -> v.Simulated:
        """Which calls of the last seconds would end otherwise under other rules of the owner."""
        return await self._call("policy_simulate", v.PolicySimulate(text, since_s), v.Simulated)

    async def policy_learn(
        self, *, pid: int = 0, app: str = "", since_s: float = WEEK_S
    ) -> v.Learned:
        """The least rules that the recorded calls of a process or an app needed."""
        return await self._call("policy_learn", v.PolicyLearn(pid, app, since_s), v.Learned)

    # --- the end ----------------------------------------------------------------------------------
    async def shutdown(self, *, drain: bool = True) -> v.Nothing:
        """Stop the kernel; `drain`: calls in flight get some seconds. Operators only."""
        return await self._call("shutdown", v.Shutdown(drain), v.Nothing)


def _file(path: str | Path) -> str:
    """The kernel does not know our directory."""
    return os.path.abspath(path) if path else ""
