"""A daemon in directories of its own, as a process that a test may start, stop and shoot."""

import os
import subprocess
import sys
from pathlib import Path

from llmasos.kernel.paths import Paths


class Machine:
    """The directories outlive the daemon, as they would a crash."""

    def __init__(self, root: Path) -> None:
        names = ("runtime", "state", "cache", "config")
        self.paths = Paths(**{name: root / name for name in names})
        self.environment = os.environ | {
            f"LLMASOS_{name.upper()}_DIR": str(root / name) for name in names
        }
        self._log = root / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def start(self, *arguments: str) -> None:
        """Start it and return when it is ready."""
        ready, tell = os.pipe()
        line = [sys.executable, "-m", "llmasos.userland.daemon", "run", "--ready-fd", str(tell)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*line, *arguments], env=self.environment, pass_fds=(tell,), stdout=log, stderr=log
            )
        os.close(tell)
        try:
            assert os.read(ready, 64), self.log
        finally:
            os.close(ready)

    def reap(self) -> int:
        """Wait for its end; the exit code."""
        assert self._process is not None
        code = self._process.wait(60)
        self._process = None
        return code

    def stop(self) -> int:
        """SIGTERM, then its exit code."""
        if self._process is None:
            return 0
        self._process.terminate()
        return self.reap()

    def shoot(self) -> None:
        """SIGKILL, whatever state it is in."""
        if self._process is not None:
            self._process.kill()
            self.reap()
