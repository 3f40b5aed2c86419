"""A request to an endpoint: when it is tried again, whose key it carries, how it ends."""

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path

import anyio
import pytest

from llmasos.drivers import remote
from llmasos.kernel.abi import limits, paths, secrets
from llmasos.kernel.abi.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.abi.values import Finish
from tests.drivers.endpoint import HOUR_S, KEY, Endpoint, Request, fault, one, refuse, statuses
from tests.drivers.rig import PLENTY, Outcome, Rig, check_end

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# --- statuses, retries, keys ------------------------------------------------------------------
@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REMOTE_RETRY_FIRST_S", 0.001)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
@pytest.mark.usefixtures("hasty")
async def test_what_may_pass_is_tried_again(status: int) -> None:
    assert (await one(statuses(status, status))).text == "yes"


@pytest.mark.parametrize("status", [400, 401, 404, 422, 501])
async def test_what_stays_is_not(status: int) -> None:
    async with Endpoint(statuses(status)) as endpoint, endpoint.rig() as rig:
        outcome = await rig.run(await rig.ask())
        assert outcome.last.error is not None
        assert f"answered {status}: no" in outcome.last.error.message
        assert len(endpoint.bodies) == 1


@pytest.mark.usefixtures("hasty")
async def test_retries_end() -> None:
    assert "answered 500" in await fault(statuses(*[500] * 9), options={"retries": 2})


@pytest.mark.usefixtures("hasty")
async def test_nothing_is_tried_again_after_a_token() -> None:
    async def die(request: Request) -> None:
        request.head()
        request.text("half")
        request.event({"error": {"message": "500: try again"}})

    async with Endpoint(die) as endpoint, endpoint.rig() as rig:
        assert (await rig.run(await rig.ask())).last.error is not None
        assert len(endpoint.bodies) == 1


async def test_a_pause_that_is_asked_for_is_kept_or_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paused: list[float] = []

    async def sleep(seconds: float) -> None:
        paused.append(seconds)

    monkeypatch.setattr("llmasos.drivers.remote.http.asyncio.sleep", sleep)
    assert (await one(statuses(429, retry_after=7))).text == "yes"
    assert paused == [7.0]
    assert "retry after 3600 s" in await fault(statuses(429, retry_after=3600))
    assert len(paused) == 1


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A secret named `mine`."""
    monkeypatch.setenv("LLMASOS_CONFIG_DIR", str(tmp_path))
    path = tmp_path / "secrets" / "mine"
    path.parent.mkdir()
    path.write_text(KEY + "\n")
    path.chmod(0o600)
    return path


def rig(endpoint: Endpoint) -> Rig:
    """One whose url has the key."""
    secrets.bind(paths.find().secrets, "mine", endpoint.url)
    return endpoint.rig(secret="mine")


@pytest.mark.usefixtures("key")
async def test_the_key_is_sent_and_never_shown() -> None:
    async with Endpoint(statuses(401)) as endpoint, rig(endpoint) as bound:
        outcome = await bound.run(await bound.ask())
        assert {r.headers["authorization"] for r in endpoint.requests} == {f"Bearer {KEY}"}
        assert outcome.last.error is not None
        assert "your key is [key]" in outcome.last.error.message
        assert "llmasos secrets set" in outcome.last.error.hint
        assert KEY not in repr((outcome, bound.facts, vars(bound.engine)))


async def test_a_key_that_others_may_read_is_not_sent(key: Path) -> None:
    key.chmod(0o640)
    async with Endpoint(refuse) as endpoint:
        with pytest.raises(DeviceFault, match="mode 640") as error:
            await rig(endpoint).__aenter__()
        assert f"chmod 600 {key}" in error.value.hint
        assert endpoint.requests == []


async def test_a_new_key_is_taken_at_once(key: Path) -> None:
    async with Endpoint(statuses()) as endpoint, rig(endpoint) as bound:
        key.write_text("another")
        await bound.run(await bound.ask())
        assert endpoint.requests[-1].headers["authorization"] == "Bearer another"


@pytest.mark.usefixtures("key")
async def test_a_redirect_to_another_host_is_not_followed() -> None:
    async with Endpoint(refuse) as other:

        async def redirect(request: Request) -> None:
            request.head(307, location=f"{other.url}/chat/completions")

        async with Endpoint(redirect) as endpoint, rig(endpoint) as bound:
            outcome = await bound.run(await bound.ask())
        assert outcome.last.error is not None
        assert f"redirects to 127.0.0.1:{other.port}" in outcome.last.error.message
        assert other.requests == []


def test_a_secret_that_does_not_exist_is_enoent(key: Path) -> None:
    remote.check({"url": "http://localhost/v1", "secret": key.name})
    with pytest.raises(SyscallError) as error:
        remote.check({"url": "http://127.0.0.1:1/v1", "secret": KEY})
    assert error.value.errno == Errno.ENOENT
    assert KEY not in str(error.value)


# --- start ------------------------------------------------------------------------------------
async def test_an_endpoint_that_is_not_there_is_told_at_the_mount() -> None:
    async with Endpoint(refuse) as endpoint:
        url = endpoint.url
    with pytest.raises(DeviceFault, match="cannot connect to"):
        await Rig(remote, Path(), Path(), url=url, retries=0).__aenter__()


async def test_the_only_model_is_chosen_and_of_several_none() -> None:
    async with Endpoint(statuses()) as endpoint:
        async with endpoint.rig() as rig:
            assert rig.facts.placement == f"remote: http://127.0.0.1:{endpoint.port}, model parrot"
            await rig.run(await rig.ask())
        assert endpoint.bodies[0]["model"] == "parrot"
        endpoint.models = {"data": [{"id": "a"}, {"id": "b", "max_model_len": 4096}]}
        with pytest.raises(DeviceFault, match="it lists 2: a, b"):
            await endpoint.rig().__aenter__()
        async with endpoint.rig(model="b") as rig:
            assert rig.facts.window == 4096
        endpoint.models = ["nonsense"]
        async with endpoint.rig(model="c") as rig:
            assert rig.facts.window == limits.REMOTE_WINDOW_TOKENS


async def test_a_server_that_is_not_llama_cpp_s_is_not_taken_for_it() -> None:
    async def nothing(request: Request) -> None:
        request.json({}, 404)

    async with Endpoint(nothing) as endpoint:
        with pytest.raises(DeviceFault, match="not a llama"):
            await endpoint.rig(dialect="llama").__aenter__()


async def test_a_mount_is_given_up_while_it_waits() -> None:
    asked = asyncio.Event()

    async def hang(request: Request) -> None:
        asked.set()
        await asyncio.sleep(HOUR_S)

    failed: list[SyscallError] = []
    async with Endpoint(hang) as endpoint, anyio.create_task_group() as tasks:
        rig = endpoint.rig(dialect="llama", stall_s=HOUR_S)

        async def start() -> None:
            try:
                await rig.engine.start(rig.ear)
            except SyscallError as error:
                failed.append(error)

        tasks.start_soon(start)
        with anyio.fail_after(30):
            await asked.wait()
            await rig.engine.stop()
        assert rig.ear.ups == 0
    assert "unmounted" in failed[0].message


async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl, which makes certificates, is not installed")
    pair = tmp_path / "pair.pem"
    line = [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
            "-keyout", str(pair), "-out", str(tmp_path / "certificate")]  # fmt: skip
    subprocess.run(line, check=True, capture_output=True, timeout=60)
    pair.write_text(pair.read_text() + (tmp_path / "certificate").read_text())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    async with Endpoint(statuses(), tls=context) as endpoint:
        url = endpoint.url.replace("http://127.0.0.1", "https://localhost")
        with pytest.raises(DeviceFault, match="CERTIFICATE_VERIFY_FAILED"):
            await endpoint.rig(url=url).__aenter__()
        assert endpoint.requests == []


# --- cancel, grants ---------------------------------------------------------------------------
async def test_a_cancelled_call_hangs_up_at_once() -> None:
    hung_up = asyncio.Event()

    async def chat(request: Request) -> None:
        request.head()
        request.text("one ")
        await request.gone()
        hung_up.set()

    async with Endpoint(chat) as endpoint, endpoint.rig() as rig:
        number = rig.admit(await rig.ask())
        rig.engine.grant(number, PLENTY)
        await rig.say(number, 1)
        rig.engine.cancel(number)
        outcome = await rig.end(number)
        assert (outcome.text, outcome.last.finish) == ("one ", Finish.CANCELLED)
        check_end(outcome, exact=False)
        with anyio.fail_after(30):
            await hung_up.wait()


async def test_who_is_granted_nothing_more_does_not_read_on() -> None:
    sent = 0

    async def babble(request: Request) -> None:
        nonlocal sent
        request.head()
        while True:
            request.text("bla " * 64)
            await request.writer.drain()
            sent += 1

    async with Endpoint(babble) as endpoint, endpoint.rig(stall_s=0.2) as rig:
        prompt = await rig.ask()
        number = rig.admit(prompt, max_tokens=100_000)
        rig.engine.grant(number, prompt.size + 10)
        await rig.say(number, 10)
        before = -1
        while sent > before:  # until every buffer between us is full
            before = sent
            await asyncio.sleep(0.3)
        assert Outcome(rig.ear.steps(number)).tokens <= 11
        assert rig.ear.steps(number)[-1].error is None  # waiting for a grant is no stall
        rig.engine.grant(number, 50)
        await rig.say(number, 50)
        rig.engine.cancel(number)
        await rig.end(number)
