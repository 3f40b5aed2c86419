"""Values for images (installed models) and devices (mounted engines)."""

from dataclasses import dataclass, field
from typing import Annotated

from .fields import Name, OptionalName, Span

RECALL = "recall"  # the device name of the recall process


@dataclass(frozen=True, slots=True)
class TuneCandidate:
    """A model file that was considered. Figures are 0 when they were not measured."""

    quantisation: str
    bytes: int = 0
    made_from: str = ""  # the quantisation that it was made of; empty: the original file
    engine: str = ""  # that computes it: llama, openvino
    prompt: float = 0.0  # tokens per second
    single: float = 0.0  # generated tokens per second of one sequence
    full: float = 0.0  # of 16 sequences together
    perplexity: float = 0.0  # on the text that comes with the system
    ratio: float = 0.0  # of the perplexities, over the original file
    kl: float = 0.0  # mean Kullback-Leibler divergence from the original file, in nats
    chosen: bool = False
    why: str = ""  # it was chosen or not


@dataclass(frozen=True, slots=True)
class ImageInfo:
    name: str
    driver: str
    digest: str  # of the file at `path`
    path: str
    bytes: int  # of the file in use
    licence: str  # SPDX id, LicenseRef-* or NOASSERTION, from the file
    architecture: str
    context: int  # tokens the model was trained for
    aliases: list[str]
    quantisation: str = ""  # of the file in use, for example Q8_0
    tuned: str = ""  # path of the requantised file that is used instead of `path`
    url: str = ""  # of a remote engine, which has no file
    options: dict[str, bool | int | float | str] = field(
        default_factory=dict[str, bool | int | float | str]
    )  # of its driver, for every mount
    candidates: list[TuneCandidate] = field(default_factory=list[TuneCandidate])  # last measured


@dataclass(frozen=True, slots=True)
class Images:
    images: list[ImageInfo]


@dataclass(frozen=True, slots=True)
class ImageAdd:
    name: Name
    path: Annotated[str, Span(0, 4096)] = ""  # a file, used in place
    image: OptionalName = ""  # or: an existing image; `name` becomes its alias
    url: Annotated[str, Span(0, 2048)] = ""  # or: an OpenAI-compatible endpoint: http://HOST/v1
    options: dict[Name, bool | int | float | str] = field(
        default_factory=dict[str, bool | int | float | str]
    )  # of its driver, for every mount


@dataclass(frozen=True, slots=True)
class ImageProbe:
    """An endpoint to query before it is added as an image."""

    name: Name
    url: Annotated[str, Span(1, 2048)]
    options: dict[Name, bool | int | float | str] = field(
        default_factory=dict[str, bool | int | float | str]
    )


@dataclass(frozen=True, slots=True)
class Endpoint:
    url: str
    models: list[str]  # that it lists; empty: it has no list, and the options name the model


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
    window: int  # tokens per slot
    width: int  # sequences in one step
    os_pid: int
    restarts: int  # times it was down
    placement: str  # where it runs, and why
    capabilities: list[str]
    rate: float  # generated tokens per second, over the last seconds
    note: str
    pinned: bool = False  # never unloaded automatically
    loaded: float = 1.0  # while loading: share of the file that was read
    deterministic: bool = False
    on: str = ""  # name of the hardware, for example cpu0
    retry_s: float = 0.0  # until a crashed engine is restarted
    sent_bytes: int = 0  # from the kernel to the process of the engine, since that started


@dataclass(frozen=True, slots=True)
class Hardware:
    """A processor of the machine: CPU or GPU."""

    name: str  # cpu0, gpu0, gpu1
    kind: str  # cpu, gpu
    description: str
    memory: int  # bytes; 0: unknown
    free: int  # bytes, at the last check; 0: unknown
    usable: bool  # by this build of llama.cpp
    note: str  # why it is not usable, and how to change that


@dataclass(frozen=True, slots=True)
class ListDevices:
    hardware: bool = False  # detect the hardware if that was not done yet; takes a second


@dataclass(frozen=True, slots=True)
class RecallInfo:
    """The process for vector search over pages."""

    state: str  # off, idle (not needed yet), starting, up, restarting, failed
    os_pid: int  # 0: it does not run
    embedder: str  # computes the vectors; empty: unknown
    restarts: int  # times it was down
    note: str  # why it is down
    retry_s: float  # until it is restarted; 0 unless it is down


@dataclass(frozen=True, slots=True)
class Devices:
    devices: list[DeviceInfo]
    hardware: list[Hardware] = field(default_factory=list[Hardware])  # empty: not detected yet
    recall: RecallInfo | None = None


@dataclass(frozen=True, slots=True)
class Mount:
    image: Name
    options: dict[Name, bool | int | float | str] = field(
        default_factory=dict[str, bool | int | float | str]
    )
    pin: bool = False  # never unload it automatically


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a load or a requantisation."""

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
    """A restarted device."""

    device: str
    os_pid: int  # 0: it has no process
    restarts: int


@dataclass(frozen=True, slots=True)
class PoisonInfo:
    """A call that is refused or runs exclusively, because its engine crashed."""

    id: str  # a hash of the request
    model: str
    owner: str  # of the calling process
    refused: bool  # False: it runs exclusively
    since: float  # Unix seconds
    until: float
    reason: str  # of the engine's crash


@dataclass(frozen=True, slots=True)
class Poisons:
    poisons: list[PoisonInfo]


@dataclass(frozen=True, slots=True)
class PoisonLift:
    """One call by its id or the first characters of it, or all calls."""

    id: OptionalName = ""
    all: bool = False


@dataclass(frozen=True, slots=True)
class ImageTune:
    """Requantise an image's file into the cache, and use the new file from then on."""

    name: Name
    quantisation: OptionalName = ""  # empty: the fastest that loses little; unmeasured, Q8_0
    measure: bool = True  # speed and loss of each file
    off: bool = False  # use the original again, and delete the requantised file


@dataclass(frozen=True, slots=True)
class Tuned:
    image: str
    path: str  # of the chosen file
    candidates: list[TuneCandidate]  # the original file first
