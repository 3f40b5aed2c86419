"""Values for the users of a shared machine, and their keys."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from .fields import Index, OptionalUser, Seconds, Shape, Span, User


class UserRole(StrEnum):
    OWNER = "owner"
    OPERATOR = "operator"
    USER = "user"
    GUEST = "guest"


@dataclass(frozen=True, slots=True)
class UserAdd:
    name: User
    uid: Annotated[int, Span(0, 2**32 - 2)] | None = None  # of the OS; None: authenticates by key
    role: UserRole = UserRole.USER


@dataclass(frozen=True, slots=True)
class UserInfo:
    name: str
    uid: int | None
    role: UserRole
    created: float  # Unix seconds
    keys: int  # valid now
    connections: int


@dataclass(frozen=True, slots=True)
class Users:
    users: list[UserInfo]


@dataclass(frozen=True, slots=True)
class UserRemove:
    name: User


@dataclass(frozen=True, slots=True)
class UserChange:
    name: User
    role: UserRole


@dataclass(frozen=True, slots=True)
class KeyCreate:
    user: User
    expires_s: Seconds | None = None  # from now; None: never


@dataclass(frozen=True, slots=True)
class KeyCreated:
    id: str
    key: str  # shown once; only its hash is stored
    user: str
    expires: float | None  # Unix seconds


@dataclass(frozen=True, slots=True)
class KeyList:
    user: OptionalUser = ""  # empty: all users
    after: Index = 0  # skip this many keys


@dataclass(frozen=True, slots=True)
class KeyInfo:
    id: str
    user: str
    created: float
    expires: float | None
    used: float | None  # when a connection last authenticated with it
    revoked: float | None


@dataclass(frozen=True, slots=True)
class Keys:
    keys: list[KeyInfo]
    more: int | None  # `after` of the next request; None: no more keys


@dataclass(frozen=True, slots=True)
class KeyRevoke:
    id: Annotated[str, Shape("[a-z2-7]{10}", "the ten letters that `llmasos keys list` shows")]
