"""The SDK: `from llmasos import LLMasOS`.

`link` is one connection with many calls on it, `client` one method for each syscall, `process` and
`answer` the objects that people work with, `prompt` and `schema` the forms in which they say what
they want, `door` and `thread` the same for programs that do not await, `fork` what a child of
fork() may not use.
"""

from .answer import AsyncAnswer as AsyncAnswer
from .answer import Reply as Reply
from .client import AsyncLLMasOS as AsyncLLMasOS
from .door import Answer as Answer
from .door import LLMasOS as LLMasOS
from .door import Model as Model
from .door import Process as Process
from .fork import ForkError as ForkError
from .process import AsyncModel as AsyncModel
from .process import AsyncProcess as AsyncProcess
from .prompt import Options as Options
from .prompt import Prompt as Prompt
from .schema import Schema as Schema
