"""The HTTP client of one endpoint: requests, their limits, and error messages without the key.

The only module that imports httpx. Redirects are not followed, and no proxy or netrc of the
environment is used: the key is sent to the host of the url only. It is read for each request.
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

from llmasos.kernel.abi import limits, paths, secrets
from llmasos.kernel.abi.errors import SyscallError

from .failure import EndpointFailure, Refusal
from .options import RemoteSettings
from .parsing import error_text, parse

_RETRYABLE = frozenset({408, 429, *range(500, 600)}) - {501}  # HTTP statuses
_SPARE = 8  # connections besides the slots: for tokens, vectors and checks
_ERROR_BYTES = 8 * 1024  # more than is shown, so that a key is never cut and shown in part
T = TypeVar("T")


class EndpointClient:
    """One url and its connections."""

    def __init__(self, settings: RemoteSettings) -> None:
        self.settings = settings
        self._key = ""
        self._client: httpx.AsyncClient | None = None

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def clean(self, text: str) -> str:
        """Foreign text as one short printable line without the key."""
        if self._key:
            text = text.replace(self._key, "[key]")
        line = "".join(char if char.isprintable() else " " for char in text)
        return " ".join(line.split())[: limits.REMOTE_WORDS_CHARS]

    def refusal(self, message: str, hint: str = "") -> Refusal:
        return Refusal(f"{self.settings.origin}: {self.clean(message)}", hint)

    async def ask(self, url: str, body: object = None) -> object:
        """One JSON answer, within `stall_s` seconds. Without a body the method is GET."""
        stall_s = self.settings.stall_s
        try:
            async with asyncio.timeout(stall_s), self.open(url, body) as pieces:
                data = bytearray()
                async for piece in pieces:
                    data += piece
                    if len(data) > limits.REMOTE_BODY_BYTES:
                        raise EndpointFailure(
                            f"an answer of more than {limits.REMOTE_BODY_BYTES} bytes"
                        )
            return await asyncio.to_thread(parse, bytes(data))  # large answers take long
        except TimeoutError:
            raise self.refusal(f"no answer within {stall_s:g} s") from None
        except EndpointFailure as failure:
            raise self.refusal(str(failure)) from failure

    @asynccontextmanager
    async def open(self, url: str, body: object = None) -> AsyncGenerator[AsyncIterator[bytes]]:
        """The bytes of a successful response. Refusal for any other status, and for no response."""
        headers = {"accept-encoding": "identity", "content-type": "application/json"}
        if self._client is None:  # reading the certificate authorities takes long
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
            message = f"cannot connect to {self.settings.origin}: {_text(error)}"
            retryable = "CERTIFICATE" not in message
            hint = f"`curl {quote(self.settings.url)}/models` shows whether it answers"
            raise Refusal(message, hint, retryable=retryable) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise self.refusal(f"the connection failed: {_text(error)}") from error

    async def _read_key(self) -> None:
        name = self.settings.secret
        if name:
            try:
                # A keyring may take long.
                self._key = await asyncio.to_thread(self._read, name)
            except SyscallError as error:
                raise Refusal(error.message, error.hint) from error

    def _read(self, name: str) -> str:
        """The key. It is sent only to the url that it is bound to: EACCES for another."""
        folder = paths.find().secrets
        secrets.check_bound(folder, name, self.settings.url)
        return secrets.read(folder, name)

    def _redirect_target(self, response: httpx.Response) -> str:
        try:
            found = urlsplit(str(response.headers.get("location", ""))).netloc
        except ValueError:
            found = ""
        return self.clean(found) or "another path"

    async def _refused(self, response: httpx.Response) -> Refusal:
        status = response.status_code
        origin = self.settings.origin
        if response.is_redirect:
            target = self._redirect_target(response)
            message = f"{origin} redirects to {target}; redirects are not followed"
            return Refusal(message, "add the target url, if you trust it", status=status)
        data = bytearray()
        async for piece in response.aiter_raw():
            data += piece
            if len(data) > _ERROR_BYTES:
                break
        message = f"{origin} answered {status}: {self.clean(error_text(bytes(data)))}"
        after_s = _seconds(response.headers.get("retry-after", ""))
        retryable = status in _RETRYABLE and after_s <= limits.REMOTE_RETRY_AFTER_S
        if after_s:
            message += f" (retry after {after_s:g} s)"
        hint = _hint(status, self.settings)
        return Refusal(message, hint, status=status, retryable=retryable, after_s=after_s)


def _client(settings: RemoteSettings) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        verify=_tls_context() if settings.secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        timeout=httpx.Timeout(None, connect=settings.connect_s),
        limits=httpx.Limits(max_connections=limits.SLOTS_MAX + _SPARE),
        follow_redirects=False,
        trust_env=False,
    )


def _tls_context() -> ssl.SSLContext:
    """Trusts the authorities of certifi and of this system."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0


def _hint(status: int, settings: RemoteSettings) -> str:
    match status:
        case 401 | 403:
            return "`llmasos secrets set NAME`, then add the model with `--set secret=NAME`"
        case 404 if not settings.url.endswith("/v1"):
            return f"many urls end in /v1: try `curl {quote(settings.url)}/v1/models`"
        case 404:
            return f"`curl {quote(settings.url)}/models` lists its models"
        case 429:
            return "try again later, or mount it with fewer slots"
        case _:
            return ""


async def with_retries(attempt: Callable[[], Awaitable[T]], retries: int) -> T:
    """Retry with exponential backoff, up to `retries` times, while the refusal is retryable."""
    for tried in range(retries):
        try:
            return await attempt()
        except Refusal as refusal:
            if not refusal.retryable:
                raise
            base_s: float = min(limits.REMOTE_RETRY_LAST_S, limits.REMOTE_RETRY_FIRST_S * 2**tried)
            pause_s = max(refusal.after_s, base_s * random.uniform(0.5, 1.0))
        await asyncio.sleep(pause_s)
    return await attempt()
