"""The vocabulary of a model: ours, or llama.cpp's where ours is not known to be equal."""

import sys
from pathlib import Path
from typing import NamedTuple

from llmasos.drivers.local import bpe
from llmasos.drivers.local.context import Vocab
from llmasos.drivers.local.vocabulary_file import UnknownVocabularyError
from llmasos.kernel.abi.errors import Errno, SyscallError


class ModelTexts(NamedTuple):
    """What the texts of a model need."""

    vocab: Vocab
    template: str  # the chat template; empty: the file has none


def vocabulary(path: Path) -> ModelTexts:
    """The vocabulary and the template of a file. ENOTSUP where it needs a missing llama.cpp."""
    try:
        return ModelTexts(*bpe.load(path))
    except UnknownVocabularyError as error:
        return _of_llama(path, error)


def _of_llama(path: Path, reason: UnknownVocabularyError) -> ModelTexts:
    try:
        # Only here: the import takes a while, and llama.cpp may be missing.
        from llmasos.drivers.llama.model import load_vocab
    except (ImportError, OSError, RuntimeError) as error:
        message = f"the tokens of this model need llama.cpp ({reason}), which is missing: {error}"
        raise SyscallError(Errno.ENOTSUP, message, "install llama-cpp-python") from error
    print(f"the vocabulary is llama.cpp's: {reason}", file=sys.stderr, flush=True)
    model = load_vocab(path)
    return ModelTexts(model.vocab, model.template)
