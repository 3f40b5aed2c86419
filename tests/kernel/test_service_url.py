"""URLs of services: what is accepted; no message repeats one, since it may contain a key."""

import pytest

from llmasos.kernel.abi import service_url
from llmasos.kernel.abi.errors import Errno, SyscallError


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("https://API.example.com/v1", "https://api.example.com:443", "/v1"),
        ("HTTP://127.0.0.1:8080", "http://127.0.0.1:8080", ""),
        ("http://[::1]/x", "http://[::1]:80", "/x"),
    ],
)
def test_a_url_has_an_origin_and_a_path(url: str, origin: str, path: str) -> None:
    found = service_url.parse(url)
    assert (found.origin, found.path) == (origin, path)


@pytest.mark.parametrize(
    "url",
    [
        "", "secret", "ftp://secret", "https://", "https://secret@host", "https://a:secret@host",
        "https://host?key=secret", "https://host/#secret", "https://secret:x", "https://secret y",
        "https://sécret", "https://host\n/secret", "https://[secret",
        "https://[secret]",
    ],
)  # fmt: skip
def test_another_text_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SyscallError) as caught:
        service_url.parse(url)
    assert caught.value.errno is Errno.EINVAL
    assert "secret" not in caught.value.message
