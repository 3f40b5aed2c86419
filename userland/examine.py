"""Checks what a daemon needs to start and work: settings, rules, models and certificates.

`llmasos doctor` runs `llmasos.userland.daemon check` as a process and shows its output.
"""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from llmasos.kernel import boot, config
from llmasos.kernel.abi import paths
from llmasos.kernel.abi.errors import SyscallError
from llmasos.kernel.scheduling.images import installed

Images = Mapping[str, tuple[str, Path]]  # built-in models: name -> driver, file


class Problem(TypedDict):
    status: str  # warn, fail
    what: str
    fix: str


def examine(where: paths.Paths, builtin: Images) -> dict[str, list[Problem]]:
    """Problems by subject: settings, models, network."""
    try:
        settings, listed = config.load(where, {})
        boot.check_rules(where)
    except SyscallError as error:
        fix = error.hint or "correct that file"
        return {"settings": [_fail(error.message, f"{fix}; the daemon cannot start until then")]}
    origins = {one.name: one.origin for one in listed}
    return {
        "settings": [],
        "models": _models(settings, origins, where, builtin),
        "network": _network(settings) if settings.listen else [],
    }


def _models(
    settings: config.Config, origins: Mapping[str, str], where: paths.Paths, builtin: Images
) -> list[Problem]:
    """Models named in the settings that do not exist, and models whose file is missing."""
    try:
        files, aliases = installed(where.state)
    except SyscallError as error:
        return [_fail(error.message, error.hint)]
    known = {*builtin, *files, *aliases}
    named = {"model": settings.model, "memory_embedder": settings.memory_embedder}
    found: list[Problem] = []
    for name, model in named.items():
        if model not in {*known, "builtin", "none"} or (name == "model" and model not in known):
            message = f"{name} = {model!r} ({origins[name]}): no such model"
            available = f"available: {', '.join(sorted(known))}"
            fix = f"`llmasos models add {model} FILE`, or `llmasos config set {name} NAME`"
            found.append(_fail(f"{message}; {available}", fix))
    used = {aliases.get(model, model) for model in named.values()}
    for name, file in sorted(files.items()):
        if file.name and not file.is_file():
            fix = f"restore the file, or `llmasos models rm {name}`"
            problem = _fail if name in used else _warn
            found.append(problem(f"the file of {name} is missing: {file}", fix))
    return found


def _network(settings: config.Config) -> list[Problem]:
    """The certificate and key files that a listening daemon needs."""
    found: list[Problem] = []
    for name in ("tls_cert", "tls_key", "tls_clients"):
        file = Path(str(getattr(settings, name)))
        if not file.name:
            if name != "tls_clients":
                fix = f"`llmasos config set {name} FILE`"
                found.append(_fail(f"listen is {settings.listen}, but {name} is not set", fix))
        elif not file.is_file():
            found.append(
                _fail(f"{name}: no such file: {file}", f"`llmasos config set {name} FILE`")
            )
        elif name == "tls_key" and stat.S_IMODE(file.stat().st_mode) & 0o077:
            found.append(_fail(f"the key {file} is readable by others", f"chmod 600 {file}"))
    return found


def _fail(what: str, fix: str) -> Problem:
    return {"status": "fail", "what": what, "fix": fix}


def _warn(what: str, fix: str) -> Problem:
    return {"status": "warn", "what": what, "fix": fix}
