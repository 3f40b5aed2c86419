"""Checks of `llmasos doctor` on files: modes, stale sockets, and the daemon's configuration."""

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmasos.kernel.abi import paths
from llmasos.kernel.abi.errors import SyscallError
from llmasos.userland import start as starter

from .finding import Finding, joined

_SOCKET_CHARS = 107  # maximum length of the address of a unix socket
_OK = {
    "settings": "config.toml and policy.csv are valid",
    "models": "every configured model and every file exists",
    "network": "certificates exist, or none is needed",
}


def file_findings() -> dict[str, Finding]:
    """Run the daemon's own check of its files, as a subprocess."""
    done = subprocess.run(starter.command("check"), capture_output=True, text=True)
    try:
        found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    except ValueError:
        what = (done.stderr.strip().splitlines() or ["the daemon module failed without a message"])[
            -1
        ]
        return {"settings": Finding("fail", what, "`make setup`, or reinstall llmasos")}
    return {
        about: joined([Finding(**one) for one in findings], _OK[about])
        for about, findings in found.items()
    }


def socket() -> Finding:
    """Check the path and the mode of the socket, and whether a daemon answers on it."""
    path = paths.find().socket
    if len(os.fsencode(path)) > _SOCKET_CHARS:
        hint = "set LLMASOS_RUNTIME_DIR to a shorter path"
        return Finding("fail", f"{path} is too long for a socket", hint)
    try:
        mode = path.lstat().st_mode
    except OSError:
        return Finding("ok", f"{path} does not exist yet")
    if not stat.S_ISSOCK(mode):
        return Finding(
            "fail", f"{path} is not a socket", f"move the file away: mv {path} {path}.old"
        )
    if stat.S_IMODE(mode) & 0o007:
        return Finding("fail", f"every user can open {path}", f"chmod o= {path}")
    try:
        if not starter.answers(paths.find()):
            message = f"{path} is stale: no daemon answers there"
            return Finding("warn", message, "`llmasos daemon start` replaces it")
    except SyscallError as error:
        return Finding("fail", error.message, error.hint)
    return Finding("ok", str(path))


def modes() -> Finding:
    """Find files that other users can read or write but must not."""
    found = [
        Finding("fail", f"other users can {what} {path}", f"chmod {change} {path}")
        for path, mask, what, change in _mask_rules()
        if stat.S_IMODE(path.stat().st_mode) & mask
    ]
    return joined(found, "no other user can read private files")


def _mask_rules() -> Iterator[tuple[Path, int, str, str]]:
    """Files, the mode bits they must not have, what those allow, and the chmod that clears them."""
    where = paths.find()
    for path in (where.config, where.config_file, where.policy_file):
        if path.exists():
            yield path, 0o022, "write", "go-w"
    private = [where.log, where.secrets, *_entries(where.secrets), *_entries(where.state)]
    for path in private:
        if path.exists() and not path.is_symlink():
            yield path, 0o077, "read", "go="


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder; empty if it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
