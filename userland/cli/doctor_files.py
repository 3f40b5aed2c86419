"""What `llmasos doctor` looks for in files: modes, sockets that were left behind, and what the
daemon's own module finds in its settings."""

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmasos.kernel import paths
from llmasos.kernel.errors import SyscallError
from llmasos.userland import start as starter

from .finding import Finding, joined

_SOCKET_CHARS = 107  # what a unix socket's address holds
_GOOD = {
    "settings": "config.toml and policy.csv can be read",
    "models": "every model that is named exists, and every file is there",
    "network": "certificates are there, or none is needed",
}


def examined() -> dict[str, Finding]:
    """The daemon's own module reads its files, as a process."""
    done = subprocess.run(starter.command("check"), capture_output=True, text=True)
    try:
        found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    except ValueError:
        what = (done.stderr.strip().splitlines() or ["the daemon's module does not run"])[-1]
        return {"settings": Finding("fail", what, "`make setup`, or install llmasos again")}
    return {
        about: joined([Finding(**one) for one in some], _GOOD[about])
        for about, some in found.items()
    }


def socket() -> Finding:
    """Where it would be, and whether one is there that nobody answers at."""
    path = paths.find().socket
    if len(os.fsencode(path)) > _SOCKET_CHARS:
        hint = "set LLMASOS_RUNTIME_DIR to a shorter path"
        return Finding("fail", f"{path} is too long for a socket", hint)
    try:
        mode = path.lstat().st_mode
    except OSError:
        return Finding("ok", f"{path}, not there yet")
    if not stat.S_ISSOCK(mode):
        return Finding("fail", f"{path} is no socket", f"move it away: mv {path} {path}.old")
    if stat.S_IMODE(mode) & 0o007:
        return Finding("fail", f"everybody may open {path}", f"chmod o= {path}")
    try:
        if not starter.answers(paths.find()):
            words = f"{path} was left behind: no daemon answers there"
            return Finding("warn", words, "`llmasos daemon start` replaces it")
    except SyscallError as error:
        return Finding("fail", error.message, error.hint)
    return Finding("ok", str(path))


def modes() -> Finding:
    """Files that others may read or write, and may not."""
    found = [
        Finding("fail", f"others may {what} {path}", f"chmod {change} {path}")
        for path, mask, what, change in _wanted()
        if stat.S_IMODE(path.stat().st_mode) & mask
    ]
    return joined(found, "nobody else may read what is private")


def _wanted() -> Iterator[tuple[Path, int, str, str]]:
    """Files, the bits that they must not have, what these allow, and how they are taken away."""
    where = paths.find()
    for path in (where.config, where.config_file, where.policy_file):
        if path.exists():
            yield path, 0o022, "write", "go-w"
    private = [where.log, where.secrets, *_in(where.secrets), *_in(where.state)]
    for path in private:
        if path.exists() and not path.is_symlink():
            yield path, 0o077, "read", "go="


def _in(folder: Path) -> list[Path]:
    """What stands in a folder; nothing if it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
