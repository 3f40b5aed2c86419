"""Requests: the table's types and limits, named field by field."""

from dataclasses import fields

import pytest

from llmasos.kernel import check
from llmasos.kernel.abi import limits, values
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.table import TABLE

USER = {"role": "user", "content": "hi"}


def test_every_syscall_has_a_validator_that_makes_its_request() -> None:
    least = {
        "hello": {"version": 1}, "spawn": {"model": "m"}, "tokenize": {"model": "m", "text": ""},
        "generate": {"pid": 1, "messages": [USER]}, "nice": {"pid": 1, "nice": 0},
        "image_add": {"name": "n"}, "image_remove": {"name": "n"},
        "restart": {"device": "d"},
        "image_probe": {"name": "n", "url": "http://127.0.0.1/v1"},
        "mount": {"image": "m"}, "unmount": {"image": "m"}, "image_tune": {"name": "n"},
        "embed": {"model": "m", "texts": ["t"]},
        "user_add": {"name": "u"}, "user_remove": {"name": "u"},
        "user_role": {"name": "u", "role": "guest"}, "key_create": {"user": "u"},
        "write_mem": {"pid": 1, "text": "t"}, "search_mem": {"pid": 1, "question": "q"},
        "pin": {"pid": 1, "first": 0}, "evict": {"pid": 1, "first": 0},
        "mmap": {"pid": 1, "source": "/files/a"}, "munmap": {"pid": 1, "first": 0},
        "share": {"pid": 1, "to": 2, "first": 0}, "trace_mem": {"pid": 1, "page": 0},
        "send": {"pid": 1, "body": "b"}, "key_revoke": {"id": "abcdefghij"},
        "policy_simulate": {"text": ""},
    }  # fmt: skip
    for name, row in TABLE.items():
        free = ("ps", "watch", "policy_learn")
        needs_pid = "pid" in (f.name for f in fields(row.request)) and name not in free
        request = check.request(name, least.get(name, {"pid": 1} if needs_pid else {}))
        assert type(request) is row.request


def test_an_unknown_syscall_lists_the_known() -> None:
    with pytest.raises(SyscallError, match="no syscall") as caught:
        check.request("exec", {})
    assert caught.value.errno is Errno.ENOSYS
    assert "generate" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "given", "place"),
    [
        ("spawn", {"model": "../etc/passwd"}, "model"),
        ("spawn", {"model": "x\n"}, "model"),
        ("spawn", {"model": "x", "extra": 1}, "extra"),
        ("spawn", {}, "model"),
        ("spawn", {"model": "x", "nice": limits.NICE_MAX + 1}, "nice"),
        ("fork", {"pid": 1, "count": 0}, "count"),
        ("fork", {"pid": 1, "count": limits.FORKS + 1}, "count"),
        ("fork", {"pid": 1, "nice": limits.NICE_MIN - 1}, "nice"),
        ("kill", {"pid": 1, "signal": "HUP"}, "signal"),
        ("kill", {"pid": 0}, "pid"),
        ("kill", {"pid": "1"}, "pid"),
        ("kill", {"pid": True}, "pid"),
        ("kill", {"pid": 2**70}, "pid"),
        ("generate", {"pid": 1, "messages": []}, "messages"),
        ("generate", {"pid": 1, "messages": [USER] * (limits.MESSAGES + 1)}, "messages"),
        ("generate", {"pid": 1, "messages": [{"role": "tool", "content": ""}]}, "messages.0.role"),
        (
            "generate",
            {"pid": 1, "messages": [USER], "sampling": {"temperature": -1}},
            "temperature",
        ),
        ("generate", {"pid": 1, "messages": [USER], "sampling": {"top_p": float("nan")}}, "top_p"),
        ("generate", {"pid": 1, "messages": [USER], "sampling": {"stop": [""]}}, "stop"),
        ("generate", {"pid": 1, "messages": [USER], "sampling": {"stop": ["a"] * 99}}, "stop"),
        ("generate", {"pid": 1, "messages": [USER], "sampling": {"max_tokens": 0}}, "max_tokens"),
        ("generate", {"pid": 1, "messages": [USER], "timeout_s": 0}, "timeout_s"),
        ("mount", {"image": "m", "options": {"a": []}}, "options"),
        ("ps", [], "request"),
        ("ps", None, "request"),
    ],
)
def test_a_wrong_field_is_named(name: str, given: object, place: str) -> None:
    with pytest.raises(SyscallError, match=place) as caught:
        check.request(name, given)
    assert caught.value.errno is Errno.EINVAL
    assert name in caught.value.message
    assert "Input" not in caught.value.message  # pydantic's own words speak of its parsers


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"pid": 0}, "neither a pid nor a model is given", "pid=0 and the name of a model"),
        ({"pid": 7, "model": "m"}, "both pid 7 and model 'm' are given", "give the pid of a"),
        ({"pid": 7, "nice": 3}, "app and nice are given for process 7", "`llmasos nice 3 7`"),
        ({"pid": 7, "app": "a"}, "app and nice are given for process 7", ""),
        ({"pid": 0, "model": "m", "keep": True}, "keep", ""),
        ({"pid": 0, "model": "m", "nice": 99}, "nice", ""),
        ({"pid": -1, "model": "m"}, "pid", ""),
    ],
)
def test_a_mixture_of_both_forms_of_generate_is_refused(
    given: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(SyscallError, match=message) as caught:
        check.request("generate", {"messages": [USER], **given})
    assert caught.value.errno is Errno.EINVAL
    assert hint in caught.value.hint


def test_nested_values_become_their_dataclasses() -> None:
    sampling = {"temperature": 0, "stop": ["\n"], "seed": 7}
    request = check.request("generate", {"pid": 3, "messages": [USER], "sampling": sampling})
    assert isinstance(request, values.Generate)
    assert request.messages == [values.Message(values.Role.USER, "hi")]
    assert request.sampling == values.Sampling(temperature=0, stop=["\n"], seed=7)
