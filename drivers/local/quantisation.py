"""The quantisations of llama.cpp by name, and those that a file can be converted to.

The numbers are llama.cpp's `enum llama_ftype`, which a file contains as `general.file_type`. This
module must not import llama_cpp.
"""

FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10,
    "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16,
    "Q5_K_M": 17, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20, "Q2_K_S": 21, "IQ3_XS": 22,
    "IQ3_XXS": 23, "IQ1_S": 24, "IQ4_NL": 25, "IQ3_S": 26, "IQ3_M": 27, "IQ2_S": 28, "IQ2_M": 29,
    "IQ4_XS": 30, "IQ1_M": 31, "BF16": 32, "TQ1_0": 36, "TQ2_0": 37, "MXFP4_MOE": 38,
    "NVFP4": 39, "Q1_0": 40, "Q2_0": 41,
}  # fmt: skip
_NAMES = {number: name for name, number in FILE_TYPES.items()}
# Not offered: those that need an importance matrix, or a special model.
OFFERED = (
    "Q8_0", "Q4_K_M", "F16", "BF16", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_S", "Q4_1",
    "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "Q2_K",
)  # fmt: skip


def name(file_type: object) -> str:
    """The name of a file type; empty for an unknown one."""
    return _NAMES.get(file_type, "") if isinstance(file_type, int) else ""
