"""The embedded model is made fast at its first use; any file is on request, and back again."""

from pathlib import Path

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient
from tests.drivers.default_model import MODEL
from tests.system.daemon import Machine
from tests.system.test_life import spawn, turn


def image(line: BlockingClient, name: str = "smollm2") -> v.ImageInfo:
    found = line.call("images", v.Nothing(), v.Images).images
    return next(one for one in found if one.name == name)


def tune(
    line: BlockingClient, name: str = "smollm2", quantisation: str = "Q8_0", **fields: bool
) -> v.Tuned:
    request = v.ImageTune(name, quantisation, measure=False, **fields)
    stream = line.stream("image_tune", request, v.Progress, v.Tuned)
    for _ in stream:
        pass
    assert stream.reply is not None
    return stream.reply


def device(line: BlockingClient) -> v.DeviceInfo:
    (one,) = line.call("devices", v.ListDevices(), v.Devices).devices
    return one


def wait_for_cancelled_tuning(machine: Machine) -> None:
    with BlockingClient(machine.paths.socket) as journal:
        watch = v.Watch(since=0, kinds=["end"])
        for batch in journal.stream("watch", watch, v.Events, v.Nothing):
            for event in batch.events:
                if event.syscall == "image_tune" and event.errno == Errno.ECANCELED:
                    return


def apart(root: Path) -> Machine:
    """A machine with a cache of its own."""
    return Machine(root, cache=root / "cache")


def test_the_first_use_makes_the_model_fast_and_says_so_once(tmp_path: Path) -> None:
    machine = apart(tmp_path)
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        assert line.welcome.notices == []
        assert image(line).quantisation == "Q4_1"
        assert turn(line, spawn(line, "smollm2"), "Say hi.")[0]
        made = image(line)
        assert made.quantisation == "Q8_0"
        assert Path(made.tuned).parent == machine.paths.cache / "models"
        assert Path(made.tuned).stat().st_size == made.bytes
        assert device(line).note == ""
    with (
        BlockingClient(machine.paths.socket) as first,
        BlockingClient(machine.paths.socket) as second,
    ):
        (notice,) = first.welcome.notices
        size = f"{made.bytes / 1e6:.0f} MB"
        assert f"smollm2 was tuned for this machine, once: Q8_0, {size} in " in notice
        assert notice in machine.log
        assert second.welcome.notices == []
    machine.stop()

    Path(made.tuned).unlink()  # a cache may go at any time
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        assert image(line).quantisation == "Q4_1"
        spawn(line, "smollm2")
        assert image(line).tuned == made.tuned
        assert Path(made.tuned).is_file()
    machine.stop()


def test_the_first_client_hears_of_it_however_fast_it_comes(tmp_path: Path) -> None:
    machine = apart(tmp_path)
    machine.start()
    with BlockingClient(machine.paths.socket) as line:
        assert "tuned for this machine, once" in line.welcome.notices[0]
        heard: list[str] = []
        stream = line.stream("spawn", v.Spawn("smollm2"), v.Progress, v.Spawned)
        heard += [one.stage for one in stream]
        assert set(heard) <= {"quantise", "measure", "load"}
    machine.stop()


def test_a_cache_that_cannot_be_written_leaves_the_model_as_it_was_shipped(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    machine = apart(tmp_path)
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        assert turn(line, spawn(line, "smollm2"), "Say hi.")[0]
        assert (image(line).quantisation, image(line).tuned) == ("Q4_1", "")
        assert "its shipped file is used" in device(line).note
        assert "WARNING smollm2: not tuned, its shipped file is used" in machine.log
        assert line.welcome.notices == []
    machine.stop()


def test_who_does_not_want_it_gets_the_file_as_it_was_shipped(machine: Machine) -> None:
    machine.start("--mount", "false", "--tune", "false")
    with BlockingClient(machine.paths.socket) as line:
        spawn(line, "smollm2")
        assert image(line).tuned == ""


def test_a_model_is_tuned_on_request_and_back_again(tmp_path: Path) -> None:
    machine = apart(tmp_path)
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        before = image(line)
        small = tune(line, quantisation="Q4_K_M")
        assert [row.quantisation for row in small.candidates] == ["Q4_1", "Q4_K_M"]
        assert image(line).digest == before.digest
        with pytest.raises(SyscallError, match="is already Q4_1"):
            tune(line, quantisation="Q4_1")
        with pytest.raises(SyscallError, match="Q9") as caught:
            tune(line, quantisation="Q9")
        assert caught.value.errno is Errno.EINVAL
        assert image(line).tuned == small.path
        spawn(line, "smollm2")
        with pytest.raises(SyscallError, match="is mounted") as caught:
            tune(line, off=True)
        assert caught.value.errno is Errno.EBUSY
        line.call("unmount", v.Unmount("smollm2"), v.Nothing)
        back = tune(line, off=True)
        assert [(row.quantisation, row.chosen) for row in back.candidates] == [("Q4_1", True)]
        assert image(line) == before
        assert list((machine.paths.cache / "models").iterdir()) == []
        spawn(line, "smollm2")
        assert image(line) == before  # what a person decided stays
    machine.stop()


def test_one_tuning_of_a_model_at_a_time_and_who_leaves_ends_it(tmp_path: Path) -> None:
    machine = apart(tmp_path)
    machine.start("--mount", "false")
    models = machine.paths.cache / "models"
    request = v.ImageTune("mine", "IQ4_NL", measure=False)
    with BlockingClient(machine.paths.socket) as line:
        line.call("image_add", v.ImageAdd("mine", path=str(MODEL)), v.ImageInfo)
        with BlockingClient(machine.paths.socket) as first:
            progress = iter(first.stream("image_tune", request, v.Progress, v.Tuned))
            assert next(progress).stage == "quantise"
            with pytest.raises(SyscallError, match="is being tuned already") as caught:
                tune(line, "mine")
            assert caught.value.errno is Errno.EBUSY
        wait_for_cancelled_tuning(machine)  # the first has hung up
        assert Path(tune(line, "mine").path).name.endswith("-Q8_0.gguf")
        assert [path.name[-9:] for path in models.iterdir()] == ["Q8_0.gguf"]
        line.call("image_remove", v.ImageRemove("mine"), v.Nothing)
        assert list(models.iterdir()) == []
        assert MODEL.is_file()
    machine.stop()


def test_a_tuning_on_request_waits_for_that_of_the_first_use(tmp_path: Path) -> None:
    machine = apart(tmp_path)
    machine.start()
    with BlockingClient(machine.paths.socket) as line:
        assert tune(line, quantisation="Q4_0").candidates[1].quantisation == "Q4_0"
        assert image(line).quantisation == "Q4_0"
    machine.stop()


def test_what_has_no_file_is_not_tuned(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        with pytest.raises(SyscallError, match="echo has no file") as caught:
            tune(line, "echo")
        assert caught.value.errno is Errno.ENOTSUP
        with pytest.raises(SyscallError, match="no model") as caught:
            tune(line, "nobody")
        assert caught.value.errno is Errno.ENOENT
