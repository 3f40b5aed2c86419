"""The verbs of memory and mail, as rows of the table."""

from llmasos.kernel import limits

from .duration import patience, since, until
from .verb import JSON, PID, Verb, between, named, option, pages, place, places

KINDS = ("system", "user", "assistant", "tool", "document", "note", "summary")  # of pages
OVERFLOW = ("page", "error")

AGO = "12h, 30d: so long ago; or as 2026-11-03T14:00 in UTC"
TIMEOUT = option("--timeout", type=patience, metavar="TIME",
                 help="wait no longer: seconds, or as 30s or 5m")  # fmt: skip
_INDEX = between(int, 0, 2**53)
_PAGES = option("pages", nargs="*", metavar="PAGE[-PAGE]", type=places)
_PLACE = option("pid", metavar="PID[:PAGE[-PAGE]]", type=place)
_PAGE = option("page", nargs="?", metavar="PAGE", type=_INDEX, help="if not behind the pid")
_TEXT = option("text", nargs="*", metavar="TEXT", help="else what is piped in")
_KEY = option("--key", metavar="KEY", type=named, help="what this key stands for")
ROWS = (
    Verb("mem", ".mem:mem", "the pages of a process", (
        option("--text", dest="view", action="store_const", const="text", apart="view",
               help="whole texts, no table"),
        option("--map", dest="view", action="store_const", const="map", apart="view",
               help="one character a page"),
        JSON, PID,
    )),
    Verb("mem why", ".mem:why", "why a page is in the window, or is not", (
        JSON, option("pid", metavar="PID:PAGE", type=place), _PAGE,
    )),
    Verb("mem search", ".mem:search", "find pages by words and meaning; filters are all to be met",
         (
        option("-n", "--count", type=between(int, 1, limits.HITS), default=10, metavar="N",
               help="at most so many pages (default 10)"),
        option("--tokens", type=between(int, 0, limits.WINDOW_MAX), default=0, metavar="N",
               help="the best that have so many tokens together"),
        option("--author", default="", metavar="NAME", help="who wrote it, or said it"),
        option("--since", type=since, metavar="TIME",
               help=f"not older: {AGO}"),
        option("--until", type=until, metavar="TIME", help="not newer"),
        option("--label", default="", metavar="LABEL", help="that it has; one only"),
        option("--kind", action="append", default=[], choices=KINDS, dest="kinds",
               help="one of these; repeatable"),
        option("--words", action="store_true", help="by words only, not by meaning"),
        option("--outside", action="store_true", help="only pages outside the window"),
        JSON, PID, option("question", nargs="+", metavar="QUESTION"),
    )),
    Verb("mem read", ".mem:read", "the text of a page, or of a key, and nothing else", (
        _KEY, JSON, _PLACE, option("what", nargs="?", default="", metavar="PAGE|KEY",
                                   help="a number is a page"),
    )),
    Verb("mem write", ".pages:write", "write a text as pages, outside the window", (
        option("--key", metavar="KEY", type=named, help="in place of what this key stood for"),
        option("--page", type=_INDEX, metavar="PAGE", help="in place of this page"),
        option("--speaker", default="", metavar="NAME",
               help="who said it, as you say: shown and searched for (default: you)"),
        option("--label", action="append", default=[], dest="labels", metavar="LABEL",
               help="repeatable"),
        JSON, option("pid", metavar="PID[:PAGE]", type=place), _TEXT,
    )),
    Verb("mem pin", ".pages:pin", "keep pages in the window", (
        option("--off", action="store_true", help="no longer"), JSON, _PLACE, _PAGES,
    )),
    Verb("mem evict", ".pages:evict",
         "take pages out of the window; they come back at need",
         (JSON, _PLACE, _PAGES)),
    Verb("mem map", ".pages:map_", "a document, a folder or another process's pages as pages", (
        option("--read-only", action="store_true",
               help="a change is refused, not made in a page of its own"),
        option("--pages", type=pages, metavar="FIRST-LAST", help="these pages of a process only"),
        option("-v", "--verbose", action="store_true",
               help="name every file that a folder has and that is skipped"),
        JSON, PID, option("source", metavar="PATH|PID[:PAGE[-PAGE]]", help="./3 is a file"),
    )),
    Verb("mem unmap", ".pages:unmap", "take away what was mapped at a page", (
        JSON, option("pid", metavar="PID[:PAGE]", type=place), _PAGE,
    )),
    Verb("mem share", ".pages:share", "give pages to another process, as they are now", (
        JSON, _PLACE, option("to", metavar="TO", type=between(int, 1, 2**53), help="its pid"),
        option("pages", nargs="?", default=(), metavar="PAGE[-PAGE]", type=pages),
    )),
    Verb("mem forget", ".forget:forget", "erase pages for everybody who has them, for good", (
        _KEY, option("-y", "--yes", action="store_true",
                     help="do not ask; needed where there is no terminal"), JSON, _PLACE, _PAGES,
    )),
    Verb("mem export", ".export:export", "all pages, one JSON line each", (
        option("--force", action="store_true", help="overwrite the file"),
        JSON, PID, option("file", nargs="?", metavar="FILE", help="else stdout"),
    )),
    Verb("mem fsck", ".fsck:fsck", "check pages and indexes; exit code 1 when something is wrong", (
        option("--rebuild", action="store_true", help="make text index and vectors anew"), JSON,
    )),
    Verb("send", ".mail:send", "send a message to a process", (JSON, PID, _TEXT)),
    Verb("recv", ".mail:recv", "receive a process's oldest message; waits for one", (
        TIMEOUT,
        option("-f", "--follow", action="store_true", help="one after the other"), JSON, PID,
    )),
)  # fmt: skip
