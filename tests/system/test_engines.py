"""A person chooses the engine of a model file, or the machine does; what was chosen is shown."""

from importlib.util import find_spec

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine
from tests.system.test_life import spawn, turn
from tests.system.test_poison import command
from tests.system.test_tuning import device


def test_the_command_line_chooses_the_engine_and_a_restart_keeps_it(machine: Machine) -> None:
    machine.both_engines()
    machine.start("--mount", "false")
    command(machine, "mount", "smollm2", "--engine", "llama")
    shown = command(machine, "devices")
    assert "gguf" in shown.stdout
    why = "smollm2: cpu0: llama.cpp; "
    [told] = [text for text in shown.stderr.splitlines() if text.startswith(why)]
    assert told.endswith("; as the option engine requests")
    machine.stop()
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        assert turn(line, spawn(line, "smollm2"), "Say hi.")[0]
        assert device(line).placement.endswith("; as the option engine requests")


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_the_setting_chooses_the_engine_of_each_file_unless_a_mount_does(machine: Machine) -> None:
    machine.environment["LLMASOS_ENGINE"] = "openvino"
    machine.start()
    with BlockingClient(machine.paths.socket) as line:
        assert turn(line, spawn(line, "smollm2"), "Say hi.")[0]
        assert device(line).placement.startswith("cpu0: OpenVINO; ")
        line.call("mount", v.Mount("smollm2", {"engine": "llama"}), v.DeviceInfo)
        assert device(line).placement.startswith("cpu0: llama.cpp; ")


def test_an_engine_that_does_not_exist_leaves_what_is_mounted(machine: Machine) -> None:
    machine.start("--engine", "llama")
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line, "smollm2")
        before = device(line).os_pid
        refused = command(machine, "mount", "smollm2", "--engine", "vllm", code=1)
        assert "invalid value 'vllm' for option engine" in refused.stderr
        assert "engine is auto, llama, openvino" in refused.stderr
        with pytest.raises(SyscallError) as caught:
            line.call("mount", v.Mount("smollm2", {"engine": "vllm"}), v.DeviceInfo)
        assert caught.value.errno is Errno.EINVAL
        assert turn(line, pid, "Say hi.")[0]
        assert device(line).os_pid == before
