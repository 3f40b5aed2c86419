"""More conversations than a pool of KV blocks holds: each call waits for room, and none fails."""

from contextlib import ExitStack
from importlib.util import find_spec

import pytest

from llmasos.drivers.local import gguf
from llmasos.drivers.openvino.blocks import BLOCK_TOKENS, SPARE_BLOCKS
from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient
from tests.drivers import cut_model
from tests.system.daemon import Machine
from tests.system.test_life import kill, spawn
from tests.system.test_stopped import Talk

WINDOW, POOL_TOKENS = 512, 640

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")


def test_conversations_share_a_pool_that_is_smaller_than_their_windows(machine: Machine) -> None:
    machine.start("--mount", "false")
    blocks = POOL_TOKENS // BLOCK_TOKENS + SPARE_BLOCKS
    options: dict[str, bool | int | float | str] = {
        "engine": "openvino", "slots": 8, "window": WINDOW,
        "pool_bytes": blocks * BLOCK_TOKENS * gguf.read(cut_model.path()).cell_bytes,
    }  # fmt: skip
    sampling = v.Sampling(temperature=0, max_tokens=24, ignore_eos=True)
    with ExitStack() as stack:
        line = stack.enter_context(BlockingClient(machine.paths.socket))
        line.call("mount", v.Mount("smollm2", options), v.DeviceInfo)
        pids = [spawn(line, "smollm2") for _ in range(8)]
        first = Talk(line, pids[0], "Count to a hundred.", sampling)
        kill(line, pids[0], v.Signal.STOP)
        for turn in range(2):
            talks = [
                line.stream(
                    "generate",
                    v.Generate(
                        pid, [v.Message(v.Role.USER, f"{turn} {pid} " * 50)], sampling=sampling
                    ),
                    v.Delta,
                    v.Generated,
                )
                for pid in pids[1:]
            ]
            for talk in talks:
                assert list(talk)
                assert talk.reply is not None
                assert talk.reply.finish is v.Finish.LENGTH
        kill(line, pids[0], v.Signal.CONT)
        assert first.end().usage.completion_tokens == 24
        [device] = line.call("devices", v.ListDevices(), v.Devices).devices
        assert (device.busy, device.waiting, device.restarts) == (0, 0, 0)
