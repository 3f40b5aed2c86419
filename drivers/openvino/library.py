# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""What is used of the `openvino` package. Imported in child processes only."""

import sys
from typing import Any, cast

# Without this, the import sends a usage event and writes to the home directory.
sys.modules["openvino_telemetry"] = cast("Any", None)

import openvino as _openvino  # noqa: E402
from openvino import opset13 as _operations  # noqa: E402
from openvino.frontend import FrontEndManager as _FrontEndManager  # noqa: E402
from openvino.op import _PagedAttentionExtension  # noqa: E402

ov = cast("Any", _openvino)
ops = cast("Any", _operations)
FrontEndManager = cast("Any", _FrontEndManager)
PagedAttention = cast("Any", _PagedAttentionExtension)
