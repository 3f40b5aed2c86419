"""The table of syscalls: request, reply or stream, object and errnos of each.

Everything that knows a syscall by name is generated from TABLE or tested against it: the
dispatch, the SDK, the actions of the policy, the documentation. The request and reply types are
in values/, the errors in errors.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from . import values as v
from .errors import Errno


class Durability(StrEnum):
    A = "A"  # acknowledged after fsync
    B = "B"  # acknowledged after the write: survives kill -9, but not a power cut
    C = "C"  # counted, no journal event per call


@dataclass(frozen=True, slots=True)
class Syscall:
    """One row of the table. `object` is what the policy checks, with fields of the request."""

    name: str
    request: type
    reply: type
    object: str
    durability: Durability
    errnos: tuple[Errno, ...]
    summary: str
    item: type | None = None  # of a stream: the type of the items before the reply
    acts_as_process: bool = False  # the subjects of the process must be allowed it as well
    second: str = ""  # another object that the policy checks, if its field is not 0
    own_object: str = ""  # checked if `object` is denied: only what the caller's application owns


_A, _B, _C = Durability.A, Durability.B, Durability.C
_E = Errno
_ROWS = (
    Syscall("hello", v.Hello, v.Welcome, "/kernel/profile/{profile}", _C, (_E.EPROTO,),
            "agree on a version and a profile"),
    Syscall("spawn", v.Spawn, v.Spawned, "/dev/image/{model}", _A,
            (_E.ENOENT, _E.ESRCH, _E.E2BIG, _E.EAGAIN, _E.EIO, _E.ENOMEM, _E.ENOSPC),
            "start a process", v.Progress, second="/proc/{parent}"),
    Syscall("generate", v.Generate, v.Generated, "/proc/{pid}/generate", _B,
            (_E.ESRCH, _E.ENOENT, _E.E2BIG, _E.EAGAIN, _E.EIO, _E.ETIMEDOUT, _E.ECANCELED,
             _E.ENOMEM, _E.ENOSPC, _E.ENOTSUP, _E.EPOISON),
            "generate the next answer of a process, or a single answer of a model", v.Delta,
            acts_as_process=True),
    Syscall("fork", v.Fork, v.Forked, "/proc/{pid}/fork", _A,
            (_E.ESRCH, _E.EAGAIN, _E.EIO, _E.ENOSPC), "start children with a process's context",
            acts_as_process=True),
    Syscall("tokenize", v.Tokenize, v.Tokens, "/dev/image/{model}", _C,
            (_E.ENOENT, _E.EIO, _E.ENOMEM, _E.E2BIG), "convert text to the model's tokens"),
    Syscall("embed", v.Embed, v.Embedded, "/dev/image/{model}", _C,
            (_E.ENOENT, _E.EIO, _E.ENOMEM, _E.E2BIG, _E.ENOTSUP), "convert texts to vectors"),
    Syscall("read_mem", v.ReadMem, v.Pages, "/proc/{pid}/mem", _C, (_E.ESRCH,),
            "read the pages of a process"),
    Syscall("write_mem", v.WriteMem, v.Written, "/proc/{pid}/mem", _A,
            (_E.ESRCH, _E.ENOENT, _E.E2BIG, _E.EIO, _E.ENOMEM, _E.ENOSPC),
            "write pages, replace a page, or write under a key"),
    Syscall("search_mem", v.SearchMem, v.Hits, "/proc/{pid}/mem", _C, (_E.ESRCH,),
            "search pages by words and meaning"),
    Syscall("pin", v.Pin, v.Nothing, "/proc/{pid}/mem", _A,
            (_E.ESRCH, _E.ENOENT, _E.E2BIG, _E.ENOSPC), "pin pages in the window, or unpin them"),
    Syscall("evict", v.Evict, v.Nothing, "/proc/{pid}/mem", _A,
            (_E.ESRCH, _E.ENOENT, _E.EBUSY, _E.ENOSPC), "remove pages from the window"),
    Syscall("mmap", v.Mmap, v.Mapped, "{source}", _A,
            (_E.ESRCH, _E.ENOENT, _E.E2BIG, _E.EIO, _E.ENOMEM, _E.ENOSPC),
            "map a document, a folder or another process's pages", second="/proc/{pid}/mem"),
    Syscall("munmap", v.Munmap, v.Nothing, "/proc/{pid}/mem", _A, (_E.ESRCH, _E.ENOENT),
            "remove a mapping"),
    Syscall("share", v.Share, v.Mapped, "/proc/{pid}/mem", _A,
            (_E.ESRCH, _E.ENOENT, _E.ENOSPC), "share pages with another process",
            second="/proc/{to}/mem"),
    Syscall("forget", v.Forget, v.Forgotten, "/proc/{pid}/mem", _A,
            (_E.ESRCH, _E.ENOENT, _E.EIO), "erase pages and everything derived from them"),
    Syscall("trace_mem", v.TraceMem, v.Trace, "/proc/{pid}/mem", _C, (_E.ESRCH, _E.ENOENT),
            "explain why a page is in the window or not"),
    Syscall("fsck", v.Fsck, v.Checked, "/kernel/memory", _A, (_E.EIO, _E.ENOSPC),
            "check the indexes of pages, or rebuild them"),
    Syscall("send", v.Send, v.Sent, "/proc/{pid}/mail", _B, (_E.ESRCH, _E.E2BIG, _E.ENOSPC),
            "send a message to a process", second="/proc/{sender}/mail"),
    Syscall("recv", v.Recv, v.Mail, "/proc/{pid}/mail", _C, (_E.ESRCH, _E.ETIMEDOUT),
            "receive a message"),
    Syscall("wait", v.Wait, v.Exit, "/proc/{pid}", _A, (_E.ESRCH, _E.ETIMEDOUT),
            "wait for a process to end, then remove it"),
    Syscall("kill", v.Kill, v.Nothing, "/proc/{pid}", _A, (_E.ESRCH, _E.ENOSPC),
            "send TERM, KILL, INT, STOP or CONT"),
    Syscall("nice", v.Renice, v.Nothing, "/proc/{pid}", _B, (_E.ESRCH, _E.ENOSPC),
            "change the priority of a process"),
    Syscall("ps", v.Ps, v.Processes, "/proc", _C, (_E.ESRCH,), "list processes",
            own_object="/proc/own"),
    Syscall("stat", v.Nothing, v.Stat, "/kernel", _C, (), "read the counters of the kernel"),
    Syscall("settings", v.Nothing, v.Settings, "/kernel", _C, (),
            "list the kernel's settings"),
    Syscall("watch", v.Watch, v.Nothing, "/journal", _C, (_E.EIO, _E.EAGAIN),
            "follow the journal", v.Events, own_object="/journal/own"),
    Syscall("attach", v.Attach, v.Exit, "/proc/{pid}/output", _C, (_E.ESRCH, _E.EAGAIN),
            "follow the output of a process", v.Output),
    Syscall("images", v.Nothing, v.Images, "/dev/image", _C, (), "list installed models"),
    Syscall("image_add", v.ImageAdd, v.ImageInfo, "/dev/image/{name}", _A,
            (_E.ENOENT, _E.EEXIST, _E.EIO, _E.ENOTSUP, _E.ENOSPC),
            "install a model file, or an alias"),
    Syscall("image_probe", v.ImageProbe, v.Endpoint, "/dev/image/{name}", _B,
            (_E.ENOENT, _E.EIO, _E.ENOTSUP),
            "list the models of an endpoint before it is installed"),
    Syscall("image_remove", v.ImageRemove, v.Nothing, "/dev/image/{name}", _A,
            (_E.ENOENT, _E.EBUSY, _E.ENOSPC),
            "remove a model or an alias; no file is deleted"),
    Syscall("image_tune", v.ImageTune, v.Tuned, "/dev/image/{name}", _A,
            (_E.ENOENT, _E.EBUSY, _E.EIO, _E.ENOTSUP, _E.ENOSPC),
            "choose the quantisation of a model for this machine", v.Progress),
    Syscall("devices", v.ListDevices, v.Devices, "/dev", _C, (),
            "list mounted devices and hardware"),
    Syscall("mount", v.Mount, v.DeviceInfo, "/dev/image/{image}", _A,
            (_E.ENOENT, _E.EBUSY, _E.EIO, _E.ENOMEM, _E.ENOSPC), "start a model's engine",
            v.Progress),
    Syscall("unmount", v.Unmount, v.Nothing, "/dev/image/{image}", _A, (_E.ENOENT, _E.ENOSPC),
            "stop a model's engine and cancel its calls"),
    Syscall("restart", v.Restart, v.Restarted, "/dev/{device}", _A,
            (_E.ENOENT, _E.EBUSY, _E.EIO, _E.ENOMEM, _E.ENOSPC),
            "restart an engine or the recall process"),
    Syscall("poison_list", v.Nothing, v.Poisons, "/kernel/poison", _C, (),
            "list calls that crashed an engine and are refused or run exclusively"),
    Syscall("poison_lift", v.PoisonLift, v.Poisons, "/kernel/poison", _A,
            (_E.ENOENT, _E.ENOSPC), "allow such calls again"),
    Syscall("user_add", v.UserAdd, v.UserInfo, "/users/{name}", _A, (_E.EEXIST, _E.ENOSPC),
            "add a user"),
    Syscall("user_list", v.Nothing, v.Users, "/users", _C, (), "list users"),
    Syscall("user_remove", v.UserRemove, v.Nothing, "/users/{name}", _A, (_E.ENOENT, _E.ENOSPC),
            "remove a user and end their processes"),
    Syscall("user_role", v.UserChange, v.UserInfo, "/users/{name}", _A, (_E.ENOENT, _E.ENOSPC),
            "change the role of a user"),
    Syscall("key_create", v.KeyCreate, v.KeyCreated, "/users/{user}/keys", _A,
            (_E.ENOENT, _E.ENOSPC), "create a key; it is shown once"),
    Syscall("key_list", v.KeyList, v.Keys, "/keys", _C, (_E.ENOENT,),
            "list keys without their secret part"),
    Syscall("key_revoke", v.KeyRevoke, v.Nothing, "/keys/{id}", _A, (_E.ENOENT, _E.ENOSPC),
            "revoke a key and close its connections"),
    Syscall("policy_list", v.PolicyList, v.Rules, "/kernel/policy", _C, (_E.E2BIG,),
            "list the policy rules"),
    Syscall("policy_edit", v.PolicyEdit, v.PolicyChanged, "/kernel/policy", _A,
            (_E.ENOENT, _E.EBUSY, _E.ENOSPC), "change the user rules, or undo a change"),
    Syscall("policy_check", v.PolicyCheck, v.Verdict, "/kernel/policy", _C, (_E.ENOENT,),
            "explain the policy decision for a call"),
    Syscall("policy_simulate", v.PolicySimulate, v.Simulated, "/kernel/policy", _C, (),
            "evaluate recorded calls with other rules"),
    Syscall("policy_learn", v.PolicyLearn, v.Learned, "/kernel/policy", _C, (),
            "derive the minimal rules for recorded calls"),
    Syscall("shutdown", v.Shutdown, v.Nothing, "/kernel", _B, (), "stop the kernel"),
)  # fmt: skip
TABLE: Mapping[str, Syscall] = {row.name: row for row in _ROWS}

# Errnos of any call, in addition to its own row.
COMMON_ERRNOS = (_E.EACCES, _E.EINVAL, _E.EAGAIN, _E.EIO, _E.ECANCELED, _E.ENOSYS)
