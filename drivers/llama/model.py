# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""Loads models by llama.cpp. Imported in child processes only."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmasos.kernel.abi.errors import DeviceFault

from .library import amx_kernels, lib, log_callback, system_info
from .settings import LlamaSettings
from .vocabulary import LlamaVocab

_PROGRESS = 0.02  # of a load, between two reports


@dataclass(frozen=True, slots=True)
class LlamaModel:
    """A loaded model."""

    handle: Any
    vocab: LlamaVocab
    template: str  # the chat template; empty: the file has none


def _ignore(_done: float) -> None:
    return


def load(settings: LlamaSettings, report: Callable[[float], None] = _ignore) -> LlamaModel:
    """Load a model; `report` gets the progress, 0 to 1.

    Raises DeviceFault when llama.cpp cannot load it; the reason is in the log.
    """
    lib.llama_log_set(log_callback, ctypes.c_void_p(0))
    lib.llama_backend_init()
    parameters = lib.llama_model_default_params()
    parameters.n_gpu_layers = settings.gpu_layers
    # AMX is one of the extra buffer types. Without these, weights are not repacked either, so
    # prompts take longer; our own build excludes the AMX kernels instead.
    parameters.use_extra_bufts = not amx_kernels(system_info())
    reported = -_PROGRESS

    def progress(done: float, _: object) -> bool:
        nonlocal reported
        if done - reported >= _PROGRESS:
            reported = done
            report(done)
        return True  # continue the load

    # `parameters` keeps the reference to the callback.
    parameters.progress_callback = lib.llama_progress_callback(progress)
    return _loaded(settings.path, parameters)


def load_vocab(path: Path, pre: str = "") -> LlamaModel:
    """Load the vocabulary and the template of a file, without its weights.

    `pre`: another pre-tokenizer than the file names.
    """
    lib.llama_log_set(log_callback, ctypes.c_void_p(0))
    lib.llama_backend_init()
    parameters = lib.llama_model_default_params()
    parameters.vocab_only = True
    if pre:
        changes = (lib.llama_model_kv_override * 2)()  # the last one has no key
        changes[0].key, changes[0].tag = b"tokenizer.ggml.pre", lib.LLAMA_KV_OVERRIDE_TYPE_STR
        changes[0].value.val_str = pre.encode()
        parameters.kv_overrides = changes
    return _loaded(str(path), parameters)


def _loaded(path: str, parameters: Any) -> LlamaModel:
    handle = lib.llama_model_load_from_file(path.encode(), parameters)
    if not handle:
        raise DeviceFault(f"llama.cpp cannot load {path}")
    template: bytes | None = lib.llama_model_chat_template(handle, None)
    return LlamaModel(
        handle,
        LlamaVocab(lib.llama_model_get_vocab(handle)),
        (template or b"").decode("utf-8", "replace"),
    )
