"""Configuration: flag > environment > file > default, each value with its origin.

Pydantic checks what a person wrote; a wrong value names the file or variable that holds it.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from . import limits
from .complaint import wanted
from .errors import Errno, SyscallError
from .paths import Paths


class Config(BaseModel):
    """Every setting of the daemon. The field's description is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("smollm2", description="the model that run and chat use")
    slots: Annotated[int, Field(ge=1, le=limits.SLOTS_MAX)] = Field(
        limits.SLOTS, description="conversations resident in an engine at once"
    )
    window: Annotated[int, Field(ge=256, le=limits.WINDOW_MAX)] = Field(
        limits.WINDOW_TOKENS, description="tokens of context for each conversation"
    )
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="threads of an engine; 0: one for each core"
    )
    mount: bool = Field(True, description="mount the default model at start")
    tune: bool = Field(True, description="make the embedded model fast here, at its first use")
    pin: bool = Field(False, description="never unload the default model by itself")
    idle_unload_s: Annotated[float, Field(ge=0)] = Field(
        limits.UNLOAD_S, description="a model that nobody uses for so long is unloaded; 0: never"
    )
    idle_exit_s: Annotated[float, Field(ge=1)] = Field(
        limits.IDLE_EXIT_S, description="a private daemon without processes leaves after this"
    )
    collect_after_s: Annotated[float, Field(ge=0)] = Field(
        limits.ENDED_S,
        description="processes that have ended are removed after this if nobody waits; 0: never",
    )
    shared: bool = Field(False, description="users of the system that were added may connect")
    group: str = Field("", description="of a shared socket; empty: the owner's own group")
    user_connections: Annotated[int, Field(ge=1, le=limits.CONNECTIONS)] = Field(
        limits.USER_CONNECTIONS, description="connections of each user but the owner"
    )
    listen: str = Field("", description="HOST:PORT for TCP with TLS 1.3 and a key; empty: none")
    tls_cert: str = Field("", description="PEM file: the machine's certificate, for `listen`")
    tls_key: str = Field("", description="PEM file: its key")
    tls_clients: str = Field("", description="PEM file: who signs clients' certificates, if asked")
    memory_embedder: str = Field(
        "builtin", description="what finds pages by meaning: builtin, none, or a model's name"
    )
    memory_summaries: bool = Field(
        False, description="summaries of what leaves a window, made when the engine is idle"
    )
    memory_url: str = Field(
        "", description="of a Chroma server; empty: Chroma runs in this machine"
    )
    journal_bytes: Annotated[int, Field(ge=1024 * 1024)] = Field(
        limits.JOURNAL_BYTES,
        description="the whole journal: half for the owner, the rest for all other users",
    )


_FILES = ("tls_cert", "tls_key", "tls_clients")  # settings that name a file


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

    Relative names of files are below the file's directory, or where they are flags and variables
    below `directory`; None: below the current one.
    """
    here = directory or Path.cwd()
    origins: dict[str, tuple[Any, str]] = {}
    for name, value in _file(paths.config_file).items():
        origins[name] = (_placed(name, value, paths.config_file.parent), str(paths.config_file))
    for name in Config.model_fields:
        variable = f"LLMASOS_{name.upper()}"
        if variable in os.environ:
            origins[name] = (_placed(name, os.environ[variable], here), variable)
    for name, value in flags.items():
        origins[name] = (_placed(name, value, here), "flag")
    try:
        config = Config.model_validate({name: value for name, (value, _) in origins.items()})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        value, origin = origins.get(name, (None, "configuration"))
        hint = "`llmasos config list` tells what each setting is"
        words = f"{name} = {value!r} ({origin}): {wanted(dict(first))}"
        if name not in Config.model_fields:
            words = f"{name} ({origin}): there is no such setting"
        raise SyscallError(Errno.EINVAL, words, hint) from error
    settings = [
        Setting(
            name, getattr(config, name), origins.get(name, (None, "default"))[1],
            field.description or "",
        )
        for name, field in Config.model_fields.items()
    ]  # fmt: skip
    return config, settings


def _placed(name: str, value: Any, directory: Path) -> Any:
    """The name of a file with its directory; a home directory may be a ~."""
    if name not in _FILES or not isinstance(value, str) or not value:
        return value
    return str(directory.absolute() / os.path.expanduser(value))


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """`[memory]` with `url` is `memory_url`: a table's name belongs to its settings."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            table = cast("dict[str, Any]", value)
            flat |= {f"{name}_{key}": one for key, one in table.items()}
        else:
            flat[name] = value
    return flat


def _file(path: Path) -> dict[str, Any]:
    try:
        return _flat(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SyscallError(Errno.EINVAL, f"{path}: {error}", "mend the file") from error
