"""The command line in the test's own process: a new one for each of hundreds of calls is slow."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from llmasos.userland.cli import main
from tests.conftest import Machine
from tests.system.raw import raw


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def narrow(self) -> bool:
        """Whether it fits a terminal of 80 columns."""
        return all(len(line) <= 80 for line in self.out.splitlines())

    def pasted(self, number: int = 1) -> str:
        """A command out of what was said on stderr."""
        return self.err.split("`")[number]


Cli = Callable[..., Said]


def command(machine: Machine, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command of this machine's owner."""
    for name in ("RUNTIME", "STATE", "CONFIG"):
        variable = f"LLMASOS_{name}_DIR"
        patch.setenv(variable, machine.environment[variable])

    def run(*words: str) -> Said:
        code = main(words)
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return run


def without_rules(machine: Machine) -> None:
    """Whatever a test has done to the owner's file."""
    machine.paths.config.mkdir(exist_ok=True)
    machine.paths.policy_file.write_text("")
    with raw(machine.paths.socket, "owner") as owner:
        owner.call("policy_edit", text="")
