"""Configuration: flag > environment > file > default, each value with its origin.

Pydantic validates the values. The error of an invalid value names its file or variable.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .abi import limits
from .abi.errors import Errno, SyscallError
from .abi.paths import Paths
from .validation_message import expected


class Config(BaseModel):
    """Every setting of the daemon. The field's description is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("smollm2", description="the model that `run` and `chat` use")
    slots: Annotated[int, Field(ge=1, le=limits.SLOTS_MAX)] = Field(
        limits.SLOTS, description="conversations resident in an engine at once"
    )
    window: Annotated[int, Field(ge=256, le=limits.WINDOW_MAX)] = Field(
        limits.WINDOW_TOKENS, description="tokens of context for each conversation"
    )
    engine: Literal["auto", "llama", "openvino"] = Field(
        "auto", description="engine of model files: llama, openvino; auto: the faster one"
    )
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="threads of an engine; 0: one for each core"
    )
    mount: bool = Field(True, description="mount the default model at start")
    tune: bool = Field(
        True,
        description="at its first use, tune the embedded model for this machine, and measure which "
        "engine is faster for a file",
    )
    pin: bool = Field(False, description="never unload the default model automatically")
    idle_unload_s: Annotated[float, Field(ge=0)] = Field(
        limits.UNLOAD_S, description="unload a model that is unused for this time; 0: never"
    )
    idle_exit_s: Annotated[float, Field(ge=1)] = Field(
        limits.IDLE_EXIT_S, description="a private daemon without processes exits after this time"
    )
    collect_after_s: Annotated[float, Field(ge=0)] = Field(
        limits.ENDED_S,
        description="remove ended processes without a waiter after this time; 0: never",
    )
    shared: bool = Field(False, description="users of the system in the user table may connect")
    group: str = Field("", description="group of a shared socket; empty: the owner's primary group")
    user_connections: Annotated[int, Field(ge=1, le=limits.CONNECTIONS)] = Field(
        limits.USER_CONNECTIONS, description="connections of each user but the owner"
    )
    listen: str = Field("", description="HOST:PORT for TCP with TLS 1.3 and a key; empty: no TCP")
    tls_cert: str = Field("", description="PEM file: the machine's certificate, for `listen`")
    tls_key: str = Field("", description="PEM file: the private key of `tls_cert`")
    tls_clients: str = Field(
        "", description="PEM file: the CA of client certificates; empty: not requested"
    )
    memory_embedder: str = Field(
        "builtin", description="embedder of pages for recall: builtin, none, or a model's name"
    )
    memory_summaries: bool = Field(
        False, description="summarise pages that leave a window, in pauses of their process"
    )
    memory_url: str = Field(
        "", description="URL of a Chroma server; empty: Chroma runs on this machine"
    )
    user_bytes: Annotated[int, Field(ge=1024 * 1024)] = Field(
        limits.USER_BYTES, description="size of the pages of each user but the owner"
    )
    journal_bytes: Annotated[int, Field(ge=1024 * 1024)] = Field(
        limits.JOURNAL_BYTES,
        description="size of the journal: half for the owner, half for all other users",
    )


_FILES = ("tls_cert", "tls_key", "tls_clients")  # settings that are paths


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    value: bool | int | float | str
    origin: str  # "flag", "LLMASOS_WINDOW", the file, or "default"
    description: str


def load(
    paths: Paths, flags: Mapping[str, Any], directory: Path | None = None
) -> tuple[Config, list[Setting]]:
    """The configuration and where each value came from. EINVAL names the wrong value's origin.

    Relative paths in the file are relative to its directory, those of flags and variables to
    `directory`; None: to the current directory.
    """
    base = directory or Path.cwd()
    origins: dict[str, tuple[Any, str]] = {}
    for name, value in _file(paths.config_file).items():
        origins[name] = (_resolved(name, value, paths.config_file.parent), str(paths.config_file))
    for name in Config.model_fields:
        variable = f"LLMASOS_{name.upper()}"
        if variable in os.environ:
            origins[name] = (_resolved(name, os.environ[variable], base), variable)
    for name, value in flags.items():
        origins[name] = (_resolved(name, value, base), "flag")
    try:
        config = Config.model_validate({name: value for name, (value, _) in origins.items()})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        value, origin = origins.get(name, (None, "configuration"))
        hint = "`llmasos config list` describes each setting"
        message = f"{name} = {value!r} ({origin}): {expected(dict(first))}"
        if name not in Config.model_fields:
            message = f"{name} ({origin}): no such setting"
        raise SyscallError(Errno.EINVAL, message, hint) from error
    settings = [
        Setting(
            name, getattr(config, name), origins.get(name, (None, "default"))[1],
            field.description or "",
        )
        for name, field in Config.model_fields.items()
    ]  # fmt: skip
    return config, settings


def _resolved(name: str, value: Any, directory: Path) -> Any:
    """The value; of a setting that is a path, the absolute path. `~` is the home directory."""
    if name not in _FILES or not isinstance(value, str) or not value:
        return value
    return str(directory.absolute() / os.path.expanduser(value))


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten tables: `url` in `[memory]` is `memory_url`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            table = cast("dict[str, Any]", value)
            flat |= {f"{name}_{key}": value for key, value in table.items()}
        else:
            flat[name] = value
    return flat


def _file(path: Path) -> dict[str, Any]:
    try:
        return _flat(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SyscallError(Errno.EINVAL, f"{path}: {error}", "correct the file") from error
