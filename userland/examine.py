"""What keeps a daemon from starting or working: settings, rules, models and certificates.

`llmasos doctor` runs it as a process, by way of the daemon's module, and shows what it prints.
"""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from llmasos.kernel import boot, config, paths
from llmasos.kernel.errors import SyscallError
from llmasos.kernel.image import installed

Images = Mapping[str, tuple[str, Path]]  # that are built in: name -> driver, file


class Problem(TypedDict):
    status: str  # warn, fail
    what: str
    fix: str


def examine(where: paths.Paths, builtin: Images) -> dict[str, list[Problem]]:
    """Problems by what they are about."""
    try:
        settings, listed = config.load(where, {})
        boot.rules(where)
    except SyscallError as error:
        mend = error.hint or "mend that file"
        return {"settings": [_fail(error.message, f"{mend}; no daemon starts until then")]}
    origins = {one.name: one.origin for one in listed}
    return {
        "settings": [],
        "models": _models(settings, origins, where, builtin),
        "network": _network(settings) if settings.listen else [],
    }


def _models(
    settings: config.Config, origins: Mapping[str, str], where: paths.Paths, builtin: Images
) -> list[Problem]:
    """Models that settings name and that are not there, and models whose file is not."""
    try:
        files, aliases = installed(where.state)
    except SyscallError as error:
        return [_fail(error.message, error.hint)]
    known = {*builtin, *files, *aliases}
    named = {"model": settings.model, "memory_embedder": settings.memory_embedder}
    found: list[Problem] = []
    for name, model in named.items():
        if model not in {*known, "builtin", "none"} or (name == "model" and model not in known):
            words = f"{name} = {model!r} ({origins[name]}): there is no such model"
            there = f"there are {', '.join(sorted(known))}"
            mend = f"`llmasos models add {model} FILE`, or `llmasos config set {name} NAME`"
            found.append(_fail(f"{words}; {there}", mend))
    used = {aliases.get(model, model) for model in named.values()}
    for name, file in sorted(files.items()):
        if file.name and not file.is_file():
            mend = f"put it back, or `llmasos models rm {name}`"
            problem = _fail if name in used else _warn
            found.append(problem(f"the file of {name} is gone: {file}", mend))
    return found


def _network(settings: config.Config) -> list[Problem]:
    """The files of a machine that listens."""
    found: list[Problem] = []
    for name in ("tls_cert", "tls_key", "tls_clients"):
        file = Path(str(getattr(settings, name)))
        if not file.name:
            if name != "tls_clients":
                mend = f"`llmasos config set {name} FILE`"
                found.append(_fail(f"listen is {settings.listen}, and {name} is not set", mend))
        elif not file.is_file():
            found.append(
                _fail(f"{name}: there is no file {file}", f"`llmasos config set {name} FILE`")
            )
        elif name == "tls_key" and stat.S_IMODE(file.stat().st_mode) & 0o077:
            found.append(_fail(f"others may read the key {file}", f"chmod 600 {file}"))
    return found


def _fail(what: str, fix: str) -> Problem:
    return {"status": "fail", "what": what, "fix": fix}


def _warn(what: str, fix: str) -> Problem:
    return {"status": "warn", "what": what, "fix": fix}
