"""The remote engine keeps the promises of every engine, and no endpoint can make it break them."""

import asyncio
import contextlib
import json
import math
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from llmasos.drivers import remote
from llmasos.drivers.remote import asking, options
from llmasos.kernel import limits
from llmasos.kernel.driver import Option, Prompt
from llmasos.kernel.errors import DeviceFault, Errno, SyscallError
from llmasos.kernel.values import Finish, Message, Role, Sampling
from tests.drivers import contract
from tests.drivers.contract import PLENTY, Outcome, Promise, Rig
from tests.drivers.default_model import MODEL
from tests.drivers.endpoint import Answer, Endpoint, Request

pytestmark = pytest.mark.anyio
LLAMA: dict[str, Option] = {"dialect": "llama", "slots": 8, "window": 512}
KEY = "sk-a-key-that-nobody-may-see"
HOUR_S = 3600.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# --- a real server ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """llama.cpp's own server with the embedded model: 8 slots of 512 tokens, one thread."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    module = "llmasos.userland.bench.llama_server"
    line = [sys.executable, "-m", module, str(MODEL), str(port), "8", "1", "512"]
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        try:
            wait_healthy(f"http://127.0.0.1:{port}/health", child)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            child.kill()


def wait_healthy(url: str, child: "subprocess.Popen[bytes]") -> None:
    """Its list of models is there before its model is; this is not."""
    for _ in range(600):
        assert child.poll() is None
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except (urllib.error.URLError, ConnectionError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.1)
    pytest.fail("the server did not come up")


@pytest.mark.parametrize("promise", contract.PROMISES, ids=contract.name)
async def test_promise(promise: Promise, server: str) -> None:
    async with Rig(remote, Path(), Path(), url=server, **LLAMA) as rig:
        await promise(rig)


@pytest.mark.parametrize("promise", contract.SMALL_PROMISES, ids=contract.name)
async def test_promise_of_a_small_engine(promise: Promise, server: str) -> None:
    small = {**LLAMA, "slots": 4, "window": 256}
    async with Rig(remote, Path(), Path(), url=server, **small) as rig:
        await promise(rig)


async def test_what_the_server_says_of_itself_is_taken(server: str) -> None:
    async with Rig(remote, Path(), Path(), url=server, dialect="llama") as rig:
        facts = rig.facts
        assert (facts.slots, facts.window, facts.vocab) == (8, 512, 49152)
        assert {"tokenize", "exact_usage", "grammar"} <= facts.capabilities
        assert not {"embed", "park"} & facts.capabilities
        with pytest.raises(SyscallError) as error:
            await rig.engine.embed(["hello"])
        assert error.value.errno == Errno.ENOTSUP
        with pytest.raises(SyscallError) as error:
            await rig.engine.check(Sampling(bias={"49152": 1.0}))
        assert error.value.errno == Errno.EINVAL


async def test_usage_is_what_was_told(server: str) -> None:
    """Characters of several tokens, too: the server counts them as it goes."""
    async with Rig(remote, Path(), Path(), url=server, **LLAMA) as rig:
        prompt = await rig.ask("Say: 🦊🦊🦊 and 字字字", raw=False)
        outcome = await rig.run(prompt, max_tokens=30, ignore_eos=True)
        assert outcome.tokens == 30
        assert outcome.fed == prompt.size


async def test_a_grammar_is_obeyed_and_a_bad_one_refused(server: str) -> None:
    async with Rig(remote, Path(), Path(), url=server, **LLAMA) as rig:
        yes = Sampling(grammar='root ::= "yes" | "no"')
        await rig.engine.check(yes)
        outcome = await rig.run(await rig.ask(), grammar=yes.grammar)
        assert outcome.text in ("yes", "no")
        schema = json.dumps({"type": "object", "properties": {"n": {"enum": [7]}},
                             "required": ["n"], "additionalProperties": False})  # fmt: skip
        await rig.engine.check(Sampling(schema=schema))
        for raw in (False, True):
            outcome = await rig.run(await rig.ask("Say 7. ", raw=raw), schema=schema, max_tokens=80)
            assert json.loads(outcome.text) == {"n": 7}
        for bad in (Sampling(grammar="root ::= nope"), Sampling(schema="[")):
            with pytest.raises(SyscallError) as error:
                await rig.engine.check(bad)
            assert error.value.errno == Errno.EINVAL


@pytest.mark.parametrize("raw", [False, True])
async def test_logprobs_come_with_their_tokens(server: str, raw: bool) -> None:
    async with Rig(remote, Path(), Path(), url=server, **LLAMA) as rig:
        outcome = await rig.run(await rig.ask("One, two,", raw=raw), max_tokens=4, logprobs=3)
        told = [one for step in outcome.steps for one in step.logprobs]
        assert len(told) == outcome.tokens == 4
        assert "".join(one.text for one in told) == outcome.text
        for one in told:
            assert [other.logprob for other in one.top] == sorted(
                (other.logprob for other in one.top), reverse=True
            )
            assert one.top[0].token == one.token >= 0
            assert one.logprob <= 0


async def test_the_openai_dialect_speaks_with_the_same_server(server: str) -> None:
    async with Rig(remote, Path(), Path(), url=server) as rig:
        assert rig.facts.slots == limits.SLOTS
        assert not {"tokenize", "exact_usage", "seed"} & rig.facts.capabilities
        prompt = await rig.ask()
        outcome = await rig.run(prompt, max_tokens=24)
        assert "Paris" in outcome.text
        assert outcome.fed == prompt.size
        contract.check_end(outcome, exact=False)
        raw = await rig.run(await rig.ask("One, two,", raw=True), max_tokens=5)
        assert raw.last.finish is Finish.LENGTH
        assert raw.tokens == 5


# --- endpoints that misbehave -----------------------------------------------------------------
async def refuse(request: Request) -> None:
    request.json({"error": {"message": "nobody asked"}}, 400)


async def one(
    answer: Answer, *, options: dict[str, Option] | None = None, **sampling: Any
) -> Outcome:
    """A call to such an endpoint."""
    async with Endpoint(answer) as endpoint, endpoint.rig(**(options or {})) as rig:
        outcome = await rig.run(await rig.ask(), **{"max_tokens": 50, **sampling})
        contract.check_end(outcome, exact=False)
        # It was a fault of that call only.
        assert rig.ear.downs == []
        return outcome


async def fault(answer: Answer, *, options: dict[str, Option] | None = None) -> str:
    outcome = await one(answer, options=options)
    assert isinstance(outcome.last.error, DeviceFault)
    words: str = outcome.last.error.message
    assert words.startswith("http://127.0.0.1:")
    assert len(words) < 2 * limits.REMOTE_WORDS_CHARS
    assert "\n" not in words
    return words


async def test_an_endpoint_that_hangs_before_its_headers_is_left() -> None:
    async def hang(request: Request) -> None:
        await asyncio.sleep(HOUR_S)

    assert "no token within 0.2 s" in await fault(hang, options={"first_s": 0.2})


async def test_comments_and_empty_pieces_are_no_tokens() -> None:
    async def chat(request: Request) -> None:
        request.head()
        request.text("")
        await request.gone()

    assert "no token within 0.2 s" in await fault(chat, options={"first_s": 0.2})


async def test_an_endpoint_that_hangs_mid_stream_is_left() -> None:
    async def hang(request: Request) -> None:
        request.head()
        request.text("one")
        await request.gone()

    assert "silent for 0.2 s after 1 tokens" in await fault(hang, options={"stall_s": 0.2})


async def test_a_stream_cut_in_a_chunk_is_a_fault() -> None:
    async def cut(request: Request) -> None:
        request.head(transfer_encoding="chunked")
        event = b'data: {"choices":[{"delta":{"content":"half"}}]}\n\n'
        request.write(b"%x\r\n%s\r\n" % (len(event), event))
        request.write(b"100\r\ndata: {")

    assert "the connection broke" in await fault(cut)


async def test_a_stream_without_an_end_is_a_fault() -> None:
    async def cut(request: Request) -> None:
        request.head()
        request.text("half of")

    assert "the stream was cut after 1 tokens" in await fault(cut)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<html>hello</html>\n\n", "not a stream of events"),
        (b"data: {\n\n", "not JSON"),
        (b"data: \xff\xfe\n\n", "not valid UTF-8"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "not JSON"),
        (b'data: {"choices": 7}\n\n', "no part of an answer"),
        (b"data: 7\n\n", "no part of an answer"),
        (b'data: {"choices":[{"delta":{"content":[1]}}]}\n\n', "a text that is none"),
        (b'data: {"error":{"message":"out of\\nluck"}}\n\n', "out of luck"),
        (b'data: {"choices":[{"delta":{},"finish_reason":"content_filter"}]}\n\n', "filter"),
        (b"data: " + b"x" * (limits.REMOTE_LINE_BYTES + 1), "a line of more than"),
        (b"data: x\n" * (limits.REMOTE_LINE_BYTES + 1), "a line of more than"),
        (b"\x1f\x8b\x08garbage\n", "not a stream of events"),
        (b"", "the stream was cut"),
    ],
)
async def test_garbage_is_a_fault_that_says_so(data: bytes, words: str) -> None:
    async def garble(request: Request) -> None:
        request.head(content_encoding="gzip" if data.startswith(b"\x1f") else "identity")
        request.write(data)

    assert words in await fault(garble)


async def test_a_whole_answer_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REMOTE_ANSWER_BYTES", 10_000)

    async def pad(request: Request) -> None:
        request.head()
        request.write(b": padding\n" * 2_000)

    assert "an answer of more than 10000 bytes" in await fault(pad)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [(-5, 2), (10**30, 8), ("many", 2), (None, 2), (True, 2), (0, 2), (3, 3), (2.5, 2), (10**9, 8)],
)
async def test_usage_is_believed_no_further_than_what_was_seen(usage: object, tokens: int) -> None:
    """Two pieces of seven bytes together: at most seven tokens, and the end."""

    async def lie(request: Request) -> None:
        request.head()
        request.text("one")
        request.text(" two")
        request.finish(usage=usage)

    expected = tokens if usage != 10**30 else 2  # beyond every count
    assert (await one(lie)).tokens == expected


async def test_usage_is_never_over_max_tokens() -> None:
    async def lie(request: Request) -> None:
        request.head()
        request.text("a long word, and more", timings={"predicted_n": 10**6})
        request.finish("length", usage=1000)

    assert (await one(lie, max_tokens=3)).tokens == 3


async def test_an_endless_answer_is_cut_at_max_tokens() -> None:
    hung_up = asyncio.Event()

    async def babble(request: Request) -> None:
        request.head()
        try:
            while True:
                request.text("bla ")
                await request.writer.drain()
        except ConnectionError:
            hung_up.set()

    outcome = await one(babble, max_tokens=20)
    assert outcome.last.finish is Finish.LENGTH
    assert outcome.text == "bla " * 20
    with anyio.fail_after(30):
        await hung_up.wait()


async def test_pieces_that_are_too_long_count_as_several_tokens() -> None:
    async def pour(request: Request) -> None:
        request.head()
        for _ in range(10):
            request.text("x" * 100_000)
        request.finish()

    outcome = await one(pour, max_tokens=100)
    assert outcome.last.finish is Finish.LENGTH
    assert outcome.tokens == 100
    assert len(outcome.text) == 100 * limits.REMOTE_TOKEN_CHARS


async def test_halves_of_a_character_are_joined_and_never_shown() -> None:
    async def split(request: Request) -> None:
        request.head()
        request.text("a\ud83e")
        request.text("\udd8a \ud83e")
        request.text("z")
        request.finish()

    outcome = await one(split)
    assert outcome.text == "a🦊 \ufffdz"


async def test_a_stop_string_across_pieces_ends_the_call() -> None:
    async def chat(request: Request) -> None:
        request.head()
        for piece in ("one EN", "D two", " three"):
            request.text(piece)
        await request.gone()

    outcome = await one(chat, stop=["END"])
    assert (outcome.text, outcome.last.finish) == ("one ", Finish.STOP)


async def test_hidden_thoughts_are_counted_and_not_shown() -> None:
    async def think(request: Request) -> None:
        request.head()
        for _ in range(3):
            request.event({"choices": [{"delta": {"reasoning_content": "hm"}}]})
        request.text("42")
        request.finish()

    outcome = await one(think)
    assert (outcome.text, outcome.tokens) == ("42", 4)


async def test_an_answer_is_whole_when_only_its_usage_is_missing() -> None:
    async def finish(request: Request) -> None:
        request.head()
        request.text("done")
        request.event({"choices": [{"text": "", "finish_reason": "stop"}]})
        request.write("rubbish\n\n")

    outcome = await one(finish)
    assert (outcome.text, outcome.last.finish) == ("done", Finish.STOP)


async def test_both_forms_of_logprobs_are_read_without_trust() -> None:
    async def chat(request: Request) -> None:
        request.head()
        request.event({"choices": [{"text": "a", "logprobs": {
            "tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -1.0, "a": -0.5}],
        }}]})  # fmt: skip
        request.event({"choices": [{"text": "b", "logprobs": {"content": [
            {"token": "b\ud83e", "logprob": "x", "id": -4, "top_logprobs": [7, None]}, "junk",
        ]}}]})  # fmt: skip
        request.finish()

    told = [x for step in (await one(chat, logprobs=2)).steps for x in step.logprobs]
    assert (told[0].text, told[0].logprob, told[0].token) == ("a", -0.5, -1)
    assert [other.text for other in told[0].top] == ["a", "b"]
    assert all(math.isfinite(x.logprob) for x in told)


# --- statuses, retries, keys ------------------------------------------------------------------
def statuses(*before: int, **headers: object) -> Answer:
    """These statuses in turn, then an answer."""
    left = list(before)

    async def answer(request: Request) -> None:
        if left:
            request.json(
                {"error": {"message": f"no, and your key is {KEY}"}}, left.pop(0), **headers
            )
            return
        request.head()
        request.text("yes")
        request.finish()

    return answer


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
        assert f"said {status}: no" in outcome.last.error.message
        assert len(endpoint.bodies) == 1


@pytest.mark.usefixtures("hasty")
async def test_retries_end() -> None:
    assert "said 500" in await fault(statuses(*[500] * 9), options={"retries": 2})


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
    assert "a pause of 3600 s" in await fault(statuses(429, retry_after=3600))
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


@pytest.mark.usefixtures("key")
async def test_the_key_is_sent_and_never_shown() -> None:
    async with Endpoint(statuses(401)) as endpoint, endpoint.rig(secret="mine") as rig:
        outcome = await rig.run(await rig.ask())
        assert {r.headers["authorization"] for r in endpoint.requests} == {f"Bearer {KEY}"}
        assert outcome.last.error is not None
        assert "your key is [key]" in outcome.last.error.message
        assert "llmasos secrets set" in outcome.last.error.hint
        assert KEY not in repr((outcome, rig.facts, vars(rig.engine)))


async def test_a_key_that_others_may_read_is_not_sent(key: Path) -> None:
    key.chmod(0o640)
    async with Endpoint(refuse) as endpoint:
        with pytest.raises(DeviceFault, match="mode 640") as error:
            await endpoint.rig(secret="mine").__aenter__()
        assert f"chmod 600 {key}" in error.value.hint
        assert endpoint.requests == []


async def test_a_new_key_is_taken_at_once(key: Path) -> None:
    async with Endpoint(statuses()) as endpoint, endpoint.rig(secret="mine") as rig:
        key.write_text("another")
        await rig.run(await rig.ask())
        assert endpoint.requests[-1].headers["authorization"] == "Bearer another"


@pytest.mark.usefixtures("key")
async def test_a_redirect_to_another_host_is_not_followed() -> None:
    async with Endpoint(refuse) as other:

        async def redirect(request: Request) -> None:
            request.head(307, location=f"{other.url}/chat/completions")

        async with Endpoint(redirect) as endpoint, endpoint.rig(secret="mine") as rig:
            outcome = await rig.run(await rig.ask())
        assert outcome.last.error is not None
        assert f"redirects to 127.0.0.1:{other.port}" in outcome.last.error.message
        assert other.requests == []


# --- start ------------------------------------------------------------------------------------
async def test_an_endpoint_that_is_not_there_is_told_at_the_mount() -> None:
    async with Endpoint(refuse) as endpoint:
        url = endpoint.url
    with pytest.raises(DeviceFault, match="cannot be reached"):
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
        with pytest.raises(DeviceFault, match="this is not llama"):
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
        contract.check_end(outcome, exact=False)
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


# --- what is sent -----------------------------------------------------------------------------
async def body(dialect: str, sampling: Sampling, *, raw: bool = False) -> dict[str, Any]:
    prompt = Prompt((), (), [Message(Role.USER, "hi")], raw, 3)
    chosen = options.settings({"url": "http://127.0.0.1/v1", "model": "m", "dialect": dialect})
    _, sent = asking.request(chosen, prompt, sampling, 7)
    return sent


async def test_only_what_openai_knows_is_sent_to_it() -> None:
    sampling = Sampling(seed=3)
    assert set(await body("openai", sampling)) == {
        "model", "messages", "stream", "stream_options", "max_tokens", "temperature", "top_p",
        "seed",
    }  # fmt: skip
    assert {"top_k", "min_p", "repeat_penalty", "cache_prompt"} <= set(
        await body("llama", sampling)
    )
    full = Sampling(seed=3, stop=list("abcdef"), bias={"5": -100.0}, logprobs=2,
                    frequency_penalty=1.0, schema='{"type": "object"}')  # fmt: skip
    sent = await body("openai", full)
    assert sent["stop"] == list("abcd")
    assert sent["logit_bias"] == {"5": -100.0}
    assert (sent["logprobs"], sent["top_logprobs"], sent["frequency_penalty"]) == (True, 2, 1.0)
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert (await body("openai", Sampling(logprobs=2), raw=True))["prompt"] == "hi"


@pytest.mark.parametrize(
    "asked", [{"top_k": 3}, {"min_p": 0.2}, {"repeat_penalty": 1.3}, {"ignore_eos": True},
              {"grammar": 'root ::= "a"'}],
)  # fmt: skip
async def test_what_a_dialect_cannot_do_is_refused_by_name(asked: dict[str, Any]) -> None:
    async with Endpoint(refuse) as endpoint, endpoint.rig() as rig:
        with pytest.raises(SyscallError, match=next(iter(asked))) as error:
            await rig.engine.check(Sampling(**asked))
        assert error.value.errno == Errno.ENOTSUP
        await rig.engine.check(Sampling(repeat_penalty=limits.REPEAT_PENALTY))  # `run` says it
        with pytest.raises(SyscallError) as error:
            await rig.engine.tokenize("hello")
        assert error.value.errno == Errno.ENOTSUP


async def test_sizes_are_estimated_where_they_are_not_known() -> None:
    async with Endpoint(refuse) as endpoint, endpoint.rig() as rig:
        texts = ["", "a word " * 2_000, "字" * 900]
        messages = [Message(Role.USER, text) for text in texts]
        prompt = await rig.engine.compose(messages, raw=False, fresh=3)
        assert prompt.tokens == ()
        assert prompt.size == 3_500 + 900 + 3 * 4
        assert ["".join(cut.text for cut in cuts) for cuts in prompt.cuts] == texts
        assert all(0 < c.tokens <= limits.PAGE_TOKENS for cuts in prompt.cuts for c in cuts)


# --- vectors ----------------------------------------------------------------------------------
def vectors(*values: object, **more: object) -> Answer:
    async def answer(request: Request) -> None:
        data = [{"index": place, "embedding": value} for place, value in enumerate(values)]
        request.json({"data": data[::-1], **more})

    return answer


async def test_vectors_have_length_1_and_the_order_of_the_texts() -> None:
    answer = vectors([3, 4], [0, -2], usage={"prompt_tokens": 6})
    async with Endpoint(answer) as endpoint, endpoint.rig() as rig:
        found = await rig.engine.embed(["one", "two"])
        assert (found.dimensions, found.tokens) == (2, 6)
        unpacked = [struct.unpack("<2f", one) for one in found.vectors]
        assert unpacked[0] == pytest.approx((0.6, 0.8))
        assert unpacked[1] == pytest.approx((0.0, -1.0))


@pytest.mark.parametrize(
    "values",
    [([1.0],), ([1], [1, 2]), ([0, 0], [1, 0]), (["x"], [1]), ([], []), ([1e400], [1]),
     ([1.7e308, 1.7e308], [1, 1]), ([1], [1], [1]), (None, [1])],
)  # fmt: skip
async def test_vectors_that_are_none_are_refused(values: tuple[object, ...]) -> None:
    async with Endpoint(vectors(*values)) as endpoint, endpoint.rig() as rig:
        with pytest.raises(DeviceFault):
            await rig.engine.embed(["one", "two"])


@pytest.mark.parametrize("status", [404, 501])
async def test_an_endpoint_without_vectors_is_enotsup(status: int) -> None:
    async with Endpoint(statuses(status)) as endpoint, endpoint.rig() as rig:
        with pytest.raises(SyscallError) as error:
            await rig.engine.embed(["one"])
        assert error.value.errno == Errno.ENOTSUP


# --- options ----------------------------------------------------------------------------------
URL = "https://api.example.com/v1"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "not http:// or https://"),
        ({"url": "ftp://host/v1"}, "not http:// or https://"),
        ({"url": "https://me:word@host/v1"}, "keys do not belong there"),
        ({"url": "https://host/v1?key=1"}, "keys do not belong there"),
        ({"url": "https://host:port/v1"}, "makes no sense"),
        ({"url": "https://hö/v1"}, "not plain ASCII"),
        ({"url": "http://example.com/v1", "secret": "mine"}, "unencrypted to example.com"),
        ({"url": URL, "slots": 0}, "slots is 0"),
        ({"url": URL, "slots": True}, "slots is True"),
        ({"url": URL, "dialect": "latin"}, "dialect is 'latin'"),
        ({"url": URL, "first_s": 0}, "first_s is 0"),
        ({"url": URL, "stall_s": math.nan}, "stall_s is nan"),
        ({"url": URL, "model": ""}, "model is ''"),
        ({"url": URL, "colour": 1}, "unknown option 'colour'"),
        ({"url": URL, "secret": "not a name!"}, "no name of a secret"),
    ],
)
def test_a_bad_option_is_refused(options: dict[str, Option], words: str) -> None:
    with pytest.raises(SyscallError, match=words) as error:
        remote.check(options)
    assert error.value.errno == Errno.EINVAL
    assert "word@" not in str(error.value)
    assert "not a name" not in str(error.value)


def test_a_good_url_is_taken() -> None:
    for url in (URL, URL + "/", "http://127.0.0.1:8080/v1", "http://[::1]:80", "http://host/v1"):
        remote.check({"url": url})


def test_a_secret_that_does_not_exist_is_enoent(key: Path) -> None:
    remote.check({"url": "http://localhost/v1", "secret": key.name})
    with pytest.raises(SyscallError) as error:
        remote.check({"url": URL, "secret": KEY})  # somebody gave the key itself
    assert error.value.errno == Errno.ENOENT
    assert KEY not in str(error.value)


def test_it_runs_no_files() -> None:
    with pytest.raises(SyscallError):
        remote.probe(MODEL)
