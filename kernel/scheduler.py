"""Every mounted device, by the image it runs: which are loaded, which stay, which go."""

from .device import Device, Tell
from .driver import Engine
from .errors import Errno, SyscallError


class Scheduler:
    """Every device, by the image it runs."""

    def __init__(self) -> None:
        self.devices: dict[str, Device] = {}

    def device(self, image: str) -> Device | None:
        return self.devices.get(image)

    def mount(self, name: str, driver: str, engine: Engine, tell: Tell) -> Device:
        """A device that is not loaded yet."""
        device = self.devices[name] = Device(name, driver, engine, tell)
        return device

    async def load(self, device: Device) -> None:
        """Start its engine; a device that failed, or was unmounted meanwhile, does not stay."""
        await device.load()
        if device.state == "failed" and self.devices.get(device.name) is device:
            del self.devices[device.name]
        if self.devices.get(device.name) is not device:
            await device.engine.stop()

    async def unmount(self, name: str) -> None:
        device = self.devices.pop(name, None)
        if device is None:
            words = f"{name} is not mounted"
            raise SyscallError(Errno.ENOENT, words, "`llmasos devices` lists what is")
        device.close(f"{name} was unmounted", "unmounted")
        await device.engine.stop()

    def each(self) -> list[Device]:
        return list(self.devices.values())
