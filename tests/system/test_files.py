"""Files that callers name: as they are named, with the caller's rights, and none of ours."""

import ctypes
import errno
import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.storage import filesystem, openat
from llmasos.kernel.storage.filesystem import Access
from llmasos.userland.client import BlockingClient
from tests.conftest import Machine
from tests.drivers.gguf_files import File
from tests.system.raw import Raw, raw
from tests.system.test_authentication import AS_BOB, BOB, bob, hello, open_place, owner
from tests.system.test_authentication import shared as public

__all__ = ["open_place", "public"]  # fixtures

ROOT = os.geteuid() == 0
SECRET = "sk-a-key-that-nobody-may-see"
TRIES = 1_000  # of each outcome, while a path is swapped
EXCHANGE = 2  # of renameat2: two names change places
DEADLINE_S = 60
Opener = Callable[[int, str, int], int]


def walked(folder: int, path: str, flags: int) -> int:
    return openat.walk_beneath(folder, os.fsencode(path), flags)


@pytest.fixture
def line(shared: Machine) -> Iterator[BlockingClient]:
    with BlockingClient(shared.paths.socket) as line:
        yield line


@pytest.fixture
def pid(line: BlockingClient) -> int:
    return line.call("spawn", v.Spawn("echo", keep=False), v.Spawned).pid


def refused(line: BlockingClient, pid: int, path: Path | str) -> SyscallError:
    with pytest.raises(SyscallError) as caught:
        line.call("mmap", v.Mmap(pid, f"/files{path}"), v.Mapped)
    assert line.call("read_mem", v.ReadMem(pid), v.Pages).pages == []
    assert SECRET not in str(caught.value)
    return caught.value


# --- beneath a folder -----------------------------------------------------------------------------
@pytest.mark.parametrize("opener", [openat.open_beneath, walked])
def test_nothing_leads_out_of_a_folder(tmp_path: Path, opener: Opener) -> None:
    inside = tmp_path / "inside"
    (inside / "deep").mkdir(parents=True)
    (inside / "deep" / "it").write_text("it")
    (tmp_path / "beside").write_text("beside")
    (inside / "up").symlink_to(tmp_path)
    (inside / "link").symlink_to(inside / "deep" / "it")
    (inside / "magic").symlink_to("/proc/self/cwd")
    folder = os.open(inside, os.O_RDONLY)
    try:
        file = opener(folder, "deep/it", os.O_RDONLY)
        assert os.read(file, 10) == b"it"
        os.close(file)
        for path, number in (
            ("up/beside", errno.ELOOP), ("link", errno.ELOOP), ("magic", errno.ELOOP),
            ("magic/x", errno.ELOOP), ("none", errno.ENOENT), ("deep/it/x", errno.ENOTDIR),
        ):  # fmt: skip
            with pytest.raises(OSError, match=r".") as caught:
                opener(folder, path, os.O_RDONLY)
            assert caught.value.errno == number, path
    finally:
        os.close(folder)


def test_a_path_that_leads_out_or_ends_early_is_refused(tmp_path: Path) -> None:
    (tmp_path / "it").write_text("it")
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        for path, number in (
            ("../x", errno.EXDEV), ("/etc/hostname", errno.EXDEV), ("it\0x", errno.EINVAL),
        ):  # fmt: skip
            with pytest.raises(OSError, match=r".") as caught:
                openat.open_beneath(folder, path, os.O_RDONLY)
            assert caught.value.errno == number
    finally:
        os.close(folder)


def test_where_the_system_call_is_missing_the_path_is_walked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> int:
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(openat, "_openat2", missing)
    (tmp_path / "it").write_text("it")
    file, _ = Access().run(lambda opener: opener.file(tmp_path / "it"))
    assert os.read(file, 10) == b"it"
    os.close(file)


@pytest.mark.parametrize("opener", [openat.open_beneath, walked])
def test_a_folder_that_becomes_a_link_meanwhile_is_never_followed(
    tmp_path: Path, opener: Opener
) -> None:
    for name, text in (("name", "mine"), ("theirs", SECRET)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "it").write_text(text)
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    here, link = (os.fsencode(tmp_path / one) for one in ("name", "link"))
    rename = ctypes.CDLL(None, use_errno=True).renameat2
    assert rename(-100, here, -100, link, EXCHANGE) == 0, "this file system swaps no names"
    done = threading.Event()

    def swap() -> None:
        """`name` is a folder and a link by turns."""
        while not done.is_set():
            rename(-100, here, -100, link, EXCHANGE)

    swapper = threading.Thread(target=swap)
    swapper.start()
    folder = os.open(tmp_path, os.O_RDONLY)
    found = Counter[bytes | int | None]()
    deadline = time.monotonic() + DEADLINE_S
    try:
        while min(found[b"mine"], found.total() - found[b"mine"]) < TRIES:
            assert time.monotonic() < deadline, found
            try:
                file = opener(folder, "name/it", os.O_RDONLY)
            except OSError as error:
                found[error.errno] += 1
                continue
            found[os.read(file, 100)] += 1
            os.close(file)
    finally:
        done.set()
        swapper.join()
        os.close(folder)
    assert set(found) <= {b"mine", errno.ELOOP, errno.ENOTDIR, errno.ENOENT}, found


# --- what is private ------------------------------------------------------------------------------
def test_what_belongs_to_llmasos_is_given_to_nobody(
    shared: Machine, line: BlockingClient, pid: int, tmp_path: Path
) -> None:
    shared.paths.secrets.mkdir(parents=True, exist_ok=True)
    key = shared.paths.secrets / "private"
    key.write_text(SECRET)
    (shared.paths.config / "config.toml").touch()
    other = tmp_path / "hard"
    os.link(key, other)
    try:
        for path in (
            key, shared.paths.secrets, shared.paths.config, shared.paths.config / "config.toml",
            shared.paths.state, shared.paths.state / "processes.db", shared.paths.runtime,
            shared.paths.cache, shared.paths.secrets / "no-such-key", other,
        ):  # fmt: skip
            said = refused(line, pid, path)
            assert said.errno is Errno.EACCES, (path, said)
    finally:
        key.unlink()
        other.unlink()


@pytest.mark.parametrize(
    "path",
    ["/proc/self/environ", "/proc/1/environ", "/proc", "/proc/self/cwd", "/sys/kernel/profiling",
     "/sys", "/dev/null", "/dev/zero", "/dev"],
)  # fmt: skip
def test_what_the_system_tells_and_devices_are_no_files(
    line: BlockingClient, pid: int, path: str
) -> None:
    assert refused(line, pid, path).errno is Errno.EACCES


def test_links_lead_nowhere(
    shared: Machine, line: BlockingClient, pid: int, tmp_path: Path
) -> None:
    (tmp_path / "own.md").write_text("a text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "it.md").write_text("a text")
    for name, target in (
        ("environ", "/proc/self/environ"), ("state", shared.paths.state),
        ("own", tmp_path / "own.md"), ("up", ".."), ("magic", "/proc/self/cwd/x"),
    ):  # fmt: skip
        (tmp_path / "folder" / name).symlink_to(target)
        said = refused(line, pid, tmp_path / "folder" / name)
        assert said.errno is Errno.EACCES
        assert f"`realpath {tmp_path / 'folder' / name}`" in said.hint
    assert refused(line, pid, tmp_path / "folder" / "up" / "own.md").errno is Errno.EACCES
    up, double, nul = (f"{tmp_path}{end}" for end in ("/folder/../own.md", "//own.md", "/own.md\0"))
    for path in (up, double):
        said = refused(line, pid, path)
        assert (said.errno, "is not a canonical path" in said.message) == (Errno.EACCES, True)
    assert refused(line, pid, nul).errno is Errno.EINVAL
    mapped = line.call("mmap", v.Mmap(pid, f"/files{tmp_path}/folder"), v.Mapped)
    assert (mapped.count, mapped.skipped, mapped.links) == (1, [], 5)


def test_what_is_no_regular_file_does_not_hang(
    line: BlockingClient, pid: int, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for name in ("fifo", "socket"):
            assert refused(line, pid, tmp_path / name).errno is Errno.EINVAL
        (tmp_path / "it.md").write_text("a text")
        mapped = line.call("mmap", v.Mmap(pid, f"/files{tmp_path}"), v.Mapped)
    why = "is not a regular file"
    assert mapped.skipped == [v.SkippedFile("fifo", why), v.SkippedFile("socket", why)]


@pytest.mark.skipif(not ROOT, reason="a device and a mount are made by root")
def test_devices_and_mounts_elsewhere_are_known(shared: Machine, tmp_path: Path) -> None:
    try:
        os.mknod(tmp_path / "null", 0o600 | 0o020000, os.makedev(1, 3))
    except OSError:
        pytest.skip("no devices may be made here")
    with pytest.raises(SyscallError, match="is not a regular file"):
        Access().run(lambda opener: opener.file(tmp_path / "null"))
    (tmp_path / "bound").mkdir()
    (shared.paths.state / "owners").mkdir(exist_ok=True)
    for source in (shared.paths.state / "owners", Path("/proc")):
        if subprocess.run(["mount", "--bind", source, tmp_path / "bound"]).returncode:
            pytest.skip("nothing may be mounted here")
        try:
            with pytest.raises(SyscallError, match="belongs to LLMasOS"):
                Access((shared.paths.state,)).run(lambda opener: opener.folder(tmp_path / "bound"))
        finally:
            subprocess.run(["umount", tmp_path / "bound"], check=True)


# --- each file of a folder ------------------------------------------------------------------------
def test_a_rule_about_a_file_holds_when_its_folder_is_mapped(
    shared: Machine, line: BlockingClient, pid: int, tmp_path: Path
) -> None:
    for name in ("one.md", "private/two.md", "three.md", "odd name:x.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"a text of {name}")
    rows = [
        f"p, r:operator, mmap, /files{tmp_path}/private/*, deny",
        f"p, r:operator, mmap, /files{tmp_path}/three.md, ask",
        f"p, r:operator, mmap, /files{tmp_path}/odd+20name:x.md, deny",
    ]
    with BlockingClient(shared.paths.socket, profile=v.Profile.OWNER) as owner:
        owner.call("policy_edit", v.PolicyEdit(add=rows), v.PolicyChanged)
        try:
            mapped = line.call("mmap", v.Mmap(pid, f"/files{tmp_path}"), v.Mapped)
            for name in ("private", "private/two.md", "three.md"):
                if name != "private":
                    with pytest.raises(SyscallError, match=r"policy\.csv"):
                        line.call("mmap", v.Mmap(pid, f"/files{tmp_path}/{name}"), v.Mapped)
        finally:
            owner.call("policy_edit", v.PolicyEdit(remove=rows), v.PolicyChanged)
    assert [page.key for page in line.call("read_mem", v.ReadMem(pid), v.Pages).pages] == ["one.md"]
    assert [one.name for one in mapped.skipped] == ["odd name:x.md", "private/two.md", "three.md"]
    assert all(one.why.startswith("policy.csv:") for one in mapped.skipped)


# --- with the caller's rights ---------------------------------------------------------------------
@AS_BOB
def test_another_user_s_rights_are_that_user_s(open_place: Path) -> None:
    mine, theirs, closed = (open_place / name for name in ("mine", "theirs", "closed"))
    closed.mkdir(mode=0o700)
    for path in (mine, theirs, closed / "it"):
        path.write_text("a text")
        path.chmod(0o600)
    os.chown(mine, BOB, BOB)
    access = Access((), filesystem.Rights(BOB, BOB, ()))
    file, _ = access.run(lambda opener: opener.file(mine))
    assert os.read(file, 10) == b"a text"
    os.close(file)
    for path in (theirs, closed / "it", closed / "none", open_place / "none"):
        with pytest.raises(SyscallError, match=f"{path} does not exist or you may not") as caught:
            access.run(partial(filesystem.Opener.file, path=path))
        assert caught.value.errno is Errno.ENOENT
    file, _ = Access().run(lambda opener: opener.file(theirs))  # and the kernel has its own again
    os.close(file)
    os.chown(theirs, 0, 4_321)
    theirs.chmod(0o640)
    grouped = Access((), filesystem.Rights(BOB, BOB, (4_321,)))
    file, _ = grouped.run(lambda opener: opener.file(theirs))
    os.close(file)


def told(client: Raw, call: str, at: Path, /, **fields: object) -> str:
    """What a refusal says, whatever the path."""
    error = client.refused(call, **fields)
    return f"{error['errno']} {error['message']} {error['hint']}".replace(str(at), "X")


@AS_BOB
def test_an_operator_of_a_shared_machine_learns_nothing_of_others_files(
    public: Machine, open_place: Path
) -> None:
    """The daemon is root and could read all of them."""
    files = open_place / "files"
    (files / "closed").mkdir(parents=True)
    (files / "closed").chmod(0o700)
    paths = [files / name for name in ("there", "missing", "closed/there", "closed/missing")]
    for path in paths[::2]:
        path.write_bytes(File().bytes())
        path.chmod(0o600)
    own = files / "own.md"
    own.write_text("a text")
    os.chown(own, BOB, BOB)
    own.chmod(0o600)
    with owner(public) as root:
        root.call("user_add", name="bob", uid=BOB, role="operator")
    with bob(public) as client:
        hello(client, profile="operator")
        pid = client.call("spawn", model="echo")["pid"]
        said = {told(client, "image_add", path, name="x", path=str(path)) for path in paths}
        said |= {told(client, "mmap", path, pid=pid, source=f"/files{path}") for path in paths}
        assert said == {
            "2 X does not exist or you may not read it `ls -ld X` shows its permissions"
        }
        assert client.call("mmap", pid=pid, source=f"/files{own}")["count"] == 1
        folder = client.call("mmap", pid=pid, source=f"/files{files}")
        assert folder["count"] == 1
        [skipped] = [one for one in folder["skipped"] if one["name"] == "there"]
        assert skipped["why"] == "does not exist or you may not read it"


@AS_BOB
def test_a_user_who_comes_with_a_key_alone_reads_no_files(public: Machine, tmp_path: Path) -> None:
    (tmp_path / "it.md").write_text("a text")
    with owner(public) as root:
        root.call("user_add", name="robot", role="operator")
        key = root.call("key_create", user="robot")["key"]
    with bob(public) as client:
        hello(client, profile="operator", key=key)
        pid = client.call("spawn", model="echo")["pid"]
        error = client.refused("mmap", pid=pid, source=f"/files{tmp_path}/it.md")
        assert error["errno"] == Errno.EACCES
        assert "`llmasos mem write PID`" in error["hint"]


# --- models ---------------------------------------------------------------------------------------
def installed(client: Raw, path: Path) -> str:
    kind = client.refused("image_add", name="probe", path=str(path))
    return f"{kind['errno']} {kind['message']}".replace(str(path), "X")


def test_a_model_is_a_file_that_its_installer_may_read(shared: Machine, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(File().bytes())
    (tmp_path / "link.gguf").symlink_to(model)
    os.mkfifo(tmp_path / "fifo")
    with raw(shared.paths.socket, "operator") as client:
        for path, number in (
            (tmp_path / "none", Errno.ENOENT), (tmp_path / "link.gguf", Errno.EACCES),
            (tmp_path / "fifo", Errno.EINVAL), (tmp_path, Errno.EINVAL),
            (shared.paths.state / "processes.db", Errno.EACCES),
            (shared.paths.state / "no-such.db", Errno.EACCES),
            (Path("/proc/self/mem"), Errno.EACCES), (Path("/dev/zero"), Errno.EACCES),
        ):  # fmt: skip
            assert installed(client, path).startswith(f"{number} "), path
        (tmp_path / "text").write_text(SECRET)
        said = installed(client, tmp_path / "text")
        assert said.startswith(f"{Errno.EINVAL} text is not a usable GGUF model")
        assert client.call("image_add", name="probe", path=str(model))["path"] == str(model)
        client.call("image_remove", name="probe")
