# pyright: reportUnknownMemberType=false
"""Conversion of model files by llama.cpp. Imported in child processes only."""

import ctypes
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from llmasos.drivers.local.options import cores
from llmasos.drivers.local.quantisation import FILE_TYPES
from llmasos.kernel.abi.errors import DeviceFault

from .library import lib

_SIZE = re.compile(r"(model|quant) size += +([0-9.]+) MiB")
_TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\]")
_ERROR = 4  # of ggml's log levels
Report = Callable[[float], None]  # gets the progress, 0 to 1


class ConversionLog:
    """Parses the log of llama.cpp: sizes, progress by tensor, the last error."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.follow = False  # report each tensor as progress
        self.sizes: dict[str, float] = {}  # bytes
        self.error = ""
        self._callback = lib.llama_log_callback(self._parse)
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _parse(self, level: int, text: bytes, _: object) -> None:
        line = text.decode("utf-8", "replace")
        if level == _ERROR:
            self.error = line.strip()
            sys.stderr.write(line)
        for name, mega in _SIZE.findall(line):
            self.sizes[name] = float(mega) * 2**20
        if self.follow and (tensor := _TENSOR.match(line)):
            self._report(int(tensor[1]) / int(tensor[2]))


class LlamaConversion:
    """The conversion of one file to any quantisation."""

    def __init__(self, source: Path, wanted: str, report: Report) -> None:
        self._source, self._wanted, self._log = source, wanted, ConversionLog(report)

    @property
    def result_bytes(self) -> int:
        """The size of the converted file, as llama.cpp estimates it."""
        self._quantise(Path(os.devnull), dry=True)
        size = self._source.stat().st_size
        header = size - self._log.sizes.get("model", size)
        return round(header + self._log.sizes.get("quant", size))

    def write(self, target: Path) -> None:
        """Write the converted file. DeviceFault with llama.cpp's reason."""
        self._log.follow = True
        self._quantise(target, dry=False)

    def _quantise(self, target: Path, *, dry: bool) -> None:
        parameters = lib.llama_model_quantize_default_params()
        parameters.ftype = FILE_TYPES[self._wanted]
        parameters.allow_requantize = True
        parameters.nthread = cores()
        parameters.dry_run = dry
        names = os.fsencode(self._source), os.fsencode(target)
        if lib.llama_model_quantize(*names, ctypes.byref(parameters)):
            raise DeviceFault(
                f"llama.cpp cannot convert {self._source} to {self._wanted}: {self._log.error}"
            )
