"""Calls that make no sense: each is refused with its error, and says what helps."""

from collections.abc import Iterator

import pytest

from llmasos.kernel.abi.errors import Errno
from llmasos.kernel.abi.wire import ERROR, pack
from tests.system.daemon import Machine
from tests.system.raw import Raw, raw


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("refused"))
    machine.start("--mount", "false")
    yield machine
    machine.down()


@pytest.fixture
def client(box: Machine) -> Iterator[Raw]:
    with raw(box.paths.socket, "owner") as client:
        yield client


@pytest.mark.parametrize(
    ("call", "fields", "errno", "words"),
    [
        ("image_add", {"name": "echo", "image": "echo"}, Errno.EEXIST, "'echo' is in use by echo"),
        ("image_add", {"name": "recall", "image": "echo"}, Errno.EINVAL, "the name of a device"),
        ("image_add", {"name": "x", "path": "m.gguf"}, Errno.EINVAL, "not an absolute path"),
        ("image_remove", {"name": "echo"}, Errno.EBUSY, "echo is part of this installation"),
        ("unmount", {"image": "echo"}, Errno.ENOENT, "echo is not mounted"),
        ("poison_lift", {}, Errno.EINVAL, "needs either an id or all"),
        ("poison_lift", {"id": "ab", "all": True}, Errno.EINVAL, "needs either an id or all"),
        ("policy_check", {"subjects": [], "action": "", "object": ""}, Errno.EINVAL, "subjects"),
        ("policy_learn", {}, Errno.EINVAL, "needs a pid or an app"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(
    client: Raw, call: str, fields: dict[str, object], errno: Errno, words: str
) -> None:
    error = client.refused(call, **fields)
    assert (Errno(error["errno"]), words in error["message"]) == (errno, True), error


def test_an_alias_that_is_in_use_can_be_removed_by_the_hint(client: Raw) -> None:
    client.call("image_add", name="short", image="echo")
    error = client.refused("image_add", name="short", image="echo")
    assert (Errno(error["errno"]), "`llmasos models rm short`" in error["hint"]) == (
        Errno.EEXIST, True,
    )  # fmt: skip
    client.call("image_remove", name="short")
    client.call("image_add", name="short", image="echo")
    client.call("image_remove", name="short")


def test_pages_of_a_process_that_has_none_cannot_be_mapped(client: Raw) -> None:
    empty, other = (client.call("spawn", model="echo")["pid"] for _ in range(2))
    error = client.refused("mmap", pid=other, source=f"/proc/{empty}/mem")
    assert Errno(error["errno"]) is Errno.ENOENT
    assert error["message"] == f"process {empty} has no pages"
    assert client.call("search_mem", pid=empty, question="anything")["hits"] == []


def test_undo_does_not_discard_what_was_edited_and_not_loaded(box: Machine, client: Raw) -> None:
    client.call("policy_edit", add=["p, r:reader, ps, /proc, deny"])
    file = box.paths.policy_file
    loaded = file.read_text()
    file.write_text(f"# a remark\n{loaded}")
    error = client.refused("policy_edit", undo=True)
    assert (Errno(error["errno"]), "was edited and not reloaded" in error["message"]) == (
        Errno.EBUSY, True,
    )  # fmt: skip
    assert file.read_text().startswith("# a remark")
    file.write_text(loaded)
    client.call("policy_edit", undo=True)
    assert "r:reader" not in file.read_text()


def test_rules_too_long_for_a_reply_are_read_in_the_file(box: Machine, client: Raw) -> None:
    client.call("policy_edit", text="")
    file = box.paths.policy_file
    file.write_text("#" * 1_100_000)
    error = client.refused("policy_list", text=True)
    assert Errno(error["errno"]) is Errno.E2BIG
    assert str(file) in error["message"]
    file.write_text("")


def test_a_call_whose_id_is_no_number_gets_an_error(client: Raw) -> None:
    client.socket.sendall(pack([0, -1, "ps", {}]))
    kind, number, error = client.receive()
    assert (kind, number, Errno(error["errno"])) == (ERROR, 0, Errno.EPROTO)
    client.call("ps")


def test_a_process_that_has_ended_is_not_reniced_and_its_pages_stay(
    box: Machine, client: Raw
) -> None:
    pid = client.call("spawn", model="echo")["pid"]
    client.call("write_mem", pid=pid, text="kept")
    client.call("kill", pid=pid)
    for call, fields in (
        ("nice", {"nice": 3}),
        ("generate", {"messages": [{"role": "user", "content": "word"}]}),
    ):
        error = client.refused(call, pid=pid, **fields)
        assert Errno(error["errno"]) is Errno.ESRCH
    assert [page["text"] for page in client.call("read_mem", pid=pid)["pages"]] == ["kept"]


def test_a_process_of_an_unmounted_model_can_be_reniced(box: Machine, client: Raw) -> None:
    pid = client.call("spawn", model="echo")["pid"]
    client.call("unmount", image="echo")
    client.call("nice", pid=pid, nice=3)
    client.call("kill", pid=pid)
