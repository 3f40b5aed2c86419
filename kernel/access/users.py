"""The users of this machine, and their keys.

All rows are cached in memory, so that authentication does not wait for the disk; the database is
read once. A key is `llmasos_ID_SECRET`: the id identifies it in lists and when it is revoked, and
only a hash of the secret is stored. The permissions of a role are in the policy.
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

from ..abi import limits
from ..abi.errors import Denied, Errno, SyscallError
from ..abi.values import KeyCreate, KeyCreated, KeyInfo, Keys, UserAdd, UserInfo, UserRole
from ..storage.database import Schema, Value
from ..storage.store import Store

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
_KEY = re.compile(rf"llmasos_([a-z2-7]{{{_ID_CHARS}}})_([A-Za-z0-9_-]{{43}})")
_NO_HASH = bytes(32)  # compared with the secret of an unknown key
_USED_S = 60.0  # the time of a key's last use is written at most this often


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """The user that a key identifies."""

    user: str
    key: str  # the key's id


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


class UserTable:
    """The users of this machine and their keys."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self.connections = Counter[str]()  # by user; sessions count them
        self._store = store
        self._clock = clock
        self._changing = anyio.Lock()  # two concurrent changes could use the same name
        self._database = store.open("users.db", SCHEMA)
        self._users: dict[str, _User] = {}
        sql = "SELECT name, uid, role, created FROM users"
        for name, uid, role, created in store.read(self._database, sql):
            number = None if uid is None else int(uid)
            user = _User(str(name), number, UserRole(str(role)), float(created or 0))
            self._users[user.name] = user
        self._keys: dict[str, _Key] = {}
        sql = "SELECT id, user, hash, created, expires, used, revoked FROM keys"
        for id, holder, hash, created, expires, used, revoked in store.read(self._database, sql):
            self._keys[str(id)] = _Key(
                str(id), str(holder), hash if isinstance(hash, bytes) else b"", float(created or 0),
                _time(expires), _time(used), _time(revoked), _time(used),
            )  # fmt: skip

    # --- users --------------------------------------------------------------------------------
    async def add(self, request: UserAdd) -> UserInfo:
        """Add a user. EEXIST when the name or the uid is taken."""
        async with self._changing:
            self._check_available(request)
            user = _User(request.name, request.uid, request.role, self._clock())
            row = (user.name, user.uid, user.role.value, user.created)
            sql = "INSERT INTO users(name, uid, role, created) VALUES(?,?,?,?)"
            await self._store.write(self._database, [(sql, row)])
            self._users[user.name] = user
        return self._info(user, self._valid())

    def _check_available(self, request: UserAdd) -> None:
        name = request.name
        user = self._users.get(name)
        if user is not None:
            uid = "no uid" if user.uid is None else f"uid {user.uid}"
            message = f"user {name} already exists, with {uid} and role {user.role}"
            hint = (
                f"`llmasos users role {name} ROLE` changes it, `llmasos users rm {name}` removes it"
            )
            raise SyscallError(Errno.EEXIST, message, hint)
        holder = None if request.uid is None else self.by_uid(request.uid)
        if holder is not None:
            message = f"uid {request.uid} already belongs to user {holder}"
            hint = f"`llmasos users rm {holder}` frees it; without --uid {name} connects with a key"
            raise SyscallError(Errno.EEXIST, message, hint)

    async def remove(self, name: str) -> None:
        """Remove a user and all its keys. ENOENT."""
        async with self._changing:
            self._get(name)
            sql = "DELETE FROM users WHERE name = ?"  # deletes the keys by cascade
            await self._store.write(self._database, [(sql, (name,))], frees=True)
            del self._users[name]
            self._keys = {id: key for id, key in self._keys.items() if key.user != name}

    async def change(self, name: str, role: UserRole) -> UserInfo:
        """Change the role of a user. ENOENT."""
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

    def exists(self, name: str) -> bool:
        return name in self._users

    async def ensure_owner(self, name: str, uid: int) -> None:
        """Make the owner of the socket a user with the role owner, also after a change of uid."""
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
        """The user with this uid of the operating system."""
        return next((user.name for user in self._users.values() if user.uid == uid), None)

    def uid(self, name: str) -> int | None:
        """The uid of a user in the operating system."""
        user = self._users.get(name)
        return user.uid if user is not None else None

    def _get(self, name: str) -> _User:
        user = self._users.get(name)
        if user is None:
            names = ", ".join(sorted(self._users)) or "none"
            message = f"no user {name}; users: {names}"
            raise SyscallError(Errno.ENOENT, message, f"`llmasos users add {name}` adds it")
        return user

    def _info(self, user: _User, valid: Counter[str]) -> UserInfo:
        keys, connections = valid[user.name], self.connections[user.name]
        return UserInfo(user.name, user.uid, user.role, user.created, keys, connections)

    def _valid(self) -> Counter[str]:
        """The number of valid keys of each user."""
        return Counter(key.user for key in self._keys.values() if not self._invalid(key))

    # --- keys ---------------------------------------------------------------------------------
    async def create_key(self, request: KeyCreate) -> KeyCreated:
        """Create a key of a user. Only this reply contains its secret. ENOENT, EAGAIN."""
        async with self._changing:
            self._get(request.user)
            self._check_keys(request.user)
            secret, now = secrets.token_urlsafe(_SECRET_BYTES), self._clock()
            expires = None if request.expires_s is None else now + request.expires_s
            key = _Key(self._new_id(), request.user, _hash(secret), now, expires)
            row = (key.id, key.user, key.hash, key.created, key.expires)
            sql = "INSERT INTO keys(id, user, hash, created, expires) VALUES(?,?,?,?,?)"
            await self._store.write(self._database, [(sql, row)])
            self._keys[key.id] = key
        return KeyCreated(key.id, f"llmasos_{key.id}_{secret}", key.user, key.expires)

    def _check_keys(self, user: str) -> None:
        """EAGAIN when a user has as many keys as are allowed."""
        count = self._valid()[user]
        if count >= limits.USER_KEYS:
            message = f"{user} has {count} valid keys; at most {limits.USER_KEYS} are allowed"
            hint = "`llmasos keys list` shows the ids; `llmasos keys revoke ID` revokes one"
            raise SyscallError(Errno.EAGAIN, message, hint)

    def _new_id(self) -> str:
        """An id that no key has."""
        while True:
            raw = base64.b32encode(secrets.token_bytes(_ID_CHARS)).decode()
            id = raw[:_ID_CHARS].lower()
            if id not in self._keys:
                return id

    def keys(self, user: str, after: int = 0) -> Keys:
        """Keys of a user, or of all (""), oldest first, also those no longer valid. ENOENT.

        At most KEYS_ROWS of them, from position `after` on.
        """
        if user:
            self._get(user)
        found = [key for key in self._keys.values() if user in ("", key.user)]
        found.sort(key=lambda key: (key.created, key.id))
        end = after + limits.KEYS_ROWS
        rows = [
            KeyInfo(k.id, k.user, k.created, k.expires, k.used, k.revoked) for k in found[after:end]
        ]
        return Keys(rows, end if end < len(found) else None)

    async def revoke(self, id: str) -> None:
        """Revoke a key permanently. ENOENT."""
        async with self._changing:
            key = self._keys.get(id)
            if key is None:
                # The id is not repeated: the caller may have sent the key itself.
                message = "no key with that id"
                raise SyscallError(Errno.ENOENT, message, "`llmasos keys list` shows the ids")
            if key.revoked is not None:
                return
            now = self._clock()
            sql = "UPDATE keys SET revoked = ? WHERE id = ?"
            await self._store.write(self._database, [(sql, (now, id))], frees=True)
            key.revoked = now

    # --- authentication ------------------------------------------------------------------------
    def identify(self, key: str) -> KeyHolder:
        """The user of a valid key. EACCES; the message never contains the secret."""
        match = _KEY.fullmatch(key)
        if match is None:
            message = "this is not an LLMasOS key: keys have the form llmasos_ID_SECRET"
            raise Denied(message, _create_hint())
        id, secret = match.groups()
        stored = self._keys.get(id)
        # Compared also for an unknown id, so that the time does not reveal whether it exists.
        same = hmac.compare_digest(_hash(secret), _NO_HASH if stored is None else stored.hash)
        if stored is None or not same:
            raise Denied(f"the key {id} does not exist, or its secret is wrong", _create_hint())
        why = self.rejection(stored.user, id)
        if why:
            raise Denied(why, _create_hint(stored.user))
        self._use(stored)
        return KeyHolder(stored.user, id)

    def rejection(self, user: str, key: str, uid: int | None = None) -> str:
        """The reason why a connection of this user is no longer valid; "" while it is.

        It was authenticated by the key, if not "", or by the uid, if not None.
        """
        present = self._users.get(user)
        if present is None or (uid is not None and present.uid != uid):
            return f"the user {user} was removed"
        if not key:
            return ""
        stored = self._keys.get(key)
        if stored is None or stored.user != user:
            return f"the key {key} was removed with its user"
        return self._invalid(stored)

    def expires(self, key: str) -> float | None:
        """When a key expires; None: never, or there is no such key."""
        stored = self._keys.get(key)
        return stored.expires if stored is not None else None

    def _invalid(self, key: _Key) -> str:
        """The reason why a key is no longer valid; "" while it is."""
        if key.revoked is not None:
            return f"the key {key.id} was revoked at {_stamp(key.revoked)}"
        if key.expires is not None and self._clock() >= key.expires:
            return f"the key {key.id} expired at {_stamp(key.expires)}"
        return ""

    def _use(self, key: _Key) -> None:
        """Record the use. The time on disk may be _USED_S old, to limit the number of writes."""
        key.used = now = self._clock()
        if key.written is None or not 0 <= now - key.written < _USED_S:
            key.written = now
            sql = "UPDATE keys SET used = ? WHERE id = ?"
            self._store.submit(self._database, [(sql, (now, key.id))], _written)


def _hash(secret: str) -> bytes:
    """A fast hash suffices: 256 random bits cannot be guessed at any speed."""
    return sha256(secret.encode()).digest()


def _create_hint(user: str = "NAME") -> str:
    return f"the machine's owner creates a key with `llmasos keys create --user {user}`"


def _time(value: Value) -> float | None:
    return None if value is None else float(value)


def _written(error: SyscallError | None) -> None:
    if error is not None:
        log.warning("the time of a key's last use was not written: %s", error)


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
