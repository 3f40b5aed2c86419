"""`--set KEY=VALUE`: parses and prints driver options."""

from collections.abc import Mapping, Sequence

from llmasos.kernel.abi.errors import Errno, SyscallError

Option = bool | int | float | str


def read(texts: Sequence[str]) -> dict[str, Option]:
    """The options by name. Raises EINVAL without a `=`."""
    return dict(_one(text) for text in texts)


def _one(text: str) -> tuple[str, Option]:
    """A key and its value as bool, int, float or str."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise SyscallError(
            Errno.EINVAL, f"--set {text}: expected KEY=VALUE", "as in --set window=4096"
        )
    if value in ("true", "false"):
        return key, value == "true"
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, value


def shown(options: Mapping[str, Option]) -> str:
    """The options as arguments of --set."""
    words = {True: "true", False: "false"}
    return ", ".join(
        f"{name}={words[value] if isinstance(value, bool) else value}"
        for name, value in sorted(options.items())
    )
