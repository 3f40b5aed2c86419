"""A daemon in directories of its own, as a process that a test may start, stop and shoot."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from llmasos.kernel.abi.paths import Paths
from tests.cache import CACHE
from tests.drivers import cut_model
from tests.system.forked import Forked

DOWN_S = 20  # a daemon that a test has stopped by a signal does not end by itself


class Machine:
    """The directories outlive the daemon, as they would a crash. All machines share a cache."""

    def __init__(self, root: Path, *, cache: Path = CACHE) -> None:
        names = ("runtime", "state", "config")
        self.paths = Paths(**{name: root / name for name in names}, cache=cache)
        others = [name for name in os.environ if not name.startswith("LLMASOS_")]
        self.environment = {
            **{name: os.environ[name] for name in others},
            **{f"LLMASOS_{name.upper()}_DIR": str(root / name) for name in names},
            "LLMASOS_CACHE_DIR": str(cache),
            # Beside the other worker's tests, threads that wait for each other only spin.
            "LLMASOS_THREADS": "1",
            # The recall process starts beside each daemon that has pages. Tests that are about it
            # ask for it: see `meaning`.
            "LLMASOS_MEMORY_EMBEDDER": "none",
            # Its mount takes less than half as long as OpenVINO's, and no file is compared before
            # it. Tests where the engine matters ask for both: see `both_engines`.
            "LLMASOS_ENGINE": "llama",
            # Tests that are about what the embedded model says ask for it: see `sense`.
            "PYTHONPATH": str(cut_model.folder()),
        }
        self.under: list[str] = []  # words before its command line
        self._log = root / "log"
        self._process: subprocess.Popen[bytes] | Forked | None = None

    def limits(self, **values: float) -> None:
        """Other limits for the daemons that are started from now on."""
        folder = self.paths.state.parent / "limits"
        folder.mkdir(exist_ok=True)
        lines = [f"limits.{name} = {value!r}" for name, value in values.items()]
        text = "\n".join(["from llmasos.kernel.abi import limits", *lines, ""])
        (folder / "sitecustomize.py").write_text(text)
        self.environment["PYTHONPATH"] = f"{folder}{os.pathsep}{cut_model.folder()}"

    def sense(self) -> None:
        """The embedded model is the whole one, in the daemons that are started from now on."""
        del self.environment["PYTHONPATH"]

    def both_engines(self) -> None:
        """Each file gets the faster engine, in the daemons that are started from now on."""
        del self.environment["LLMASOS_ENGINE"]

    def meaning(self) -> None:
        """Pages are found by their meaning, too, by the daemons that are started from now on."""
        self.environment["LLMASOS_MEMORY_EMBEDDER"] = "builtin"

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
        with self._log.open("ab") as log:
            self._process = self._begin(arguments, log, tell)
        os.close(tell)
        try:
            assert os.read(ready, 64), self.log
        finally:
            os.close(ready)

    def _begin(
        self, words: Sequence[str], log: BinaryIO, tell: int
    ) -> subprocess.Popen[bytes] | Forked:
        if self._forks:
            return Forked(["run", *words], self.environment, log.fileno(), tell)
        line = [sys.executable, "-m", "llmasos.userland.daemon", "run", "--ready-fd", str(tell)]
        return subprocess.Popen(
            [*self.under, *line, *words], env=self.environment, pass_fds=(tell,),
            stdout=log, stderr=log,
        )  # fmt: skip

    @property
    def _forks(self) -> bool:
        """Nothing is to happen before the program is imported, or while it is."""
        before = self.environment.get("PYTHONPATH", "") not in ("", str(cut_model.folder()))
        counted = "COVERAGE_PROCESS_CONFIG" in os.environ
        return not (self.under or before or counted)

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

    def down(self) -> None:
        """End it without draining, so that what it measured of itself is written; or by force."""
        if self._process is None:
            return
        self._process.terminate()
        self._process.terminate()
        try:
            self._process.wait(DOWN_S)
        except subprocess.TimeoutExpired:
            self.shoot()
        self._process = None

    def shoot(self) -> None:
        """SIGKILL, whatever state it is in."""
        if self._process is not None:
            self._process.kill()
            self.reap()
