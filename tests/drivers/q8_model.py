"""Model files of the tests in Q8_0, the type that OpenVINO is used for, and in other types."""

import functools
from pathlib import Path

from llmasos.drivers.choice import tuning
from llmasos.drivers.local import q8_0
from tests.drivers import cut_model


@functools.cache
def cut() -> Path:
    """The cut model in Q8_0; made once for a process."""
    target = cut_model.folder() / "cut-Q8_0.gguf"
    made = q8_0.conversion(cut_model.path(), "Q8_0", lambda _: None)
    assert made is not None
    made.write(target)
    return target


async def make(model: Path, folder: Path, quantisation: str = "Q8_0") -> Path:
    """The file in Q8_0 or another type."""
    target = folder / f"{model.stem}-{quantisation}.gguf"
    await tuning.convert(model, target, quantisation, folder / "tune.log", lambda _: None)
    return target
