"""What a child of the OpenVINO engine loads, and how."""

from dataclasses import dataclass

from llmasos.drivers.local.frames import EngineSettings


@dataclass(frozen=True, slots=True)
class OpenVinoSettings(EngineSettings):
    """Also the size of the pool."""

    blocks: int  # of the pool, with SPARE_BLOCKS (blocks.py)
