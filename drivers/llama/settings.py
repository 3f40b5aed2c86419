"""What a child of the llama.cpp engine loads, and how."""

from dataclasses import dataclass

from llmasos.drivers.local.frames import EngineSettings


@dataclass(frozen=True, slots=True)
class LlamaSettings(EngineSettings):
    """Also what only llama.cpp has."""

    flash: bool
    unified: bool  # one KV pool for all slots
    gpu_layers: int
