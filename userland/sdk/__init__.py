"""The SDK: `from llmasos import LLMasOS`.

`connection` multiplexes calls over one connection, `client` has one method for each syscall,
`process` and `answer` are the objects that programs work with, `prompt` and `schema` convert
prompts and schemas, `blocking` and `thread` are the blocking client, `fork` protects the parent's
connections in a child of fork().
"""

from .answer import AsyncAnswer as AsyncAnswer
from .answer import Reply as Reply
from .blocking import Answer as Answer
from .blocking import LLMasOS as LLMasOS
from .blocking import Model as Model
from .blocking import Process as Process
from .client import AsyncLLMasOS as AsyncLLMasOS
from .fork import ForkError as ForkError
from .process import AsyncModel as AsyncModel
from .process import AsyncProcess as AsyncProcess
from .prompt import ModelOptions as ModelOptions
from .prompt import Options as Options
from .prompt import Prompt as Prompt
from .schema import Schema as Schema
