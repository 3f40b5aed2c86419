"""Rows of the table of verbs: memory and mail."""

from llmasos.kernel.abi import limits

from .duration import since, timeout, until
from .verb import (
    JSON,
    PID,
    Verb,
    between,
    named,
    option,
    pages,
    pages_argument,
    process_pages,
)

KINDS = ("system", "user", "assistant", "tool", "document", "note", "summary")  # of pages
OVERFLOW = ("page", "error")

AGO = "an age (12h, 30d) or a UTC time (2026-11-03T14:00)"
TIMEOUT = option("--timeout", type=timeout, metavar="TIME",
                 help="maximum time to wait: seconds, 30s or 5m [default: no limit]")  # fmt: skip
_INDEX = between(int, 0, 2**53)
_PAGES = option("pages", nargs="*", metavar="PAGE[-PAGE]", type=pages_argument)
_PID_PAGES = option("pid", metavar="PID[:PAGE[-PAGE]]", type=process_pages)
_PAGE = option("page", nargs="?", metavar="PAGE", type=_INDEX, help="if not given as PID:PAGE")
_TEXT = option("text", nargs="*", metavar="TEXT", help="[default: stdin]")
_KEY = option("--key", metavar="KEY", type=named, help="select the pages of this key")
ROWS = (
    Verb("mem", ".mem:mem", "list the pages of a process", (
        option("--text", dest="view", action="store_const", const="text", group="view",
               help="print full texts instead of a table"),
        option("--map", dest="view", action="store_const", const="map", group="view",
               help="print one character per page"),
        JSON, PID,
    )),
    Verb("mem why", ".mem:why", "explain why a page is in the window or not", (
        JSON, option("pid", metavar="PID:PAGE", type=process_pages), _PAGE,
    )),
    Verb("mem search", ".mem:search", "search pages by words and meaning; all filters must match",
         (
        option("-n", "--count", type=between(int, 1, limits.HITS), default=10, metavar="N",
               help="maximum number of pages [default: 10]"),
        option("--tokens", type=between(int, 0, limits.WINDOW_MAX), default=0, metavar="N",
               help="maximum number of tokens of all results together"),
        option("--author", default="", metavar="NAME", help="only pages written or said by NAME"),
        option("--since", type=since, metavar="TIME",
               help=f"only pages since TIME: {AGO}"),
        option("--until", type=until, metavar="TIME", help="only pages until TIME"),
        option("--label", default="", metavar="LABEL",
               help="only pages with this label; not repeatable"),
        option("--kind", action="append", default=[], choices=KINDS, dest="kinds",
               help="only pages of this kind; repeatable"),
        option("--words", action="store_true", help="search by words only, not by meaning"),
        option("--outside", action="store_true", help="only pages outside the window"),
        JSON, PID, option("question", nargs="+", metavar="QUESTION"),
    )),
    Verb("mem read", ".mem:read", "print the text of a page or of a key", (
        _KEY, JSON, _PID_PAGES, option("what", nargs="?", default="", metavar="PAGE|KEY",
                                   help="a number is a page"),
    )),
    Verb("mem write", ".pages:write", "write a text as pages, outside the window", (
        option("--key", metavar="KEY", type=named,
               help="store under this key and replace its previous pages"),
        option("--page", type=_INDEX, metavar="PAGE", help="replace this page"),
        option("--speaker", default="", metavar="NAME",
               help="who said it, unverified; for display and search [default: you]"),
        option("--label", action="append", default=[], dest="labels", metavar="LABEL",
               help="label to set; repeatable"),
        JSON, option("pid", metavar="PID[:PAGE]", type=process_pages), _TEXT,
    )),
    Verb("mem pin", ".pages:pin", "keep pages in the window", (
        option("--off", action="store_true", help="unpin the pages"), JSON, _PID_PAGES, _PAGES,
    )),
    Verb("mem evict", ".pages:evict",
         "evict pages from the window; they are recalled on demand",
         (JSON, _PID_PAGES, _PAGES)),
    Verb("mem map", ".pages:map_", "map a document, a folder or pages of another process", (
        option("--read-only", action="store_true",
               help="refuse changes; without it, a change copies the page"),
        option("--pages", type=pages, metavar="FIRST-LAST",
               help="map only these pages of a process"),
        option("-v", "--verbose", action="store_true",
               help="list every skipped file of a folder"),
        JSON, PID, option("source", metavar="PATH|PID[:PAGE[-PAGE]]",
                          help="a number is a pid; write ./3 for a file named 3"),
    )),
    Verb("mem unmap", ".pages:unmap", "remove the mapping of a page", (
        JSON, option("pid", metavar="PID[:PAGE]", type=process_pages), _PAGE,
    )),
    Verb("mem share", ".pages:share", "share a snapshot of pages with another process", (
        JSON, _PID_PAGES,
        option("to", metavar="TO", type=between(int, 1, 2**53), help="pid of the other process"),
        option("pages", nargs="?", default=(), metavar="PAGE[-PAGE]", type=pages),
    )),
    Verb("mem forget", ".forget:forget", "erase pages permanently, in every process that has them",
         (
        _KEY, option("-y", "--yes", action="store_true",
                     help="do not ask for confirmation; required without a terminal"),
        JSON, _PID_PAGES, _PAGES,
    )),
    Verb("mem export", ".export:export", "export all pages, one JSON line each", (
        option("--force", action="store_true", help="overwrite an existing file"),
        JSON, PID, option("file", nargs="?", metavar="FILE", help="[default: stdout]"),
    )),
    Verb("mem fsck", ".fsck:fsck", "check pages and indexes; exit 1 if faults remain", (
        option("--rebuild", action="store_true", help="rebuild the text index and the vectors"),
        JSON,
    )),
    Verb("send", ".mail:send", "send a message to a process", (JSON, PID, _TEXT)),
    Verb("recv", ".mail:recv", "receive the oldest message of a process; wait for one", (
        TIMEOUT,
        option("-f", "--follow", action="store_true", help="receive messages until interrupted"),
        JSON, PID,
    )),
)  # fmt: skip
