"""What is installed survives versions, and loads no more than it needs."""

import shutil
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import ImageAdd
from llmasos.kernel.boot import Drivers
from llmasos.kernel.driver import Option
from llmasos.kernel.scheduling.images import SCHEMA, Image, ImageRegistry
from llmasos.kernel.storage.filesystem import Access
from llmasos.kernel.storage.store import Store
from llmasos.userland.daemon import DRIVERS

pytestmark = pytest.mark.anyio
URL = "https://api.example.com/v1"


def images(store: Store) -> ImageRegistry:
    return ImageRegistry(
        store, Drivers(DRIVERS), {"echo": ("echo", Path())}, store.directory / "cache", "root"
    )


async def test_images_of_version_1_are_still_there(tmp_path: Path) -> None:
    """The file was written before an image could be a url, be tuned or have options, and when the
    driver of model files was named after llama.cpp."""
    shutil.copy(Path(__file__).parent / "data" / "images.v1.db", tmp_path / "images.db")
    store = Store(tmp_path)
    found = images(store)
    image = found.get("c")
    assert (image.name, image.driver, str(image.path)) == ("coder", "gguf", "/models/coder.gguf")
    assert (image.url, image.options) == ("", {})
    assert found.mounts() == ["coder"]
    assert found.mount("coder").options == {"slots": 4}
    store.close()


async def test_a_url_is_an_image_with_options_for_every_mount(tmp_path: Path) -> None:
    store = Store(tmp_path)
    options: dict[str, Option] = {"model": "big", "slots": 4}
    image = await images(store).add(ImageAdd("far", url=URL, options=options), "root", Access())
    again = images(store).get("far")
    for one in (image, again):
        assert one.chosen({"slots": 2}) == {"model": "big", "slots": 2, "url": URL}
        with pytest.raises(SyscallError) as error:
            one.chosen({"url": "https://other.example.com"})
        assert error.value.errno is Errno.EINVAL
    info = await images(store).info(again)
    assert (info.url, info.options, info.driver, info.bytes) == (URL, options, "remote", 0)
    store.close()


@pytest.mark.parametrize(
    "request_",
    [
        ImageAdd("x"),
        ImageAdd("x", path="/a.gguf", url=URL),
        ImageAdd("x", image="echo", url=URL),
        ImageAdd("x", image="echo", options={"slots": 1}),
        ImageAdd("x", url=URL, options={"colour": "red"}),
        ImageAdd("x", url=URL, options={"url": URL}),
    ],
)
async def test_what_makes_no_sense_is_not_installed(tmp_path: Path, request_: ImageAdd) -> None:
    store = Store(tmp_path)
    found = images(store)
    with pytest.raises(SyscallError) as error:
        await found.add(request_, "root", Access())
    assert error.value.errno is Errno.EINVAL
    assert [image.name for image in found.all()] == ["echo"]
    store.close()


async def test_there_is_a_limit_of_models_and_aliases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "IMAGES", 2)
    store = Store(tmp_path)
    found = images(store)
    await found.add(ImageAdd("far", url=URL, options={"model": "big"}), "root", Access())
    await found.add(ImageAdd("near", image="far"), "root", Access())
    for more in (ImageAdd("one", url=URL, options={"model": "big"}), ImageAdd("one", image="far")):
        with pytest.raises(SyscallError, match="at most 2 are allowed") as error:
            await found.add(more, "root", Access())
        assert error.value.errno is Errno.EAGAIN
    await found.remove("near")
    await found.add(ImageAdd("one", image="far"), "root", Access())
    store.close()


async def test_no_user_takes_all_images_and_the_owner_keeps_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted again after a restart; a removed name can be added again."""
    monkeypatch.setattr(limits, "IMAGES", 7)
    monkeypatch.setattr(limits, "USER_IMAGES", 3)
    monkeypatch.setattr(limits, "OWNER_IMAGES", 2)
    store = Store(tmp_path)

    async def added(user: str) -> int:
        """How many more a user may add."""
        for count in range(limits.IMAGES + 1):
            name, registry = f"{user}{count}", images(store)
            try:
                await registry.add(ImageAdd(name, image="echo"), user, Access())
            except SyscallError as error:
                assert error.errno is Errno.EAGAIN
                for number in range(count):
                    await images(store).remove(f"{user}{number}")
                return count
        raise AssertionError("there is no limit")

    assert await added("ann") == 3
    options: dict[str, Option] = {"model": "big"}
    for name in "abc":
        await images(store).add(ImageAdd(name, url=URL, options=options), "ann", Access())
    with pytest.raises(SyscallError, match="3 models and aliases were added by ann; at most 3"):
        await images(store).add(ImageAdd("d", image="echo"), "ann", Access())
    assert await added("bob") == 2  # 7, less the owner's 2, less ann's 3
    assert await added("root") == 4
    await images(store).remove("b")
    assert await added("ann") == 1
    store.close()


async def test_calls_at_once_do_not_exceed_a_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "USER_IMAGES", 2)
    store = Store(tmp_path)
    registry, refused = images(store), list[Errno]()

    async def add(name: str) -> None:
        try:
            await registry.add(ImageAdd(name, image="echo"), "ann", Access())
        except SyscallError as error:
            refused.append(error.errno)

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(add, f"many{number}")
    assert refused == 3 * [Errno.EAGAIN]
    await registry.remove("many0")
    await registry.add(ImageAdd("one", image="echo"), "ann", Access())
    store.close()


LIST = """
import anyio, sys
from pathlib import Path
from llmasos.kernel.boot import Drivers
from llmasos.kernel.scheduling.images import ImageRegistry
from llmasos.kernel.storage.store import Store
from llmasos.userland.daemon import DRIVERS
async def main():
    where = Path(sys.argv[1])
    store = Store(where)
    images = ImageRegistry(store, Drivers(DRIVERS), {"echo": ("echo", Path())}, where / "cache", "")
    for image in images.all():
        await images.info(image)
    store.close()
anyio.run(main)
print(*sys.modules)
"""


def test_a_list_of_models_loads_only_the_drivers_that_it_needs(tmp_path: Path) -> None:
    line = [sys.executable, "-c", LIST, str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split())
    assert "llmasos.drivers.echo" in loaded
    assert not {"httpx", "llmasos.drivers.remote", "llmasos.drivers.model_files"} & loaded


def test_another_model_behind_the_same_name_is_told_apart(tmp_path: Path) -> None:
    """By its bytes, not by its size alone; an endpoint by its url and the model there."""
    file = tmp_path / "model.gguf"
    found: set[str] = set()
    for data in (b"one", b"two", b"one" * 2, b"x" * 3_000_000, b"x" * 2_999_999 + b"y"):
        file.write_bytes(data)
        found.add(Image("m", "gguf", file, builtin=False).fingerprint())
    for url, model in (("http://a", ""), ("http://b", ""), ("http://b", "large")):
        image = Image("m", "remote", Path(), False, url, {"model": model})
        found.add(image.fingerprint())
    assert len(found) == 8


async def test_names_of_a_model_that_is_no_longer_shipped_are_ignored(tmp_path: Path) -> None:
    store = Store(tmp_path)
    before = images(store)
    await before.add(ImageAdd("short", image="echo"), "root", Access())
    sql = "INSERT INTO tuned(image, path, quantisation, stamp) VALUES('echo', ?, 'Q8_0', '')"
    await store.write(store.open("images.db", SCHEMA), [(sql, ("/cache/x.gguf",))])
    store.close()
    store = Store(tmp_path)
    assert images(store).get("short").name == "echo"
    store.close()
    store = Store(tmp_path)
    after = ImageRegistry(store, Drivers(DRIVERS), {}, tmp_path / "cache", "root")
    assert after.canonical("short") == "short"
    with pytest.raises(SyscallError, match="short"):
        after.get("short")
    store.close()


async def test_a_url_without_a_driver_for_it_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    drivers = Drivers({"echo": DRIVERS["echo"]})
    found = ImageRegistry(store, drivers, {}, tmp_path / "cache", "root")
    with pytest.raises(SyscallError, match=f"no driver can run {URL}") as error:
        await found.add(ImageAdd("far", url=URL), "root", Access())
    assert error.value.errno is Errno.ENOTSUP
    store.close()
