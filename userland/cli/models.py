"""Verbs about models: list, add, alias and remove.

The kernel and its syscalls call an installed model an image.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from shlex import join

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import EngineFailed, Errno, SyscallError
from llmasos.userland.client import BlockingClient

from . import exits, options, questions
from .connection import connect, is_remote
from .generation import clean
from .show import key_values, note, print_json, size, table
from .tune import candidates_table

_LISTED = 20  # maximum number of model names in a message


def _images() -> list[v.ImageInfo]:
    with connect() as client:
        return client.call("images", v.Nothing(), v.Images).images


def list_(arguments: Namespace) -> int:
    images = _images()
    if arguments.json:
        print_json({"images": images})
        return exits.OK
    rows = [
        (i.name, i.driver, i.architecture or "-", "-" if i.url else size(i.bytes),
         _quantisation(i), i.context or "-", i.licence, ", ".join(i.aliases), i.url)
        for i in images
    ]  # fmt: skip
    head = ("NAME", "DRIVER", "KIND", "SIZE", "QUANT", "CONTEXT", "LICENCE", "ALIASES", "URL")
    wide = len(head) - (not any(image.url for image in images))
    table(head[:wide], [row[:wide] for row in rows])
    return exits.OK


def _quantisation(image: v.ImageInfo) -> str:
    return f"{image.quantisation or '-'}{', tuned' if image.tuned else ''}"


def show(arguments: Namespace) -> int:
    images = _images()
    for image in images:
        if arguments.name == image.name or arguments.name in image.aliases:
            _show(image, arguments)
            return exits.OK
    names = ", ".join(image.name for image in images)
    message = f"no model {arguments.name!r}; installed: {names}"
    raise SyscallError(Errno.ENOENT, message, "`llmasos models list` lists models")


def _show(image: v.ImageInfo, arguments: Namespace) -> None:
    if arguments.json:
        print_json(image)
    else:
        shown = asdict(image)
        del shown["candidates"]
        key_values({
            **shown, "bytes": size(image.bytes) if image.bytes else "",
            "context": image.context or "", "aliases": ", ".join(image.aliases),
            "options": options.shown(image.options),
        })  # fmt: skip
        if image.candidates:
            print("\nmeasured by `llmasos models tune`:")
            candidates_table(image.candidates)


def add(arguments: Namespace) -> int:
    chosen = options.read(arguments.options)
    if "://" in arguments.file:
        return _add_endpoint(
            v.ImageAdd(arguments.name, url=arguments.file, options=chosen), arguments
        )
    # A local daemon has another working directory; a remote one has other files.
    path = arguments.file if is_remote() else os.path.abspath(arguments.file)
    path = clean(path, "the file name")
    return _add(v.ImageAdd(arguments.name, path=path, options=chosen), arguments)


def _add_endpoint(request: v.ImageAdd, arguments: Namespace) -> int:
    """Add a model server (an endpoint) if it answers and one of its models is chosen."""
    if not arguments.no_check:
        probe = v.ImageProbe(request.name, request.url, request.options)
        with connect() as client:
            found = _probe(client, probe, arguments.options)
        if len(found.models) > 1 and "model" not in request.options:
            chosen = {**request.options, "model": _choose_model(found)}
            request = replace(request, options=chosen)
    return _add(request, arguments)


def _probe(client: BlockingClient, probe: v.ImageProbe, options_given: Sequence[str]) -> v.Endpoint:
    """The models of an endpoint. EngineFailed has the command that skips this check as its hint."""
    try:
        return client.call("image_probe", probe, v.Endpoint)
    except EngineFailed as error:
        words = [probe.name, probe.url, *(word for one in options_given for word in ("--set", one))]
        command = f"`llmasos models add --no-check {join(words)}` adds it without this check"
        error.hint = "; ".join(filter(None, (error.hint, command)))
        raise


def _choose_model(found: v.Endpoint) -> str:
    """Ask for one of the models of an endpoint. Raises UsageError without a terminal."""
    names = found.models
    if not sys.stdin.isatty():
        shown = ", ".join(names[:_LISTED])
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        message = f"{found.url} has {len(names)} models: {shown}{more}"
        raise exits.UsageError(message, "`--set model=NAME` chooses one")
    note(f"{found.url} has {len(names)} models:")
    for number, name in enumerate(names, 1):
        note(f"{number:4} {name}")
    return questions.one_of("which model? (number or name)", names)


def alias(arguments: Namespace) -> int:
    return _add(v.ImageAdd(arguments.name, image=arguments.image), arguments)


def _add(request: v.ImageAdd, arguments: Namespace) -> int:
    with connect() as client:
        image = client.call("image_add", request, v.ImageInfo)
    _show(image, arguments)
    return exits.OK


def rm(arguments: Namespace) -> int:
    with connect() as client:
        images = client.call("images", v.Nothing(), v.Images).images
        client.call("image_remove", v.ImageRemove(arguments.name), v.Nothing)
    if arguments.json:
        print_json({"name": arguments.name, "removed": True})
    else:
        note(f"removed {arguments.name}{_what_remains(images, arguments.name)}")
    return exits.OK


def _what_remains(images: Sequence[v.ImageInfo], name: str) -> str:
    """A note on what still exists after the removal of a name."""
    for image in images:
        if name in image.aliases:
            return f"; the model {image.name} remains"
        if name == image.name and image.path:
            return f"; the file remains: {image.path}"
    return ""
