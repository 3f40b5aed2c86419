"""The wire to one endpoint: requests, their caps, and refusals in words without the key.

The only host of httpx. Redirects are not followed and no proxy or netrc of the environment is
used: the key goes to the host of the url and to nobody else. It is read for each request.
"""

import asyncio
import json
import random
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from shlex import quote
from typing import TypeVar
from urllib.parse import urlsplit

import httpx

from llmasos.kernel import limits, paths, secrets
from llmasos.kernel.errors import SyscallError

from .options import Settings
from .reading import complaint, parse
from .trouble import Refusal, Trouble

_AGAIN = frozenset({408, 429, *range(500, 600)}) - {501}
_SPARE = 8  # connections beside the slots: for tokens, vectors and checks
_COMPLAINT_BYTES = 8 * 1024  # more of it than is shown, so that no half of a key is
T = TypeVar("T")


class Endpoint:
    """One url and its connections."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._key = ""
        self._client: httpx.AsyncClient | None = None

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def clean(self, text: str) -> str:
        """Foreign words as one short line that does not hold the key."""
        if self._key:
            text = text.replace(self._key, "[key]")
        line = "".join(char if char.isprintable() else " " for char in text)
        return " ".join(line.split())[: limits.REMOTE_WORDS_CHARS]

    def refusal(self, words: str, hint: str = "") -> Refusal:
        return Refusal(f"{self.settings.place}: {self.clean(words)}", hint)

    async def ask(self, url: str, body: object = None) -> object:
        """One JSON answer, within `stall_s`. GET without a body."""
        stall_s = self.settings.stall_s
        try:
            async with asyncio.timeout(stall_s), self.open(url, body) as pieces:
                data = bytearray()
                async for piece in pieces:
                    data += piece
                    if len(data) > limits.REMOTE_BODY_BYTES:
                        raise Trouble(f"an answer of more than {limits.REMOTE_BODY_BYTES} bytes")
            return await asyncio.to_thread(parse, bytes(data))  # it may be long
        except TimeoutError:
            raise self.refusal(f"no answer within {stall_s:g} s") from None
        except Trouble as trouble:
            raise self.refusal(str(trouble)) from trouble

    @asynccontextmanager
    async def open(self, url: str, body: object = None) -> AsyncGenerator[AsyncIterator[bytes]]:
        """The bytes of an answer that is a success. Refusal for any other, and for none."""
        headers = {"accept-encoding": "identity", "content-type": "application/json"}
        if self._client is None:  # reading the authorities takes a while
            self._client = await asyncio.to_thread(_client, self.settings)
        await self._read_key()
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        method = "GET" if body is None else "POST"
        content = None if body is None else json.dumps(body).encode()
        try:
            async with self._client.stream(
                method, url, content=content, headers=headers
            ) as response:
                if not response.is_success:
                    raise await self._refused(response)
                yield response.aiter_raw()
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            words = f"{self.settings.place} cannot be reached: {_words(error)}"
            again = "CERTIFICATE" not in words
            hint = f"`curl {quote(self.settings.url)}/models` shows whether it answers"
            raise Refusal(words, hint, again=again) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise self.refusal(f"the connection broke: {_words(error)}") from error

    async def _read_key(self) -> None:
        name = self.settings.secret
        if name:
            try:
                # A keyring may take its time.
                self._key = await asyncio.to_thread(self._read, name)
            except SyscallError as error:
                raise Refusal(error.message, error.hint) from error

    def _read(self, name: str) -> str:
        """The key, which goes to the url that it is bound to and nowhere else."""
        folder = paths.find().secrets
        secrets.check_bound(folder, name, self.settings.url)
        return secrets.read(folder, name)

    def _target(self, response: httpx.Response) -> str:
        try:
            found = urlsplit(str(response.headers.get("location", ""))).netloc
        except ValueError:
            found = ""
        return self.clean(found) or "another path"

    async def _refused(self, response: httpx.Response) -> Refusal:
        status = response.status_code
        place = self.settings.place
        if response.is_redirect:
            words = f"{place} redirects to {self._target(response)}, which is not followed"
            return Refusal(words, "add the url that it leads to, if you trust it", status=status)
        data = bytearray()
        async for piece in response.aiter_raw():
            data += piece
            if len(data) > _COMPLAINT_BYTES:
                break
        words = f"{place} said {status}: {self.clean(complaint(bytes(data)))}"
        after_s = _seconds(response.headers.get("retry-after", ""))
        again = status in _AGAIN and after_s <= limits.REMOTE_RETRY_AFTER_S
        if after_s:
            words += f" (asks for a pause of {after_s:g} s)"
        return Refusal(
            words, _hint(status, self.settings), status=status, again=again, after_s=after_s
        )


def _client(settings: Settings) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        verify=_trust() if settings.secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        timeout=httpx.Timeout(None, connect=settings.connect_s),
        limits=httpx.Limits(max_connections=limits.SLOTS_MAX + _SPARE),
        follow_redirects=False,
        trust_env=False,
    )


def _trust() -> ssl.SSLContext:
    """The authorities that certifi knows, and this system's own."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0


def _hint(status: int, settings: Settings) -> str:
    match status:
        case 401 | 403:
            return "`llmasos secrets set NAME`, and add the model with `--set secret=NAME`"
        case 404 if not settings.url.endswith("/v1"):
            return f"many urls end in /v1: `curl {quote(settings.url)}/v1/models` shows if it does"
        case 404:
            return f"`curl {quote(settings.url)}/models` lists its models"
        case 429:
            return "ask again later, or mount it with fewer slots"
        case _:
            return ""


async def patiently(attempt: Callable[[], Awaitable[T]], retries: int) -> T:
    """Try again after growing pauses, while a refusal allows it."""
    for tried in range(retries):
        try:
            return await attempt()
        except Refusal as refusal:
            if not refusal.again:
                raise
            longest: float = min(limits.REMOTE_RETRY_LAST_S, limits.REMOTE_RETRY_FIRST_S * 2**tried)
            pause_s = max(refusal.after_s, longest * random.uniform(0.5, 1.0))
        await asyncio.sleep(pause_s)
    return await attempt()
