"""The modules that a fresh Python has loaded after some code."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def modules_after(
    code: str, environment: Mapping[str, str] = os.environ, folder: Path | None = None
) -> set[str]:
    """The names of the modules. The code is not measured, as that loads modules too."""
    show = "\nimport sys; print('MODULES', *sys.modules)"
    plain = {name: value for name, value in environment.items() if "COVERAGE" not in name}
    line = [sys.executable, "-c", code + show]
    done = subprocess.run(line, env=plain, cwd=folder, capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("MODULES")[2].split())
