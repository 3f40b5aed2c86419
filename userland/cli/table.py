"""The verbs: one table that the parser and the help are made of.

A row names the verb, where its function stands ("module:function", relative to this folder unless
it is dotted) and its arguments as argparse takes them. Nothing heavy is imported here: the help is
printed from this table alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from llmasos.kernel import limits

from .duration import duration

SIGNALS = ("TERM", "KILL", "INT", "STOP", "CONT")
ROLES = ("owner", "operator", "user", "guest")  # of users


class Option(NamedTuple):
    """One argument: its flags or its name, and what argparse has to know."""

    flags: tuple[str, ...]
    settings: dict[str, Any]


class Verb(NamedTuple):
    words: str
    home: str
    summary: str
    options: tuple[Option, ...] = ()
    rest: bool = False  # its arguments are handed over unread
    extra: bool = False  # what is not in `options` is handed over as `extra`


def _option(*flags: str, **settings: Any) -> Option:
    return Option(flags, settings)


def between(kind: Callable[[str], Any], low: float, high: float) -> Callable[[str], Any]:
    """A number within limits, for argparse."""

    def read(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    read.__name__ = f"number from {low:.16g} to {high:.16g}"  # argparse: "invalid ... value"
    return read


def bias(text: str) -> tuple[str, float]:
    """ID=VALUE, for argparse."""
    token, _, value = text.partition("=")
    number = float(value)
    if not (token.isascii() and token.isdigit()) or not -100 <= number <= 100:
        raise ValueError(text)
    return token, number


bias.__name__ = "ID=VALUE"


def user(text: str) -> str:
    """A user's name as the kernel takes it, for argparse."""
    plain = text.replace(".", "").replace("_", "").replace("-", "")
    if not (plain.isascii() and plain.isalnum() and text[0].isalnum() and len(text) <= 32):
        raise ValueError(text)
    return text


user.__name__ = "user name (up to 32 letters, digits and ._-, a letter or digit first)"
_JSON = _option("--json", action="store_true", help="print JSON")
_USER = _option("name", metavar="NAME", type=user)
_PID = _option("pid", metavar="PID", type=between(int, 1, 2**53))
_NICE = between(int, limits.NICE_MIN, limits.NICE_MAX)
_SECONDS = between(float, 0, 1e6)
_MODEL = _option("-m", "--model", help="a model's name or alias")
_SET = _option("--set", action="append", default=[], metavar="KEY=VALUE", dest="options",
               help="an option of its driver, as window=4096; repeatable")  # fmt: skip
_SAMPLING = (
    _option("--max-tokens", type=between(int, 1, limits.WINDOW_MAX), metavar="N",
            help=f"at most so many new tokens (default {limits.MAX_TOKENS})"),
    _option("--temperature", type=between(float, 0, 100), metavar="T",
            help=f"0 is greedy (default {limits.TEMPERATURE})"),
    _option("--repeat-penalty", type=between(float, 0.01, 10), metavar="P",
            default=limits.REPEAT_PENALTY, help="over 1: words come back less often "
            f"(default {limits.REPEAT_PENALTY})"),
    _option("--seed", type=between(int, 0, 2**32 - 2), metavar="N", help="for the same again"),
    _option("--stop", action="append", metavar="TEXT", help="end before this text; repeatable"),
    _option("--grammar", metavar="FILE", help="the answer is what this GBNF grammar allows"),
    _option("--schema", metavar="FILE", help="the answer is JSON under this JSON schema"),
    _option("--bias", action="append", type=bias, metavar="ID=VALUE",
            help="add -100 to 100 to a token's score; repeatable"),
    _option("--logprobs", type=between(int, 0, limits.LOGPROBS), metavar="N",
            help="with --json: each token's probability, and the N likeliest"),
    _option("--deterministic", action="store_true",
            help="refuse unless what runs beside changes nothing in the answer"),
    _option("--nice", type=_NICE, default=0, metavar="N",
            help="-20 (large share) to 19 (small); counts when more answer than the engine seats"),
    _option("--system", default="", metavar="TEXT", help="system prompt"),
    _option("--timeout", type=between(float, 0.001, 1e6), metavar="S", help="seconds"),
)  # fmt: skip
_SINCE = _option("--since", type=duration, default="7d", metavar="TIME",
                 help="calls of the last TIME, as 12h or 30d (default 7d)")  # fmt: skip
_SIGNAL = (
    _option("-s", "--signal", type=str.upper, choices=SIGNALS, default="TERM",
            help="TERM ends it, KILL forgets the turn in flight, INT ends only its call"),
    *(_option(f"-{name}", dest="signal", action="store_const", const=name, help=f"-s {name}")
      for name in SIGNALS),
    _option("-9", dest="signal", action="store_const", const="KILL", help="-s KILL"),
)  # fmt: skip

_ROWS = (
    Verb("run", ".run:run", "ask a model; the prompt is the words, then stdin", (
        _MODEL, *_SAMPLING,
        _option("--raw", action="store_true", help="no chat template: the text as it is"),
        _option("--keep", action="store_true", help="the process stays, for `chat --pid`"),
        _option("-v", "--verbose", action="store_true", help="the pid and the usage, on stderr"),
        _JSON, _option("prompt", nargs="*", metavar="PROMPT"),
    )),
    Verb("chat", ".chat:chat", "talk to a model; its process keeps the conversation", (
        _MODEL, *_SAMPLING,
        _option("--pid", type=between(int, 1, 2**53), help="go on with this process"), _JSON,
    )),
    Verb("embed", ".embed:embed", "texts, or the lines of stdin, as vectors: one JSON line each", (
        _MODEL, _JSON, _option("texts", nargs="*", metavar="TEXT"),
    )),
    Verb("ps", ".processes:ps", "list processes", (
        _option("-a", "--all", action="store_true", help="those that have ended, too"), _JSON,
    )),
    Verb("top", ".top:top", "processes and devices, again and again", (
        _option("--once", action="store_true", help="only once"),
        _option("--interval", type=between(float, 0.1, 3600), default=2.0, metavar="S",
                help="seconds (default 2)"),
        _JSON,
    )),
    Verb("fork", ".processes:fork", "start children that go on from what a process has said", (
        _option("-n", "--count", type=between(int, 1, limits.FORKS), default=1, metavar="COUNT",
                help="how many (default 1)"),
        _option("--app", default="", metavar="NAME", help="for `ps`; else the parent's"),
        _option("--nice", type=_NICE, metavar="N", help="else the parent's"), _JSON, _PID,
    )),
    Verb("kill", ".processes:kill", "send a signal to processes", (
        *_SIGNAL, _JSON,
        _option("pids", nargs="+", metavar="PID", type=between(int, 1, 2**53)),
    )),
    Verb("nice", ".processes:nice", "change a process's share", (
        _JSON, _option("nice", metavar="N", type=_NICE, help="-20 (large share) to 19 (small)"),
        _PID,
    )),
    Verb("wait", ".processes:wait", "wait for a process to end; its exit code is ours", (
        _option("--timeout", type=_SECONDS, metavar="S", help="seconds"), _JSON, _PID,
    )),
    Verb("attach", ".processes:attach", "follow what a process says; ctrl-C detaches",
         (_JSON, _PID)),
    Verb("mem", ".processes:mem", "the pages of a process", (
        _option("--text", action="store_true", help="whole texts, no table"), _JSON, _PID,
    )),
    Verb("logs", ".journal:logs", "the journal: every call and its outcome", (
        _option("-f", "--follow", action="store_true", help="wait for more"),
        _option("-n", "--lines", type=between(int, 0, 10**6), metavar="N", help="the last N"),
        _option("--since", type=between(int, 0, 2**53), metavar="N", help="after event number N"),
        _option("--kind", action="append", default=[], metavar="KIND",
                help="begin, end, call, refused, process, device, boot; repeatable"),
        _JSON, _option("pid", nargs="?", default=0, metavar="PID", type=between(int, 1, 2**53)),
    )),
    Verb("models list", ".models:list_", "installed models", (_JSON,)),
    Verb("models show", ".models:show", "one model: file, digest, licence",
         (_JSON, _option("name", metavar="NAME"))),
    Verb("models add", ".models:add", "install a GGUF file, used in place, or an endpoint's url", (
        _SET, _JSON, _option("name", metavar="NAME"),
        _option("file", metavar="FILE|URL", help="a url as https://api.example.com/v1"),
    )),
    Verb("models alias", ".models:alias", "give a model a second name",
         (_JSON, _option("name", metavar="NAME"), _option("image", metavar="EXISTING"))),
    Verb("models rm", ".models:rm", "forget a model or an alias; its file stays",
         (_JSON, _option("name", metavar="NAME"))),
    Verb("models tune", ".tune:tune", "requantise a model for this machine, and measure it", (
        _option("--small", action="store_true", help="Q4_K_M: smaller than the default Q8_0"),
        _option("--to", type=str.upper, metavar="QUANT", default="",
                help="another quantisation of llama.cpp, as Q6_K; a wrong one lists them"),
        _option("--no-measure", action="store_true", help="no perplexity, no speed: seconds"),
        _option("--off", action="store_true",
                help="use the original file again, and delete what was made"),
        _JSON, _option("name", metavar="NAME"),
    )),
    Verb("devices", ".devices:devices", "what computes here, what is mounted and why there",
         (_JSON,)),
    Verb("mount", ".devices:mount", "start a model's engine", (
        _SET,
        _option("--pin", action="store_true", help="never unload it by itself"),
        _option("--deterministic", action="store_true",
                help="what runs beside a call changes nothing in it; slower"),
        _JSON, _option("image", metavar="MODEL"),
    )),
    Verb("unmount", ".devices:unmount", "stop a model's engine; its processes keep their pages",
         (_JSON, _option("image", metavar="MODEL"))),
    Verb("daemon start", ".daemon:start",
         "start the kernel in the background; takes --SETTING VALUE", (_JSON,), extra=True),
    Verb("daemon stop", ".daemon:stop", "stop the kernel; calls in flight get some seconds", (
        _option("--now", action="store_true", help="do not wait for them"), _JSON,
    )),
    Verb("daemon status", ".daemon:status", "ask the kernel how it is", (_JSON,)),
    Verb("daemon logs", ".daemon:logs", "what the daemon wrote about itself", (
        _option("-f", "--follow", action="store_true", help="wait for more"),
        _option("-n", "--lines", type=between(int, 0, 10**6), default=100, metavar="N",
                help="the last N (default 100)"),
        _JSON,
    )),
    Verb("daemon run", ".daemon:run", "run the kernel here", rest=True),
    Verb("secrets set", ".secrets:set_", "keep a key of an endpoint; it is read from stdin", (
        _option("--keyring", action="store_true", help="in the desktop's keyring, not in a file"),
        _JSON, _option("name", metavar="NAME"),
    )),
    Verb("secrets list", ".secrets:list_", "names of the keys that are kept", (_JSON,)),
    Verb("secrets rm", ".secrets:rm", "forget a key", (_JSON, _option("name", metavar="NAME"))),
    Verb("users add", ".users:add", "let somebody in", (
        _option("--uid", type=between(int, 0, 2**32 - 2), metavar="N",
                help="known by this number of the operating system; without it by keys only"),
        _option("--role", choices=ROLES, default="user", help="what they may do (default user)"),
        _JSON, _USER,
    )),
    Verb("users list", ".users:list_", "who may come, and who is here", (_JSON,)),
    Verb("users rm", ".users:rm", "let a user in no more; their keys, processes and pages are gone",
         (_JSON, _USER)),
    Verb("users role", ".users:role", "change what a user may do", (
        _JSON, _USER, _option("role", metavar="ROLE", choices=ROLES, help=", ".join(ROLES)),
    )),
    Verb("keys create", ".keys:create", "make a user's key; it is printed this once", (
        _option("--user", required=True, type=user, metavar="NAME", help="whose"),
        _option("--expires", type=duration, metavar="TIME",
                help="from now, as 12h, 90d or 2w (default: never)"),
        _JSON,
    )),
    Verb("keys list", ".keys:list_", "keys, without what is secret in them", (
        _option("--user", type=user, metavar="NAME", help="of this user only"), _JSON,
    )),
    Verb("keys revoke", ".keys:revoke", "end a key; its connections close",
         (_JSON, _option("id", metavar="ID", help="as `keys list` shows it"))),
    Verb("policy list", ".policy:list_", "the rules in force: who may do what", (
        _option("--own", action="store_true", help="only those that you added"), _JSON,
    )),
    Verb("policy add", ".policy:add", "add rules; all of them, or none", (
        _JSON, _option("rows", nargs="+", metavar="ROW",
                       help="as `p, r:careful, spawn, /dev/image/big, deny`; quote each"),
    )),
    Verb("policy rm", ".policy:rm", "remove rules; all of them, or none", (
        _JSON, _option("rows", nargs="+", metavar="ROW", help="as `policy list --own` shows it"),
    )),
    Verb("policy edit", ".editor:edit", "open your rules in $VISUAL or $EDITOR", (_JSON,)),
    Verb("policy undo", ".policy:undo", "go back to your rules before the last change", (_JSON,)),
    Verb("policy reload", ".policy:reload", "read the file of your rules again", (_JSON,)),
    Verb("policy lint", ".lint:lint", "every mistake in a file of rules; needs no daemon", (
        _JSON, _option("file", nargs="?", metavar="FILE", help="default: your rules"),
    )),
    Verb("policy test", ".policy:test", "allow, ask or deny; exit code 0, 75 or 77", (
        _JSON, _option("words", nargs="+", metavar="WORD",
                       help="SUBJECT... ACTION OBJECT, as u:$USER r:careful spawn /dev/image/big"),
    )),
    Verb("policy explain", ".policy:explain", "why, and what to change for another answer", (
        _JSON, _option("words", nargs="+", metavar="WORD",
                       help="the number that a refusal told, or SUBJECT... ACTION OBJECT"),
    )),
    Verb("policy simulate", ".policy:simulate", "what other rules would do to recorded calls", (
        _SINCE, _JSON, _option("file", metavar="FILE", help="instead of your rules"),
    )),
    Verb("policy learn", ".policy:learn", "the least rules that recorded calls needed", (
        _SINCE, _JSON, _option("who", metavar="PID|APP", help="whose calls"),
    )),
    Verb("config list", ".daemon:config_list", "every setting and where its value came from",
         (_JSON,)),
    Verb("config path", ".daemon:config_path", "where files live", (_JSON,)),
    Verb("doctor", ".doctor:doctor", "look for what is wrong, and say how to mend it", (_JSON,)),
    Verb("bench", "llmasos.userland.bench:main", "measure this machine", rest=True),
    Verb("version", ".version:version", "versions", (_JSON,)),
)  # fmt: skip
VERBS = {row.words: row for row in _ROWS}
GROUPS = frozenset(row.words.split()[0] for row in _ROWS if " " in row.words)


def _lines(rows: list[Verb]) -> str:
    width = max(len(row.words) for row in rows)
    return "\n".join(f"  {row.words:{width}}  {row.summary}" for row in rows)


def help_text() -> str:
    return (
        "usage: llmasos VERB [ARGUMENT ...]\n\n"
        "The operating system for language-model agents.\n\n"
        f"{_lines(list(_ROWS))}\n\n"
        "`llmasos VERB --help` tells more. Every verb takes --json."
    )


def group_help(group: str) -> str:
    rows = [row for row in _ROWS if row.words.split()[0] == group and " " in row.words]
    return f"usage: llmasos {group} VERB [ARGUMENT ...]\n\n{_lines(rows)}"
