"""What an endpoint is found to be before it is added: there, with this key, with these models."""

from typing import Any

import pytest

from llmasos.drivers import echo, model_files, remote
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.driver import Option
from tests.drivers.endpoint import Endpoint, Request, refuse, statuses

pytestmark = pytest.mark.anyio
TWO = {"data": [{"id": "small"}, {"id": "big"}]}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def listed(value: object) -> Endpoint:
    return Endpoint(refuse, models=value)


def failing(status: int, value: object) -> Endpoint:
    """Its list of models is refused."""

    class Failing(Endpoint):
        def list(self, request: Request) -> None:
            request.json(value, status)

    return Failing(refuse)


async def probed(endpoint: Endpoint, **options: Option) -> list[str]:
    async with endpoint:
        return list(await remote.models({"url": endpoint.url, **options}))


async def failed(endpoint: Endpoint, **options: Option) -> DeviceFault:
    with pytest.raises(DeviceFault) as error:
        await probed(endpoint, **options)
    assert error.value.message.startswith("http://127.0.0.1:")
    return error.value


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        (TWO, ["small", "big"]),
        ({"data": [{"id": "one"}]}, ["one"]),
        ([{"id": "one"}], ["one"]),  # a list without a name, as some servers have it
        ({"data": [{"id": "one"}, {"id": 7}, None, {}]}, ["one"]),
    ],
)
async def test_the_models_of_an_endpoint_are_listed(answer: Any, names: list[str]) -> None:
    assert await probed(listed(answer)) == names
    assert await probed(listed(answer), model=names[0]) == names


async def test_an_endpoint_without_a_list_needs_a_name() -> None:
    assert await probed(failing(404, {"error": "no"}), model="mine") == []
    found = await failed(failing(404, {"error": "no"}))
    assert "answered 404" in found.message
    empties: list[Any] = [{"data": []}, {}, {"data": "x"}, "hello"]
    for empty in empties:
        found = await failed(listed(empty))
        assert "it lists no models" in found.message
        assert "`--set model=NAME`" in found.hint
        assert await probed(listed(empty), model="mine") == []


async def test_a_model_that_is_not_there_is_named_with_those_that_are() -> None:
    found = await failed(listed(TWO), model="bigg")
    assert "no model 'bigg'; it lists small, big" in found.message
    assert "--no-check" in found.hint
    many = {"data": [{"id": f"m{number}"} for number in range(500)]}
    found = await failed(listed(many), model="x")
    assert found.message.endswith("and 480 more")


@pytest.mark.parametrize(
    ("status", "words", "hint"),
    [
        (401, "answered 401: no key", "--set secret=NAME"),
        (403, "answered 403: no key", "--set secret=NAME"),
        (500, "answered 500: no key", ""),
        (302, "redirects to", "if you trust it"),
    ],
)
async def test_a_refusal_says_what_helps(status: int, words: str, hint: str) -> None:
    found = await failed(failing(status, {"error": {"message": "no key"}}))
    assert words in found.message
    assert hint in found.hint


async def test_a_url_that_ends_too_early_or_too_late_is_said() -> None:
    async with failing(404, {"error": "nothing here"}) as endpoint:
        with pytest.raises(DeviceFault) as error:
            await remote.models({"url": endpoint.url.removesuffix("/v1")})
        assert f"`curl {endpoint.url}/models`" in error.value.hint
    for path in ("/chat/completions", "/completions", "/models", "/embeddings/"):
        with pytest.raises(SyscallError) as refused:
            await remote.models({"url": f"http://127.0.0.1/v1{path}"})
        assert refused.value.errno is Errno.EINVAL
        assert f"without {path.rstrip('/')}" in refused.value.hint


async def test_nobody_there_is_said_at_once() -> None:
    with pytest.raises(DeviceFault, match="cannot connect to"):
        await remote.models({"url": "http://127.0.0.1:1/v1"})
    with pytest.raises(DeviceFault, match="cannot connect to"):
        await remote.models({"url": "http://[::1]:1/v1"})


async def test_the_llama_dialect_asks_whether_it_is_that_server() -> None:
    found = await failed(Endpoint(statuses(404)), dialect="llama")
    assert "not a llama.cpp server" in found.message


@pytest.mark.parametrize("driver", [echo, model_files])
async def test_other_drivers_have_no_endpoints(driver: Any) -> None:
    with pytest.raises(SyscallError) as error:
        await driver.models({})
    assert error.value.errno is Errno.ENOTSUP
