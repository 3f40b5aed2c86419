"""Installed images: name, aliases, digest, licence, and the driver that can run them.

A model file is used in place and never copied. Its header is probed with bounds by the driver
before anything else reads it; its digest is computed once and kept with the file's size and time.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread

from .driver import Driver
from .errors import Errno, SyscallError
from .store import Schema, Statement, Store
from .values import ImageAdd, ImageInfo

SCHEMA = Schema(
    "images",
    (
        """CREATE TABLE images(name TEXT PRIMARY KEY, driver TEXT NOT NULL, path TEXT NOT NULL);
           CREATE TABLE aliases(name TEXT PRIMARY KEY, image TEXT NOT NULL);
           CREATE TABLE digests(path TEXT PRIMARY KEY, stamp TEXT NOT NULL, digest TEXT NOT NULL);
           CREATE TABLE mounts(image TEXT PRIMARY KEY, options TEXT NOT NULL)""",
    ),
)


@dataclass(slots=True)
class Image:
    name: str
    driver: str
    path: Path  # empty: the driver needs no file
    builtin: bool  # found at boot, not installed by a person
    aliases: list[str] = field(default_factory=list[str])


class Images:
    """What can be mounted, by name."""

    def __init__(
        self, store: Store, drivers: Mapping[str, Driver], builtin: Mapping[str, tuple[str, Path]]
    ) -> None:
        self._store = store
        self._drivers = drivers
        self._database = store.open("images.db", SCHEMA)
        self._images = {
            name: Image(name, driver, path, builtin=True)
            for name, (driver, path) in builtin.items()
        }
        for name, driver, path in store.read(self._database, "SELECT * FROM images"):
            self._images[str(name)] = Image(str(name), str(driver), Path(str(path)), builtin=False)
        self._aliases: dict[str, str] = {}
        for name, image in store.read(self._database, "SELECT * FROM aliases"):
            self._alias(str(name), str(image))

    def _alias(self, name: str, image: str) -> None:
        if image in self._images:
            self._aliases[name] = image
            self._images[image].aliases.append(name)

    def canonical(self, name: str) -> str:
        """The name that the gate sees: aliases resolved, the unknown as it is."""
        return self._aliases.get(name, name)

    def get(self, name: str) -> Image:
        """ENOENT lists what exists and how to make an alias."""
        image = self._images.get(self.canonical(name))
        if image is None:
            known = ", ".join(sorted((*self._images, *self._aliases))) or "none"
            raise SyscallError(
                Errno.ENOENT,
                f"there is no model {name!r}; there are: {known}",
                f"`llmasos models alias {name} EXISTING` gives one this name, "
                f"`llmasos models add {name} FILE.gguf` installs a file",
            )
        return image

    def all(self) -> list[Image]:
        return [self._images[name] for name in sorted(self._images)]

    async def info(self, image: Image) -> ImageInfo:
        """What `models` shows. EINVAL or ENOENT when the file is not what it was."""
        facts = await anyio.to_thread.run_sync(self._drivers[image.driver].probe, image.path)
        return ImageInfo(
            name=image.name, driver=image.driver, digest=await self.digest(image),
            path=str(image.path) if image.path.name else "", bytes=facts.bytes,
            licence=facts.licence, architecture=facts.architecture, context=facts.context,
            aliases=sorted(image.aliases),
        )  # fmt: skip

    def missing(self, image: Image, why: str) -> ImageInfo:
        """An image whose file cannot be read any more is still listed."""
        return ImageInfo(
            name=image.name, driver=image.driver, digest="", path=str(image.path), bytes=0,
            licence="", architecture=f"unreadable: {why}", context=0,
            aliases=sorted(image.aliases),
        )  # fmt: skip

    async def digest(self, image: Image) -> str:
        """sha256 of the file's content; about 0.1 s per 100 MB the first time, then kept."""
        if not image.path.name:
            return f"builtin:{image.name}"
        status = image.path.stat()
        stamp = f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
        sql = "SELECT digest FROM digests WHERE path = ? AND stamp = ?"
        known = self._store.read(self._database, sql, (str(image.path), stamp))
        if known:
            return str(known[0][0])
        digest = await anyio.to_thread.run_sync(_sha256, image.path)
        sql = "INSERT OR REPLACE INTO digests VALUES(?,?,?)"
        await self._store.write(
            self._database, [(sql, (str(image.path), stamp, digest))], durable=False
        )
        return digest

    async def add(self, request: ImageAdd) -> Image:
        """Install a file, or give an image a second name. EEXIST, ENOENT, EINVAL, ENOTSUP."""
        if request.name in self._images or request.name in self._aliases:
            raise SyscallError(
                Errno.EEXIST,
                f"{request.name!r} is taken by {self.canonical(request.name)}",
                "choose another name"
                if self.get(request.name).builtin and request.name in self._images
                else f"`llmasos models rm {request.name}` frees the name",
            )
        if bool(request.path) == bool(request.image):
            raise SyscallError(Errno.EINVAL, "image_add: give either a path or an image")
        if request.image:
            image = self.get(request.image)
            sql = "INSERT OR REPLACE INTO aliases VALUES(?,?)"
            await self._store.write(self._database, [(sql, (request.name, image.name))])
            self._alias(request.name, image.name)
            return image
        return await self._install(request.name, Path(request.path))

    async def _install(self, name: str, path: Path) -> Image:
        if not path.is_absolute():
            raise SyscallError(Errno.EINVAL, f"{str(path)!r} is not an absolute path")
        driver = await self._choose(path)
        sql = "INSERT INTO images VALUES(?,?,?)"
        await self._store.write(self._database, [(sql, (name, driver, str(path)))])
        self._images[name] = Image(name, driver, path, builtin=False)
        return self._images[name]

    async def _choose(self, path: Path) -> str:
        """The driver whose probe accepts the file; the first complaint when none does."""
        if not await anyio.Path(path).is_file():
            raise SyscallError(Errno.ENOENT, f"there is no file {path}", "check the path")
        complaint: SyscallError | None = None
        for name, driver in self._drivers.items():
            try:
                await anyio.to_thread.run_sync(driver.probe, path)
            except SyscallError as error:
                complaint = complaint or error
            else:
                return name
        raise complaint or SyscallError(Errno.ENOTSUP, f"no driver can run {path}")

    async def remove(self, name: str) -> None:
        """Forget an alias, or an installed image with its aliases. The file stays."""
        if name in self._aliases:
            await self._store.write(
                self._database, [("DELETE FROM aliases WHERE name = ?", (name,))], frees=True
            )
            self._images[self._aliases.pop(name)].aliases.remove(name)
            return
        image = self.get(name)
        if image.builtin:
            raise SyscallError(
                Errno.EBUSY, f"{name} comes with this installation", "uninstall its package instead"
            )
        statements = [
            ("DELETE FROM images WHERE name = ?", (name,)),
            ("DELETE FROM aliases WHERE image = ?", (name,)),
            ("DELETE FROM mounts WHERE image = ?", (name,)),
        ]
        await self._store.write(self._database, statements, frees=True)
        del self._images[name]
        self._aliases = {alias: of for alias, of in self._aliases.items() if of != name}

    # --- what is mounted again at boot ------------------------------------------------------------
    def mounts(self) -> list[tuple[str, str]]:
        """(image, options as JSON) of every mount that a person asked for."""
        rows = self._store.read(self._database, "SELECT image, options FROM mounts")
        return [(str(image), str(options)) for image, options in rows if image in self._images]

    async def remember(self, image: str, options: str | None) -> None:
        """Mount it again at boot, with these options; None: no more."""
        if options is None:
            statement: Statement = ("DELETE FROM mounts WHERE image = ?", (image,))
        else:
            statement = ("INSERT OR REPLACE INTO mounts VALUES(?,?)", (image, options))
        await self._store.write(self._database, [statement], frees=options is None)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
