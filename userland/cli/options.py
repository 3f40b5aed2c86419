"""`--set KEY=VALUE`: options of drivers, in both directions."""

from collections.abc import Mapping, Sequence

from llmasos.kernel.errors import Errno, SyscallError

Option = bool | int | float | str


def read(texts: Sequence[str]) -> dict[str, Option]:
    """What was set. EINVAL without a `=`."""
    return dict(_one(text) for text in texts)


def _one(text: str) -> tuple[str, Option]:
    """A value as the driver wants it."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise SyscallError(Errno.EINVAL, f"--set {text}: not KEY=VALUE", "as in --set window=4096")
    if value in ("true", "false"):
        return key, value == "true"
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, value


def shown(options: Mapping[str, Option]) -> str:
    """As a person would set them."""
    words = {True: "true", False: "false"}
    return ", ".join(
        f"{name}={words[value] if isinstance(value, bool) else value}"
        for name, value in sorted(options.items())
    )
