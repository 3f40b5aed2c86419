"""Images and devices: what can be mounted, and what is."""

from dataclasses import dataclass, field
from typing import Annotated

from .words import Name, OptionalName, Span

RECALL = "recall"  # the name of the recall process among devices


@dataclass(frozen=True, slots=True)
class ImageInfo:
    name: str
    driver: str
    digest: str  # of the file at `path`
    path: str
    bytes: int  # of the file in use
    licence: str  # SPDX id, LicenseRef-* or NOASSERTION, as the file says
    architecture: str
    context: int  # tokens the model was trained for
    aliases: list[str]
    quantisation: str = ""  # of the file in use, as Q8_0
    tuned: str = ""  # path of the requantised file that is used instead of `path`
    url: str = ""  # of a remote engine; it has no file
    options: dict[str, bool | int | float | str] = field(
        default_factory=dict[str, bool | int | float | str]
    )  # of its driver, at every mount


@dataclass(frozen=True, slots=True)
class Images:
    images: list[ImageInfo]


@dataclass(frozen=True, slots=True)
class ImageAdd:
    name: Name
    path: Annotated[str, Span(0, 4096)] = ""  # a file, used in place
    image: OptionalName = ""  # or: an existing image, `name` becomes its alias
    url: Annotated[str, Span(0, 2048)] = ""  # or: an OpenAI-compatible endpoint, as http://HOST/v1
    options: dict[Name, bool | int | float | str] = field(
        default_factory=dict[str, bool | int | float | str]
    )  # of its driver, at every mount


@dataclass(frozen=True, slots=True)
class ImageProbe:
    """An endpoint that may become a model."""

    name: Name
    url: Annotated[str, Span(1, 2048)]
    options: dict[Name, bool | int | float | str] = field(
        default_factory=dict[str, bool | int | float | str]
    )


@dataclass(frozen=True, slots=True)
class Endpoint:
    url: str
    models: list[str]  # that it lists; none: it has no list, and the options name one


@dataclass(frozen=True, slots=True)
class ImageRemove:
    name: Name


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    name: str
    driver: str
    image: str
    state: str  # loading, up, restarting, failed
    slots: int
    busy: int
    waiting: int
    window: int  # tokens a slot
    width: int  # sequences in one step
    os_pid: int
    restarts: int  # times that it was down
    placement: str  # where it runs, and why
    capabilities: list[str]
    rate: float  # generated tokens a second, last seconds
    note: str
    pinned: bool = False  # never unloaded by itself
    loaded: float = 1.0  # while loading: share of the file that has been read
    deterministic: bool = False
    on: str = ""  # name of the hardware, as cpu0
    retry_s: float = 0.0  # until a dead engine is started again


@dataclass(frozen=True, slots=True)
class Hardware:
    """Something that can compute."""

    name: str  # cpu0, gpu0, gpu1
    kind: str  # cpu, gpu
    description: str
    memory: int  # bytes; 0: unknown
    free: int  # bytes, when it was looked at; 0: unknown
    usable: bool  # by this build of llama.cpp
    note: str  # why not, and how to change it


@dataclass(frozen=True, slots=True)
class Look:
    hardware: bool = False  # find out what there is if nobody knows yet, which takes a second


@dataclass(frozen=True, slots=True)
class RecallInfo:
    """The process that finds pages by meaning."""

    state: str  # off, idle (nobody needed it yet), starting, up, restarting, failed
    os_pid: int  # 0: it does not run
    embedder: str  # what makes its vectors; empty: not known
    restarts: int  # times that it was down
    note: str  # why it is down
    retry_s: float  # until it is started again; 0 unless it is down


@dataclass(frozen=True, slots=True)
class Devices:
    devices: list[DeviceInfo]
    hardware: list[Hardware] = field(default_factory=list[Hardware])  # as far as it is known
    recall: RecallInfo | None = None


@dataclass(frozen=True, slots=True)
class Mount:
    image: Name
    options: dict[Name, bool | int | float | str] = field(
        default_factory=dict[str, bool | int | float | str]
    )
    pin: bool = False  # never unload it by itself


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load or a tune is."""

    stage: str
    done: float  # 0 to 1
    note: str = ""


@dataclass(frozen=True, slots=True)
class Unmount:
    image: Name


@dataclass(frozen=True, slots=True)
class Restart:
    device: Name  # a mounted image, or RECALL


@dataclass(frozen=True, slots=True)
class Restarted:
    """A device that is up again."""

    device: str
    os_pid: int  # 0: it has no process of its own
    restarts: int


@dataclass(frozen=True, slots=True)
class PoisonInfo:
    """What is held against a call, which has no other name than a hash of what it asks."""

    id: str
    model: str
    owner: str  # of the process whose call it was
    refused: bool  # False: it runs alone
    since: float  # Unix seconds
    until: float
    reason: str  # of the engine's death


@dataclass(frozen=True, slots=True)
class Poisons:
    poisons: list[PoisonInfo]


@dataclass(frozen=True, slots=True)
class PoisonLift:
    """One call by its id, or by what the id begins with; or all of them."""

    id: OptionalName = ""
    all: bool = False


@dataclass(frozen=True, slots=True)
class ImageTune:
    """Requantise an image's file into the cache, and use that from then on."""

    name: Name
    quantisation: Name = "Q8_0"
    measure: bool = True  # speed and perplexity, before and after
    off: bool = False  # use the original again, and delete what was made


@dataclass(frozen=True, slots=True)
class Quality:
    """What a file is, and what it does. Figures are 0 when nothing was measured."""

    quantisation: str
    bytes: int
    perplexity: float  # over the passage that comes with the system
    prefill: float  # tokens a second
    decode: float  # tokens a second, all sequences of a full batch together


@dataclass(frozen=True, slots=True)
class Tuned:
    image: str
    path: str
    before: Quality
    after: Quality
