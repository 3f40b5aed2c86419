"""Chinese pages with questions in Chinese and in English: is the right page the first hit?

Each question is ranked among thirty pages, ten of them on its topic. The pages are thirty unrelated
documents of one page each, like notes and articles.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient

from .rig import Rig
from .talks.pairs import Pair, pairs, pool

PAUSE_S = 0.05  # between two searches


def first_hits(
    rig: Rig, client: BlockingClient, *, topics: int | None
) -> tuple[list[float], list[float]]:
    """1 or 0 for each pair: with the Chinese question, and with the English one.

    `topics`: how many of them; None: all.
    """
    chinese: list[float] = []
    english: list[float] = []
    with tempfile.TemporaryDirectory() as folder, rig.client() as operator:
        for topic in list(dict.fromkeys(pair.topic for pair in pairs()))[:topics]:
            pid, pages = _mapped(operator, Path(folder, topic), pool(topic))
            for pair in (pair for pair in pairs() if pair.topic == topic):
                for question, hits in ((pair.query_zh, chinese), (pair.query_en, english)):
                    found = _settled(client, v.SearchMem(pid, question, 1))
                    hits.append(float(pages[found[0]] == pair.page) if found else 0.0)
    return chinese, english


def _mapped(
    client: BlockingClient, folder: Path, some: Sequence[Pair]
) -> tuple[int, dict[int, str]]:
    """A process with these pages, each mapped separately; and their texts by number."""
    folder.mkdir()
    pid = client.call("spawn", v.Spawn("echo", app="bench"), v.Spawned).pid
    pages: dict[int, str] = {}
    for index, pair in enumerate(some):
        file = folder.resolve() / f"{index}.txt"
        file.write_text(pair.page, encoding="utf-8")
        mapped = client.call("mmap", v.Mmap(pid, f"/files{file}"), v.Mapped)
        pages[mapped.first] = pair.page
    return pid, pages


def _settled(client: BlockingClient, request: v.SearchMem) -> list[int]:
    """The numbers of the hits once every page has its vector."""
    while True:
        reply = client.call("search_mem", request, v.Hits)
        if not reply.note:
            return [hit.page.number for hit in reply.hits]
        time.sleep(PAUSE_S)
