"""The SDK: `from llmasos import LLMasOS`.

`link` is one connection with many calls on it, `client` one method for each syscall, `process` the
objects that people work with, `door` the same for programs that do not await.
"""

from .client import AsyncLLMasOS as AsyncLLMasOS
from .door import LLMasOS as LLMasOS
