"""An OpenAI-compatible endpoint as an engine: vLLM, SGLang, llama.cpp's server, a paid service.

`engine.py` implements the driver's protocol, `discovery.py` queries the endpoint and its models,
`call.py` is one request, `payload.py` builds requests, `parsing.py` and `events.py` parse answers,
`structure.py` checks answers against schemas, `http.py` is the HTTP client.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from llmasos.kernel.abi import paths, secrets
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Hardware, Progress, TuneCandidate
from llmasos.kernel.driver import Engine, ImageFacts, Option, Tuning

from .discovery import Discovery
from .engine import RemoteEngine
from .http import EndpointClient
from .options import settings


def probe(path: Path) -> ImageFacts:
    """Always EINVAL: an endpoint has no file."""
    raise SyscallError(
        Errno.EINVAL,
        f"{path}: the remote driver does not run model files",
        "`llmasos models add NAME URL` adds an endpoint",
    )


def check(options: Mapping[str, Option]) -> None:
    """EINVAL for an unknown option or an invalid value; ENOENT: no such secret."""
    chosen = settings(options)
    if chosen.secret:
        secrets.check_exists(paths.find().secrets, chosen.secret)


async def models(options: Mapping[str, Option]) -> Sequence[str]:
    """The models that the endpoint lists. DeviceFault when it cannot be used with these options."""
    endpoint = EndpointClient(settings(options))
    try:
        return await Discovery(endpoint).models()
    finally:
        await endpoint.close()


def engine(
    path: Path, options: Mapping[str, Option], log: Path, cache: Path | None = None
) -> Engine:
    """An engine that is not started. It has no process, so `log` is not used."""
    return RemoteEngine(settings(options))


def hardware() -> Sequence[Hardware]:
    """None: an endpoint uses no hardware of this machine."""
    return ()


async def tune(request: Tuning, tell: Callable[[Progress], None]) -> Sequence[TuneCandidate]:
    raise SyscallError(Errno.ENOTSUP, "an endpoint has no file to tune")
