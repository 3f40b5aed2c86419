"""An OpenAI-compatible endpoint as an engine: vLLM, SGLang, llama.cpp's server, a paid service.

`engine.py` answers the kernel, `about.py` asks what the endpoint is, `call.py` is one request,
`asking.py` and `reading.py` are the two directions of the API, `structure.py` checks answers
against schemas, `http.py` is the wire.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from llmasos.kernel import paths, secrets
from llmasos.kernel.driver import Engine, ImageFacts, Option, Tuning
from llmasos.kernel.errors import Errno, SyscallError
from llmasos.kernel.values import Hardware, Progress, Quality

from .about import About
from .engine import RemoteEngine
from .http import Endpoint
from .options import settings


def probe(path: Path) -> ImageFacts:
    """An endpoint is no file."""
    raise SyscallError(
        Errno.EINVAL, f"{path}: the remote driver runs no files", "`llmasos models add NAME URL`"
    )


def check(options: Mapping[str, Option]) -> None:
    """EINVAL for an unknown option or a bad value, with what is allowed; ENOENT: no such secret."""
    chosen = settings(options)
    if chosen.secret:
        secrets.check_kept(paths.find().secrets, chosen.secret)


async def models(options: Mapping[str, Option]) -> Sequence[str]:
    """What the endpoint lists. DeviceFault says why it cannot be used as it is."""
    endpoint = Endpoint(settings(options))
    try:
        return await About(endpoint).models()
    finally:
        await endpoint.close()


def engine(path: Path, options: Mapping[str, Option], log: Path) -> Engine:
    """An engine that is not started. It has no process, so `log` stays untouched."""
    return RemoteEngine(settings(options))


def hardware() -> Sequence[Hardware]:
    """None of this machine's."""
    return ()


async def tune(request: Tuning, tell: Callable[[Progress], None]) -> tuple[Quality, Quality]:
    raise SyscallError(Errno.ENOTSUP, "an endpoint has no file to tune")
