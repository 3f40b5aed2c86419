# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""A compiled paged graph with the memory of its KV blocks. Imported in child processes only.

OpenVINO checks little: a wrong block index or token id reads and writes foreign memory, and lists
that do not match end the process. So the callers of `compute` check the inputs. An error that
OpenVINO raises is a DeviceFault.
"""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmasos.kernel.abi.errors import DeviceFault

from .graph import PagedGraph
from .library import ov, reason
from .steps import Inputs

Floats = NDArray[np.float32]
_PROPERTIES = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": "1",
    "ENABLE_CPU_PINNING": "NO",  # other programs use the cores, too
    "INFERENCE_PRECISION_HINT": "f32",  # bf16 rounds logits to steps of 0.06 to 0.125
    # By token: what is added to a block does not change what is in it.
    "KV_CACHE_PRECISION": "u8",
    "KEY_CACHE_QUANT_MODE": "BY_TOKEN",
}


class PagedModel:
    """A graph, compiled for one or more numbers of threads, and its blocks."""

    def __init__(self, graph: PagedGraph, blocks: int, threads: int) -> None:
        self._graph, self.blocks = graph, blocks
        self._core = ov.Core()
        self._most = threads
        self._requests: dict[int, Any] = {}
        self._caches: list[tuple[str, Any]] = []  # name of the input, tensor
        self._compile(threads)
        self._request = self._requests[threads]
        self._used: Any = None  # the request that computed the last step
        self._compiling: threading.Thread | None = None

    def _compile(self, threads: int) -> None:
        properties = {**_PROPERTIES, "INFERENCE_NUM_THREADS": str(threads)}
        try:
            compiled = self._core.compile_model(self._graph.model, "CPU", properties)
            request = compiled.create_infer_request()
        except RuntimeError as error:
            raise DeviceFault(f"OpenVINO cannot compile the model: {reason(error)}") from error
        if not self._caches:
            self._caches = [
                (name, self._allocated(port))
                for port in compiled.inputs
                if (name := port.get_any_name()).startswith(("key_cache.", "value_cache."))
            ]
        for name, tensor in self._caches:
            request.set_tensor(name, tensor)
        self._requests[threads] = request

    def _allocated(self, port: Any) -> Any:
        """The tensor of a cache. Memory is taken when a block is first written."""
        shape = [size.get_length() for size in list(port.partial_shape)[1:]]
        return ov.Tensor(port.element_type, ov.Shape([self.blocks, *shape]))

    def use_threads(self, threads: int) -> None:
        """Compute with all threads or with one, whichever is nearer.

        The graph for one thread is compiled in the background, at the first request for it.
        """
        wanted = self._most if 2 * threads > self._most else 1
        if wanted not in self._requests and self._compiling is None:
            self._compiling = threading.Thread(target=self._compile, args=(wanted,), daemon=True)
            self._compiling.start()
        self._request = self._requests.get(wanted, self._request)

    @property
    def views(self) -> list[NDArray[np.uint8]]:
        """Each cache as bytes, one row for each block."""
        return [tensor.data.view(np.uint8).reshape(self.blocks, -1) for _, tensor in self._caches]

    @property
    def block_bytes(self) -> int:
        """Bytes of a block in all layers."""
        size: int = sum(tensor.get_byte_size() for _, tensor in self._caches)
        return size // self.blocks

    def compute(self, step: Inputs) -> Floats:
        """The rows of the output: memory of OpenVINO, valid until the next step."""
        tensors = {name: ov.Tensor(array, shared_memory=True) for name, array in step.items()}
        try:
            for name, tensor in tensors.items():
                self._request.set_tensor(name, tensor)
            self._request.infer()  # releases the GIL
            if self._used is not self._request:
                self._used = self._request
                self._graph.release()
        except RuntimeError as error:
            raise DeviceFault(f"OpenVINO failed: {reason(error)}") from error
        output: Floats = self._request.get_output_tensor(0).data
        return output.reshape(-1, output.shape[-1])
