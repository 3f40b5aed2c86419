"""Verbs about models: what is installed, and what is made of it."""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from shlex import join

from llmasos.kernel import values as v
from llmasos.kernel.errors import EngineFailed, Errno, SyscallError
from llmasos.userland.line import Line

from . import ask, exits, options
from .door import connect, is_far
from .show import card, document, note, size, table
from .talk import clean

_LISTED = 20  # names of an endpoint's models in a message


def _images() -> list[v.ImageInfo]:
    with connect() as line:
        return line.call("images", v.Nothing(), v.Images).images


def list_(arguments: Namespace) -> int:
    images = _images()
    if arguments.json:
        document({"images": images})
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
            _one(image, arguments)
            return exits.OK
    names = ", ".join(image.name for image in images)
    words = f"there is no model {arguments.name!r}; there are: {names}"
    raise SyscallError(Errno.ENOENT, words, "`llmasos models list` shows them")


def _one(image: v.ImageInfo, arguments: Namespace) -> None:
    if arguments.json:
        document(image)
    else:
        card({
            **asdict(image), "bytes": size(image.bytes) if image.bytes else "",
            "context": image.context or "", "aliases": ", ".join(image.aliases),
            "options": options.shown(image.options),
        })  # fmt: skip


def add(arguments: Namespace) -> int:
    chosen = options.read(arguments.options)
    if "://" in arguments.file:
        return _endpoint(v.ImageAdd(arguments.name, url=arguments.file, options=chosen), arguments)
    else:  # the daemon does not know our directory
        path = arguments.file if is_far() else os.path.abspath(arguments.file)
        path = clean(path, "the name of the file")
        request = v.ImageAdd(arguments.name, path=path, options=chosen)
    return _add(request, arguments)


def _endpoint(request: v.ImageAdd, arguments: Namespace) -> int:
    """Added when it answers and it is clear which of its models is meant."""
    if not arguments.no_check:
        asked = v.ImageProbe(request.name, request.url, request.options)
        with connect() as line:
            found = _probed(line, asked, arguments.options)
        if len(found.models) > 1 and "model" not in request.options:
            chosen = {**request.options, "model": _choose(found)}
            request = replace(request, options=chosen)
    return _add(request, arguments)


def _probed(line: Line, asked: v.ImageProbe, given: Sequence[str]) -> v.Endpoint:
    """What an endpoint lists. EngineFailed, with the command that adds it without a look."""
    try:
        return line.call("image_probe", asked, v.Endpoint)
    except EngineFailed as error:
        words = [asked.name, asked.url, *(word for one in given for word in ("--set", one))]
        command = f"`llmasos models add --no-check {join(words)}` adds it without a look"
        error.hint = "; ".join(filter(None, (error.hint, command)))
        raise


def _choose(found: v.Endpoint) -> str:
    """One of the models of an endpoint. Usage: there is nobody to ask."""
    names = found.models
    if not sys.stdin.isatty():
        shown = ", ".join(names[:_LISTED])
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        words = f"which model? {found.url} has {len(names)}: {shown}{more}"
        raise exits.Usage(words, "`--set model=NAME` chooses one")
    note(f"{found.url} has {len(names)} models:")
    for number, name in enumerate(names, 1):
        note(f"{number:4} {name}")
    return ask.one_of("which one? (number or name)", names)


def alias(arguments: Namespace) -> int:
    return _add(v.ImageAdd(arguments.name, image=arguments.image), arguments)


def _add(request: v.ImageAdd, arguments: Namespace) -> int:
    with connect() as line:
        image = line.call("image_add", request, v.ImageInfo)
    _one(image, arguments)
    return exits.OK


def rm(arguments: Namespace) -> int:
    with connect() as line:
        images = line.call("images", v.Nothing(), v.Images).images
        line.call("image_remove", v.ImageRemove(arguments.name), v.Nothing)
    if arguments.json:
        document({"name": arguments.name, "removed": True})
    else:
        note(f"{arguments.name} is removed{_rest(images, arguments.name)}")
    return exits.OK


def _rest(images: Sequence[v.ImageInfo], name: str) -> str:
    """What there still is of a model when its name is removed."""
    for image in images:
        if name in image.aliases:
            return f"; it was an alias of {image.name}, which stays"
        if name == image.name and image.path:
            return f"; its file stays: {image.path}"
    return ""
