"""The pages of a process."""

from dataclasses import dataclass
from typing import Annotated

from .words import Index, Pid, Role, Span


@dataclass(frozen=True, slots=True)
class ReadMem:
    pid: Pid
    first: Index = 0  # page number
    count: Annotated[int, Span(1, 1000)] = 1000


@dataclass(frozen=True, slots=True)
class Page:
    number: int
    message: int  # pages of one message share this number
    owner: str
    kind: Role
    author: str
    time: float  # Unix seconds
    tokens: int  # exact, by the process's tokenizer
    text: str
    labels: list[str]
    pinned: bool


@dataclass(frozen=True, slots=True)
class Pages:
    pages: list[Page]
    next: int | None  # first page of the rest, if the reply was cut
