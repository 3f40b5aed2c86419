# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""What is used of the `openvino` package. Imported in child processes only."""

import sys
from typing import Any, cast

# With it, the import sends a usage event and writes to the home directory.
sys.modules["openvino_telemetry"] = cast("Any", None)
# It converts models of other formats; its import takes a third of the time.
sys.modules["openvino.tools.ovc"] = cast("Any", None)

import openvino as _openvino  # noqa: E402
from openvino import opset13 as _operations  # noqa: E402
from openvino.frontend import FrontEndManager as _FrontEndManager  # noqa: E402
from openvino.op import _PagedAttentionExtension  # noqa: E402


def reason(error: Exception) -> str:
    """What an error of OpenVINO says: the last of its lines; those before say where in its code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


ov = cast("Any", _openvino)
ops = cast("Any", _operations)
FrontEndManager = cast("Any", _FrontEndManager)
PagedAttention = cast("Any", _PagedAttentionExtension)
