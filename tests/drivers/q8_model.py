"""Model files of the tests in Q8_0, the type that OpenVINO is used for."""

from pathlib import Path

from llmasos.drivers.llama import mount as llama
from llmasos.kernel.driver import Tuning


async def make(model: Path, folder: Path, quantisation: str = "Q8_0") -> Path:
    """The file in Q8_0 or another type."""
    target, log = folder / f"{model.stem}-{quantisation}.gguf", folder / "tune.log"
    await llama.tune(Tuning(model, target, quantisation, measure=False, log=log), lambda _: None)
    return target
