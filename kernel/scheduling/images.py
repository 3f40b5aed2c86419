"""Installed images: name, aliases, digest, licence, and the driver that can run them.

A model file is used in place and never copied. The driver probes its header, with bounds, before
anything else reads it; its digest is computed once and stored with the file's size and time.
An image may instead be the URL of a remote engine: then nothing about its model is known here.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from ..abi import limits
from ..abi.errors import Errno, SyscallError
from ..abi.fingerprint import fingerprint
from ..abi.values import RECALL, ImageAdd, ImageInfo, ImageProbe, Mount, TuneCandidate
from ..driver import Driver, Option
from ..storage.database import Schema, Statement, peek
from ..storage.filesystem import Access
from ..storage.store import Store
from . import probing
from .model_file import RequantisedFile, sha256, stamp
from .probing import REMOTE

SCHEMA = Schema(
    "images",
    (
        """CREATE TABLE images(name TEXT PRIMARY KEY, driver TEXT NOT NULL, path TEXT NOT NULL);
           CREATE TABLE aliases(name TEXT PRIMARY KEY, image TEXT NOT NULL);
           CREATE TABLE digests(path TEXT PRIMARY KEY, stamp TEXT NOT NULL, digest TEXT NOT NULL);
           CREATE TABLE mounts(image TEXT PRIMARY KEY, options TEXT NOT NULL)""",
        """ALTER TABLE images ADD COLUMN url TEXT NOT NULL DEFAULT '';
           ALTER TABLE images ADD COLUMN options TEXT NOT NULL DEFAULT '{}'""",
        "ALTER TABLE mounts ADD COLUMN pin INTEGER NOT NULL DEFAULT 0",
        """CREATE TABLE tuned(image TEXT PRIMARY KEY, path TEXT NOT NULL,
           quantisation TEXT NOT NULL, stamp TEXT NOT NULL)""",
        # The driver of model files, which had llama.cpp only.
        "UPDATE images SET driver = 'gguf' WHERE driver = 'llama'",
        # Who added it; '': unknown, as it was added before this column existed.
        """ALTER TABLE images ADD COLUMN user TEXT NOT NULL DEFAULT '';
           ALTER TABLE aliases ADD COLUMN user TEXT NOT NULL DEFAULT ''""",
        "ALTER TABLE tuned ADD COLUMN candidates TEXT NOT NULL DEFAULT '[]'",
    ),
)
T = TypeVar("T")
_DIGEST_CHARS = 16  # of the source file's digest, in the name of a requantised file


def installed(state: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The files of installed images by name (empty path: a URL), and the images of aliases.

    For callers without a running machine. Built-in images are not included.
    """
    database = state / "images.db"
    files = {
        str(name): Path() if url else Path(str(path))
        for name, path, url in peek(database, "SELECT name, path, url FROM images")
    }
    rows = peek(database, "SELECT name, image FROM aliases")
    aliases = {str(name): str(image) for name, image in rows}
    return files, aliases


@dataclass(slots=True)
class Image:
    name: str
    driver: str
    path: Path  # empty: the driver needs no file
    builtin: bool  # found at boot, not installed by a user
    url: str = ""
    options: Mapping[str, Option] = field(default_factory=dict[str, Option])  # at every mount
    aliases: list[str] = field(default_factory=list[str])
    requantised: RequantisedFile | None = None

    @property
    def file(self) -> Path:
        """The file to mount: the requantised one if it exists and `path` is unchanged."""
        requantised = self.requantised
        if requantised is not None and requantised.path.name:
            with suppress(OSError):
                if requantised.path.is_file() and requantised.stamp == stamp(self.path):
                    return requantised.path
        return self.path

    @property
    def candidates(self) -> Sequence[TuneCandidate]:
        """What was measured of the file at `path`, if it is unchanged."""
        requantised = self.requantised
        with suppress(OSError):
            if requantised is not None and requantised.stamp == stamp(self.path):
                return requantised.candidates
        return ()

    def version(self) -> str:
        """The name, and the version of the file to mount if there is one."""
        try:
            return f"{self.name} {stamp(self.file)}" if self.file.name else self.name
        except OSError:  # the driver reports it
            return self.name

    def fingerprint(self) -> str:
        """Identifies the model behind the name: a different model makes different vectors."""
        if self.url:
            return f"{self.url} {self.options.get('model', '')}".strip()
        return fingerprint(self.path)

    def is_decided(self) -> bool:
        """Whether it was tuned, or the user chose the original file."""
        requantised = self.requantised
        return requantised is not None and (not requantised.path.name or self.file != self.path)

    def chosen(self, options: Mapping[str, Option]) -> dict[str, Option]:
        """The options of a mount: the image's options, overridden by the requested ones."""
        if "url" in options:
            hint = "`llmasos models add NAME URL` adds an image with another URL"
            raise SyscallError(Errno.EINVAL, "url is no mount option: an image has one URL", hint)
        return {**self.options, **options, **({"url": self.url} if self.url else {})}


class ImageRegistry:
    """What can be mounted, by name."""

    def __init__(
        self, store: Store, drivers: Mapping[str, Driver],
        builtin: Mapping[str, tuple[str, Path]], cache: Path, owner: str,
    ) -> None:  # fmt: skip
        self._store = store
        self.cache = cache  # directory of requantised files
        self._owner = owner  # of the machine
        self._adding = Counter[str]()  # calls that are adding a name, by user
        self._threads = anyio.CapacityLimiter(limits.FILES)
        self._drivers = drivers
        self._database = store.open("images.db", SCHEMA)
        self._images = {
            name: Image(name, driver, path, builtin=True)
            for name, (driver, path) in builtin.items()
        }
        sql = "SELECT name, driver, path, url, options FROM images"
        for name, driver, path, url, options in store.read(self._database, sql):
            self._images[str(name)] = Image(
                str(name), str(driver), Path(str(path)), builtin=False, url=str(url),
                options=json.loads(str(options)),
            )  # fmt: skip
        self._aliases: dict[str, str] = {}
        for name, image in store.read(self._database, "SELECT name, image FROM aliases"):
            self._alias(str(name), str(image))
        for name, path, quantisation, source, rows in store.read(
            self._database, "SELECT image, path, quantisation, stamp, candidates FROM tuned"
        ):
            if str(name) in self._images:
                candidates = [TuneCandidate(**row) for row in json.loads(str(rows))]
                self._images[str(name)].requantised = RequantisedFile(
                    Path(str(path)), str(quantisation), str(source), candidates
                )

    def _alias(self, name: str, image: str) -> None:
        if image in self._images:
            self._aliases[name] = image
            self._images[image].aliases.append(name)

    def canonical(self, name: str) -> str:
        """The name that the policy is checked with: aliases resolved, unknown names unchanged."""
        return self._aliases.get(name, name)

    def get(self, name: str) -> Image:
        """ENOENT lists the images and how to make an alias."""
        image = self._images.get(self.canonical(name))
        if image is None:
            known = ", ".join(sorted((*self._images, *self._aliases))) or "none"
            raise SyscallError(
                Errno.ENOENT,
                f"there is no model {name!r}; there are: {known}",
                f"`llmasos models alias {name} EXISTING` gives a model this name, "
                f"`llmasos models add {name} FILE.gguf` installs a file",
            )
        return image

    def all(self) -> list[Image]:
        return [self._images[name] for name in sorted(self._images)]

    async def info(self, image: Image) -> ImageInfo:
        """What `models` shows. EINVAL or ENOENT when the file has been replaced or removed."""
        if image.url:
            return self._remote(image)
        file = image.file
        facts = await anyio.to_thread.run_sync(
            self._drivers[image.driver].probe, file, limiter=self._threads
        )
        return ImageInfo(
            name=image.name, driver=image.driver, digest=await self.digest(image),
            path=str(image.path) if image.path.name else "", bytes=facts.bytes,
            licence=facts.licence, architecture=facts.architecture, context=facts.context,
            aliases=sorted(image.aliases), options=dict(image.options),
            quantisation=facts.quantisation, tuned=str(file) if file != image.path else "",
            candidates=list(image.candidates),
        )  # fmt: skip

    def _remote(self, image: Image) -> ImageInfo:
        """An image without a file."""
        return ImageInfo(
            name=image.name, driver=image.driver, digest="", path="", bytes=0,
            licence="NOASSERTION", architecture=str(image.options.get("model", "")), context=0,
            aliases=sorted(image.aliases), url=image.url, options=dict(image.options),
        )  # fmt: skip

    def missing(self, image: Image, why: str) -> ImageInfo:
        """The row of an image whose file cannot be read any more."""
        return ImageInfo(
            name=image.name, driver=image.driver, digest="", path=str(image.path), bytes=0,
            licence="", architecture=f"unreadable: {why}", context=0,
            aliases=sorted(image.aliases), options=dict(image.options),
        )  # fmt: skip

    async def digest(self, image: Image) -> str:
        """sha256 of the file's content; about 0.1 s per 100 MB the first time, then stored."""
        if not image.path.name:
            return "" if image.url else f"builtin:{image.name}"
        known_as = (str(image.path), stamp(image.path))
        sql = "SELECT digest FROM digests WHERE path = ? AND stamp = ?"
        known = self._store.read(self._database, sql, known_as)
        if known:
            return str(known[0][0])
        digest = await anyio.to_thread.run_sync(sha256, image.path, limiter=self._threads)
        sql = "INSERT OR REPLACE INTO digests VALUES(?,?,?)"
        await self._store.write(self._database, [(sql, (*known_as, digest))], durable=False)
        return digest

    async def add(
        self,
        request: ImageAdd,
        user: str,
        access: Access,
        bind_secret: Callable[[], None] = lambda: None,
    ) -> Image:
        """Install a file or a URL, or give an image a second name, for a user.

        `bind_secret` is called after the options of a URL were checked, and may refuse the URL.
        EEXIST, ENOENT, EACCES, EINVAL, ENOTSUP, EAGAIN.
        """
        if request.name in self._images or request.name in self._aliases:
            raise SyscallError(
                Errno.EEXIST,
                f"the name {request.name!r} is in use by {self.canonical(request.name)}",
                "choose another name"
                if self.get(request.name).builtin and request.name in self._images
                else f"`llmasos models rm {request.name}` frees the name",
            )
        self._check_count(user)
        if request.name == RECALL:
            message = f"{RECALL!r} is the name of a device"
            raise SyscallError(Errno.EINVAL, message, "choose another name")
        if sum(map(bool, (request.path, request.image, request.url))) != 1:
            message = "image_add needs exactly one of path, url and image"
            raise SyscallError(Errno.EINVAL, message)
        self._adding[user] += 1
        try:
            if request.image:
                return await self._add_alias(request, user)
            return await self._install(request, user, access, bind_secret)
        finally:
            self._adding[user] -= 1

    async def _add_alias(self, request: ImageAdd, user: str) -> Image:
        if request.options:
            raise SyscallError(Errno.EINVAL, "image_add: an alias takes no options")
        image = self.get(request.image)
        sql = "INSERT OR REPLACE INTO aliases VALUES(?,?,?)"
        await self._store.write(self._database, [(sql, (request.name, image.name, user))])
        self._alias(request.name, image.name)
        return image

    def _check_count(self, user: str) -> None:
        """EAGAIN: each listing reads all files, so there are limits, of all and of each user."""
        counts = self._counts()
        if user == self._owner:
            limited = [(counts.total(), limits.IMAGES, "exist")]
        else:
            others = counts.total() - counts[self._owner]
            limited = [
                (counts[user], limits.USER_IMAGES, f"were added by {user}"),
                (others, limits.IMAGES - limits.OWNER_IMAGES, "were added by users"),
                (counts.total(), limits.IMAGES, "exist"),
            ]
        for count, most, what in limited:
            if count >= most:
                message = f"{count} models and aliases {what}; at most {most} are allowed"
                raise SyscallError(Errno.EAGAIN, message, "`llmasos models rm NAME` removes one")

    def _counts(self) -> Counter[str]:
        """Models and aliases by the user who added or is adding them; the owner's, if unknown."""
        sql = "SELECT user FROM images UNION ALL SELECT user FROM aliases"
        rows = self._store.read(self._database, sql)
        return Counter(str(user) or self._owner for (user,) in rows) + self._adding

    async def _install(
        self, request: ImageAdd, user: str, access: Access, bind_secret: Callable[[], None]
    ) -> Image:
        path = Path(request.path)
        driver = REMOTE if request.url else await self._choose(path, access)
        image = Image(
            request.name, driver, path, builtin=False, url=request.url, options=request.options
        )
        await self._check_image(image, bind_secret)
        sql = "INSERT INTO images(name, driver, path, url, options, user) VALUES(?,?,?,?,?,?)"
        row = (image.name, driver, request.path, image.url, json.dumps(request.options), user)
        await self._store.write(self._database, [(sql, row)])
        self._images[image.name] = image
        return image

    async def probe(
        self, request: ImageProbe, bind_secret: Callable[[], None] = lambda: None
    ) -> list[str]:
        """The models that an endpoint lists. Refuses what `add` refuses; EIO: no answer."""
        image = Image(
            request.name, REMOTE, Path(), builtin=False, url=request.url, options=request.options
        )
        await self._check_image(image, bind_secret)
        return list(await self._drivers[REMOTE].models(image.chosen(image.options)))

    async def _check_image(self, image: Image, bind_secret: Callable[[], None]) -> None:
        if image.driver not in self._drivers:
            raise SyscallError(Errno.ENOTSUP, f"no driver can run {image.url}")
        # In a thread: this may import the driver's module, which is slow.
        await self._in_thread(lambda: self._check_options(image))
        await self._in_thread(bind_secret)

    def _check_options(self, image: Image) -> None:
        self._drivers[image.driver].check(image.chosen(image.options))

    async def _choose(self, path: Path, access: Access) -> str:
        """The driver whose probe accepts the file; raises the first refusal when none does."""
        if not path.is_absolute():
            raise SyscallError(Errno.EINVAL, f"{str(path)!r} is not an absolute path")
        file, _ = await self._in_thread(lambda: access.run(lambda opener: opener.file(path)))
        try:
            return await self._in_thread(lambda: probing.first(self._drivers, path, file))
        finally:
            os.close(file)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(work, limiter=self._threads)

    async def remove(self, name: str) -> None:
        """Remove an alias, or an installed image with its aliases. Its file is not deleted."""
        if name in self._aliases:
            await self._store.write(
                self._database, [("DELETE FROM aliases WHERE name = ?", (name,))], frees=True
            )
            self._images[self._aliases.pop(name)].aliases.remove(name)
            return
        image = self.get(name)
        if image.builtin:
            raise SyscallError(
                Errno.EBUSY, f"{name} is part of this installation", "uninstall its package instead"
            )
        statements = [
            ("DELETE FROM images WHERE name = ?", (name,)),
            ("DELETE FROM aliases WHERE image = ?", (name,)),
            ("DELETE FROM mounts WHERE image = ?", (name,)),
            ("DELETE FROM tuned WHERE image = ?", (name,)),
        ]
        await self._store.write(self._database, statements, frees=True)
        del self._images[name]
        self._aliases = {alias: to for alias, to in self._aliases.items() if to != name}
        await self.discard(image, image.requantised)

    # --- requantised files ------------------------------------------------------------------------
    async def stem(self, image: Image) -> str:
        """The beginning of the names of its requantised files; equal files have the same."""
        return (await self.digest(image)).removeprefix("sha256:")[:_DIGEST_CHARS]

    async def target(self, image: Image, quantisation: str) -> Path:
        """Path of the requantised file, shared by equal files and by machines of one cache."""
        return self.cache / f"{await self.stem(image)}-{quantisation}.gguf"

    def has_any(self, quantisation: str) -> bool:
        """Whether the cache has a file of this quantisation, of any image."""
        return any(self.cache.glob(f"*-{quantisation}.gguf"))

    async def quantisation(self, image: Image) -> str:
        """The quantisation of the file that the image was installed with."""
        probe = self._drivers[image.driver].probe
        return (
            await anyio.to_thread.run_sync(probe, image.path, limiter=self._threads)
        ).quantisation

    async def use(
        self, image: Image, path: Path, quantisation: str, rows: Sequence[TuneCandidate] = ()
    ) -> None:
        """Mount this file from now on. Empty path: the original. `rows`: what was measured."""
        file = RequantisedFile(path, quantisation, stamp(image.path), rows)
        table = json.dumps([asdict(row) for row in rows])
        row = (image.name, str(path) if path.name else "", quantisation, file.stamp, table)
        sql = "INSERT OR REPLACE INTO tuned VALUES(?,?,?,?,?)"
        await self._store.write(self._database, [(sql, row)], frees=not path.name)
        image.requantised = file

    async def discard(self, image: Image, file: RequantisedFile | None) -> None:
        """Delete the requantised files of an image, except those that other images use.

        Also those of an earlier version of its file: `file` is the one that it used.
        """
        if file is None:
            return
        stems = {file.path.name[:_DIGEST_CHARS]}
        with suppress(OSError, SyscallError):  # its file was removed, or the disk is full
            stems.add(await self.stem(image))
        await self._in_thread(lambda: self._delete(image, stems - {""}))

    def _delete(self, image: Image, stems: set[str]) -> None:
        others = [other.requantised for other in self._images.values() if other is not image]
        used = {file.path for file in others if file is not None}
        for path in [path for stem in stems for path in self.cache.glob(f"{stem}-*.gguf")]:
            if path not in used:
                path.unlink(missing_ok=True)

    # --- remembered mounts ------------------------------------------------------------------------
    def mounts(self) -> list[str]:
        """The images to be mounted again at boot."""
        rows = self._store.read(self._database, "SELECT image FROM mounts")
        return [str(image) for (image,) in rows if image in self._images]

    def mount(self, image: str) -> Mount:
        """The last mount of an image; without options if it was never mounted."""
        sql = "SELECT options, pin FROM mounts WHERE image = ?"
        rows = self._store.read(self._database, sql, (image,))
        return Mount(image, json.loads(str(rows[0][0])), bool(rows[0][1])) if rows else Mount(image)

    async def remember(self, mount: Mount) -> None:
        """Store a mount, to be repeated at boot and on demand."""
        row = (mount.image, json.dumps(mount.options), mount.pin)
        statement: Statement = ("INSERT OR REPLACE INTO mounts VALUES(?,?,?)", row)
        await self._store.write(self._database, [statement])

    async def forget(self, image: str) -> None:
        """Remove the stored mount of an image."""
        statement: Statement = ("DELETE FROM mounts WHERE image = ?", (image,))
        await self._store.write(self._database, [statement], frees=True)
