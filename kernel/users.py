"""Who may come to this machine, and the keys that they come with.

Everything is held in memory, so that whoever knocks waits for no disk; the database is read once.
A key is `llmasos_ID_SECRET`: its id finds it, lists it and revokes it; of the secret only a hash is
kept. What a role allows stands in the policy.
"""

import base64
import hmac
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256

import anyio

from . import limits
from .database import Schema, Value
from .errors import Denied, Errno, SyscallError
from .store import Store
from .values import KeyCreate, KeyCreated, KeyInfo, Keys, UserAdd, UserInfo, UserRole

log = logging.getLogger(__name__)
SCHEMA = Schema(
    "users",
    (
        """CREATE TABLE users(name TEXT PRIMARY KEY, uid INTEGER UNIQUE, role TEXT NOT NULL,
             created REAL NOT NULL);
           CREATE TABLE keys(id TEXT PRIMARY KEY, user TEXT NOT NULL
             REFERENCES users(name) ON DELETE CASCADE, hash BLOB NOT NULL, created REAL NOT NULL,
             expires REAL, used REAL, revoked REAL)""",
    ),
)
_ID_CHARS = 10
_SECRET_BYTES = 32
_FORM = re.compile(rf"llmasos_([a-z2-7]{{{_ID_CHARS}}})_([A-Za-z0-9_-]{{43}})")
_NOBODY = bytes(32)  # what the secret of an unknown key is compared with
_USED_S = 60.0  # the time of a key's use reaches the disk this often


@dataclass(frozen=True, slots=True)
class Known:
    """Whom a key stands for."""

    user: str
    key: str  # its id


@dataclass(slots=True)
class _User:
    name: str
    uid: int | None
    role: UserRole
    created: float


@dataclass(slots=True)
class _Key:
    id: str
    user: str
    hash: bytes  # of its secret
    created: float
    expires: float | None
    used: float | None = None
    revoked: float | None = None
    written: float | None = None  # the `used` that is on disk


class Users:
    """The users of this machine and their keys."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self.connections = Counter[str]()  # by user; whoever opens and closes them counts
        self._store = store
        self._clock = clock
        self._changing = anyio.Lock()  # two changes at once could both find a name free
        self._database = store.open("users.db", SCHEMA)
        self._users: dict[str, _User] = {}
        sql = "SELECT name, uid, role, created FROM users"
        for name, uid, role, created in store.read(self._database, sql):
            number = None if uid is None else int(uid)
            user = _User(str(name), number, UserRole(str(role)), float(created or 0))
            self._users[user.name] = user
        self._keys: dict[str, _Key] = {}
        sql = "SELECT id, user, hash, created, expires, used, revoked FROM keys"
        for id, whose, hash, created, expires, used, revoked in store.read(self._database, sql):
            self._keys[str(id)] = _Key(
                str(id), str(whose), hash if isinstance(hash, bytes) else b"", float(created or 0),
                _time(expires), _time(used), _time(revoked), _time(used),
            )  # fmt: skip

    # --- users --------------------------------------------------------------------------------
    async def add(self, request: UserAdd) -> UserInfo:
        """EEXIST when the name or the uid is taken."""
        async with self._changing:
            self._check_free(request)
            user = _User(request.name, request.uid, request.role, self._clock())
            row = (user.name, user.uid, user.role.value, user.created)
            sql = "INSERT INTO users(name, uid, role, created) VALUES(?,?,?,?)"
            await self._store.write(self._database, [(sql, row)])
            self._users[user.name] = user
        return self._info(user, self._valid())

    def _check_free(self, request: UserAdd) -> None:
        name = request.name
        user = self._users.get(name)
        if user is not None:
            uid = "no uid" if user.uid is None else f"uid {user.uid}"
            words = f"there is a user {name} already, with {uid} and the role {user.role}"
            hint = f"`llmasos users role {name} ROLE` changes it, `llmasos users rm {name}` ends it"
            raise SyscallError(Errno.EEXIST, words, hint)
        holder = None if request.uid is None else self.by_uid(request.uid)
        if holder is not None:
            words = f"uid {request.uid} belongs to the user {holder} already"
            hint = f"`llmasos users rm {holder}` frees it; without --uid {name} comes by key"
            raise SyscallError(Errno.EEXIST, words, hint)

    async def remove(self, name: str) -> None:
        """Forget a user and every key of it. ENOENT."""
        async with self._changing:
            self._get(name)
            sql = "DELETE FROM users WHERE name = ?"  # takes the keys along
            await self._store.write(self._database, [(sql, (name,))], frees=True)
            del self._users[name]
            self._keys = {id: key for id, key in self._keys.items() if key.user != name}

    async def change(self, name: str, role: UserRole) -> UserInfo:
        """Give a user another role. ENOENT."""
        async with self._changing:
            user = self._get(name)
            sql = "UPDATE users SET role = ? WHERE name = ?"
            await self._store.write(self._database, [(sql, (role.value, name))])
            user.role = role
        return self._info(user, self._valid())

    def all(self) -> list[UserInfo]:
        valid = self._valid()
        return [self._info(self._users[name], valid) for name in sorted(self._users)]

    def roles(self) -> list[tuple[str, str]]:
        """Each user's name and role."""
        return [(user.name, user.role.value) for user in self._users.values()]

    def knows(self, name: str) -> bool:
        return name in self._users

    async def own(self, name: str, uid: int) -> None:
        """The owner of the socket is a user, also on a machine that has moved to another uid."""
        async with self._changing:
            holder = self.by_uid(uid) or name
            user = self._users.get(holder) or _User(holder, uid, UserRole.OWNER, self._clock())
            user = replace(user, uid=uid, role=UserRole.OWNER)
            row = (user.name, user.uid, user.role.value, user.created)
            sql = """INSERT INTO users(name, uid, role, created) VALUES(?,?,?,?) ON CONFLICT(name)
                     DO UPDATE SET uid = excluded.uid, role = excluded.role"""
            if user != self._users.get(holder):
                await self._store.write(self._database, [(sql, row)])
                self._users[user.name] = user

    def by_uid(self, uid: int) -> str | None:
        """The user that the operating system knows by this number."""
        return next((user.name for user in self._users.values() if user.uid == uid), None)

    def uid(self, name: str) -> int | None:
        """The number by which the operating system knows a user."""
        user = self._users.get(name)
        return user.uid if user is not None else None

    def _get(self, name: str) -> _User:
        user = self._users.get(name)
        if user is None:
            known = ", ".join(sorted(self._users)) or "none"
            words = f"there is no user {name}; there are: {known}"
            raise SyscallError(Errno.ENOENT, words, f"`llmasos users add {name}` lets one in")
        return user

    def _info(self, user: _User, valid: Counter[str]) -> UserInfo:
        keys, connections = valid[user.name], self.connections[user.name]
        return UserInfo(user.name, user.uid, user.role, user.created, keys, connections)

    def _valid(self) -> Counter[str]:
        """How many keys of each user let it in now."""
        return Counter(key.user for key in self._keys.values() if not self._ended(key))

    # --- keys ---------------------------------------------------------------------------------
    async def create_key(self, request: KeyCreate) -> KeyCreated:
        """A new key of a user: told here and never again. ENOENT."""
        async with self._changing:
            self._get(request.user)
            secret, now = secrets.token_urlsafe(_SECRET_BYTES), self._clock()
            expires = None if request.expires_s is None else now + request.expires_s
            key = _Key(self._fresh(), request.user, _hash(secret), now, expires)
            row = (key.id, key.user, key.hash, key.created, key.expires)
            sql = "INSERT INTO keys(id, user, hash, created, expires) VALUES(?,?,?,?,?)"
            await self._store.write(self._database, [(sql, row)])
            self._keys[key.id] = key
        return KeyCreated(key.id, f"llmasos_{key.id}_{secret}", key.user, key.expires)

    def _fresh(self) -> str:
        """An id that no key has."""
        while True:
            raw = base64.b32encode(secrets.token_bytes(_ID_CHARS)).decode()
            id = raw[:_ID_CHARS].lower()
            if id not in self._keys:
                return id

    def keys(self, user: str, after: int = 0) -> Keys:
        """Keys of a user, or of all (""), the oldest first; those that have ended, too. ENOENT.

        At most KEYS_ROWS of them, from position `after` on.
        """
        if user:
            self._get(user)
        found = [key for key in self._keys.values() if user in ("", key.user)]
        found.sort(key=lambda key: (key.created, key.id))
        end = after + limits.KEYS_ROWS
        told = [
            KeyInfo(k.id, k.user, k.created, k.expires, k.used, k.revoked) for k in found[after:end]
        ]
        return Keys(told, end if end < len(found) else None)

    async def revoke(self, id: str) -> None:
        """End a key, once and for all. ENOENT."""
        async with self._changing:
            key = self._keys.get(id)
            if key is None:
                # It is not repeated: somebody may have given the key itself.
                words = "there is no key of that id"
                raise SyscallError(Errno.ENOENT, words, "`llmasos keys list` shows the ids")
            if key.revoked is not None:
                return
            now = self._clock()
            sql = "UPDATE keys SET revoked = ? WHERE id = ?"
            await self._store.write(self._database, [(sql, (now, id))], frees=True)
            key.revoked = now

    # --- who comes ----------------------------------------------------------------------------
    def identify(self, key: str) -> Known:
        """Whom this key stands for. EACCES says why nobody, and never repeats the key."""
        form = _FORM.fullmatch(key)
        if form is None:
            words = "this is not a key of an LLMasOS machine: those look like llmasos_ID_SECRET"
            raise Denied(words, _make())
        id, secret = form.groups()
        held = self._keys.get(id)
        # The time that this takes must not tell whether there is such an id.
        same = hmac.compare_digest(_hash(secret), _NOBODY if held is None else held.hash)
        if held is None or not same:
            raise Denied(f"the key {id} is not known here, or its secret is another", _make())
        ended = self.why_not(held.user, id)
        if ended:
            raise Denied(ended, _make(held.user))
        self._use(held)
        return Known(held.user, id)

    def why_not(self, user: str, key: str, uid: int | None = None) -> str:
        """Why a connection of this user may not go on; "" if it may.

        It was let in by this key (""), or by this number of the operating system (None).
        """
        known = self._users.get(user)
        if known is None or (uid is not None and known.uid != uid):
            return f"the user {user} was removed"
        if not key:
            return ""
        held = self._keys.get(key)
        if held is None or held.user != user:
            return f"the key {key} was removed with its user"
        return self._ended(held)

    def expires(self, key: str) -> float | None:
        """When a key ends by itself; None: never, or there is no such key."""
        held = self._keys.get(key)
        return held.expires if held is not None else None

    def _ended(self, key: _Key) -> str:
        """Why a key is no longer valid; "" while it is."""
        if key.revoked is not None:
            return f"the key {key.id} was revoked at {_stamp(key.revoked)}"
        if key.expires is not None and self._clock() >= key.expires:
            return f"the key {key.id} expired at {_stamp(key.expires)}"
        return ""

    def _use(self, key: _Key) -> None:
        """Remember when; on disk this may be _USED_S old, so that knocking costs no writes."""
        key.used = now = self._clock()
        if key.written is None or not 0 <= now - key.written < _USED_S:
            key.written = now
            sql = "UPDATE keys SET used = ? WHERE id = ?"
            self._store.submit(self._database, [(sql, (now, key.id))], _written)


def _hash(secret: str) -> bytes:
    """A fast hash will do: nobody guesses 256 random bits, however fast the guesses are."""
    return sha256(secret.encode()).digest()


def _make(user: str = "NAME") -> str:
    return f"the machine's owner makes a key: `llmasos keys create --user {user}`"


def _time(value: Value) -> float | None:
    return None if value is None else float(value)


def _written(error: SyscallError | None) -> None:
    if error is not None:
        log.warning("the time of a key's use was not written down: %s", error)


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
