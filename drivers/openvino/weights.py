# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""The weights of a graph, in a file that is mapped. Imported in child processes only.

OpenVINO keeps the constants of a graph, and beside them a copy in the order of its kernels, which
it makes at the first step. After that it hardly reads the constants. So the large ones are written
to a file without a name and mapped: their memory is given back after the first step, and what is
read again comes from the file. The small ones are copied, because all constants of the frontend
share one buffer, which is freed with the last of them.
"""

import mmap
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .library import ops, ov

Node = Any  # openvino.Node
_LARGE_BYTES = 65_536


class MappedWeights:
    """The constants of a graph, outside of it."""

    def __init__(self, model: Any, folder: Path) -> None:
        """Move them. OSError, and nothing has changed, when there is no room for the file."""
        constants = [one for one in model.get_ordered_ops() if one.get_type_name() == "Constant"]
        large = [one for one in constants if one.get_byte_size() >= _LARGE_BYTES]
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            places = [_written(file, _bytes(one)) for one in large]
            self._mapping = mmap.mmap(file.fileno(), max(1, file.tell())) if places else None
        self._views: list[NDArray[np.uint8]] = []  # tensors do not keep the memory that they share
        for one, at in zip(large, places, strict=True):
            view = np.frombuffer(self._mapping or b"", np.uint8, one.get_byte_size(), at)
            tensor = ov.Tensor(view, _shape(one), one.get_output_element_type(0))
            self._views.append(view)
            _replace(one, ops.constant(tensor, shared_memory=True))
        for one in constants:
            if one.get_byte_size() < _LARGE_BYTES:
                _replace(one, _copied(one))

    def release(self) -> None:
        """Give their memory back; what is read again comes from the file."""
        if self._mapping is not None:
            self._mapping.madvise(mmap.MADV_DONTNEED)


def _bytes(constant: Node) -> NDArray[np.uint8]:
    data: NDArray[np.uint8] = np.ascontiguousarray(constant.get_data()).reshape(-1).view(np.uint8)
    return data


def _written(file: IO[bytes], data: NDArray[np.uint8]) -> int:
    """Where it begins in the file: at a page of its own."""
    at = file.tell()
    file.write(data.data)
    file.write(bytes(-data.nbytes % mmap.PAGESIZE))
    return at


def _copied(constant: Node) -> Node:
    tensor = ov.Tensor(constant.get_output_element_type(0), _shape(constant))
    if constant.get_byte_size():
        tensor.data.reshape(-1).view(np.uint8)[:] = _bytes(constant)
    return ops.constant(tensor)


def _shape(constant: Node) -> Any:
    return ov.Shape(list(constant.get_output_shape(0)))


def _replace(constant: Node, new: Node) -> None:
    for target in list(constant.output(0).get_target_inputs()):
        target.replace_source_output(new.output(0))
