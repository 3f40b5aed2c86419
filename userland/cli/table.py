"""The verbs: one table that the parser and the help are made of.

A row names the verb, where its function stands ("module:function", relative to this folder unless
it is dotted) and its arguments as argparse takes them. Nothing heavy is imported here: the help is
printed from this table alone.
"""

from collections.abc import Mapping

from llmasos.kernel import limits

from . import table_memory
from .duration import duration, interval, since
from .table_memory import AGO, TIMEOUT
from .verb import JSON, PID, Verb, between, bias, option, user

SIGNALS = ("TERM", "KILL", "INT", "STOP", "CONT")
EVENTS = ("begin", "end", "call", "refused", "process", "device", "job", "policy", "boot")
ROLES = ("owner", "operator", "user", "guest")  # of users
_USER = option("name", metavar="NAME", type=user)
_NICE = between(int, limits.NICE_MIN, limits.NICE_MAX)
_MODEL = option("-m", "--model", help="a model's name or alias")
_PIDS = option("pids", nargs="+", metavar="PID", type=between(int, 1, 2**53))
_SETTING = option("name", metavar="SETTING", help="as `config list` shows it")
_SET = option("--set", action="append", default=[], metavar="KEY=VALUE", dest="options",
              help="an option of its driver, as window=4096; repeatable")  # fmt: skip
_SAMPLING = (
    option("--max-tokens", type=between(int, 1, limits.WINDOW_MAX), metavar="N",
           help=f"at most so many new tokens (default {limits.MAX_TOKENS})"),
    option("--temperature", type=between(float, 0, 100), metavar="T",
           help=f"0 is greedy (default {limits.TEMPERATURE})"),
    option("--repeat-penalty", type=between(float, 0.01, 10), metavar="P",
           default=limits.REPEAT_PENALTY, help="over 1: words come back less often "
           f"(default {limits.REPEAT_PENALTY})"),
    option("--seed", type=between(int, 0, limits.SEED_MAX), metavar="N",
           help="for the same again; a chat counts it up with each turn"),
    option("--stop", action="append", metavar="TEXT", help="end before this text; repeatable"),
    option("--grammar", metavar="FILE", help="the answer is what this GBNF grammar allows"),
    option("--schema", metavar="FILE", help="the answer is JSON under this JSON schema"),
    option("--bias", action="append", type=bias, metavar="ID=VALUE",
           help="add -100 to 100 to a token's score; repeatable"),
    option("--logprobs", type=between(int, 0, limits.LOGPROBS), metavar="N",
           help="with --json: each token's probability, and the N likeliest"),
    option("--deterministic", action="store_true",
           help="refuse unless what runs beside changes nothing in the answer"),
    option("--nice", type=_NICE, default=0, metavar="N",
           help="-20 (large share) to 19 (small); counts when more answer than the engine seats"),
    option("--system", default="", metavar="TEXT", help="system prompt"),
    TIMEOUT,
    option("--overflow", choices=table_memory.OVERFLOW, default="page",
           help="what does not fit the window is paged (default), or an error"),
    option("--no-recall", action="store_true", help="bring no earlier pages back into the window"),
)  # fmt: skip
_SINCE = option("--since", type=since, default="7d", metavar="TIME",
                help=f"calls not older: {AGO} (default 7d)")  # fmt: skip
_SIGNAL = (
    option("-s", "--signal", type=str.upper, choices=SIGNALS, default="TERM",
           help="TERM ends it, KILL forgets the turn in flight, INT ends only its call"),
    *(option(f"-{name}", dest="signal", action="store_const", const=name, help=f"-s {name}")
      for name in SIGNALS),
    option("-9", dest="signal", action="store_const", const="KILL", help="-s KILL"),
)  # fmt: skip

_ROWS = (
    Verb("run", ".run:run", "ask a model; the prompt is the words, then stdin", (
        _MODEL, *_SAMPLING,
        option("--raw", action="store_true", help="no chat template: the text as it is"),
        option("--keep", action="store_true", help="the process stays, for `chat --pid`"),
        option("-v", "--verbose", action="store_true", help="the pid and the usage, on stderr"),
        JSON, option("prompt", nargs="*", metavar="PROMPT"),
    ), starts=True),
    Verb("chat", ".chat:chat", "talk to a model; its process keeps the conversation", (
        _MODEL, *_SAMPLING,
        option("--pid", type=between(int, 1, 2**53), help="go on with this process"), JSON,
    ), starts=True),
    Verb("embed", ".embed:embed", "texts, or the lines of stdin, as vectors: one JSON line each", (
        _MODEL, JSON, option("texts", nargs="*", metavar="TEXT"),
    ), starts=True),
    Verb("ps", ".processes:ps", "list processes", (
        option("-a", "--all", action="store_true", help="those that have ended, too"),
        option("-l", "--long", action="store_true", help="every column, however wide"),
        option("-q", "--quiet", action="store_true", help="pids only"), JSON,
    )),
    Verb("top", ".top:top", "processes and devices, again and again", (
        option("--once", action="store_true", help="only once"),
        option("--interval", type=interval, default=2.0, metavar="TIME",
               help="between two looks: seconds, or as 1m (default 2)"),
        JSON,
    )),
    Verb("fork", ".processes:fork", "start children that go on from what a process has said", (
        option("-n", "--count", type=between(int, 1, limits.FORKS), default=1, metavar="COUNT",
               help="how many (default 1)"),
        option("--app", default="", metavar="NAME", help="for `ps`; else the parent's"),
        option("--nice", type=_NICE, metavar="N", help="else the parent's"), JSON, PID,
    )),
    Verb("kill", ".processes:kill", "send a signal to processes", (
        *_SIGNAL, JSON, _PIDS,
    )),
    Verb("nice", ".processes:nice", "change a process's share", (
        JSON, option("nice", metavar="N", type=_NICE, help="-20 (large share) to 19 (small)"),
        PID,
    )),
    Verb("wait", ".ending:wait", "wait for processes to end; exits with their first code over 0", (
        TIMEOUT, JSON, _PIDS,
    )),
    Verb("rm", ".ending:rm", "end processes, and remove them with their pages", (
        option("-f", "--force", action="store_true", help="forget the turn in flight, too"),
        JSON, _PIDS,
    )),
    Verb("prune", ".ending:prune", "remove processes that have ended, with their pages", (
        option("--kept", action="store_true",
               help="also conversations that were kept and that nobody is using"),
        option("--older-than", type=duration, metavar="TIME",
               help="only what ended, or was used last, so long ago: 12h, 30d"),
        option("--dry-run", action="store_true", help="only say what would be removed"),
        option("-y", "--yes", action="store_true",
               help="do not ask; needed where there is no terminal"),
        JSON,
    )),
    Verb("attach", ".processes:attach", "follow what a process says; ctrl-C detaches",
         (JSON, PID)),
    *table_memory.ROWS,
    Verb("logs", ".journal:logs", "the journal: every call and its outcome", (
        option("-f", "--follow", action="store_true", help="wait for more"),
        option("-n", "--lines", type=between(int, 0, 10**6), metavar="N", help="the last N"),
        option("--since", type=since, metavar="TIME", help=f"not older: {AGO}"),
        option("--after", type=between(int, 0, 2**53), metavar="N", help="after event number N"),
        option("--kind", action="append", default=[], metavar="KIND", choices=EVENTS,
               help=f"{', '.join(EVENTS)}; repeatable"),
        JSON, option("pid", nargs="?", default=0, metavar="PID", type=between(int, 1, 2**53)),
    )),
    Verb("models list", ".models:list_", "installed models", (JSON,), starts=True),
    Verb("models show", ".models:show", "one model: file, digest, licence",
         (JSON, option("name", metavar="NAME")), starts=True),
    Verb("models add", ".models:add", "install a GGUF file, used in place, or an endpoint's url", (
        _SET, JSON, option("--no-check", action="store_true", help="do not look at the endpoint"),
        option("name", metavar="NAME"), option("file", metavar="FILE|URL", help="a url as https://api.example.com/v1"),
    ), starts=True),
    Verb("models alias", ".models:alias", "give a model a second name",
         (JSON, option("name", metavar="NAME"), option("image", metavar="EXISTING")), starts=True),
    Verb("models rm", ".models:rm", "remove a model's entry or an alias; no file is deleted",
         (JSON, option("name", metavar="NAME")), starts=True),
    Verb("models tune", ".tune:tune", "requantise a model for this machine, and measure it", (
        option("--small", action="store_true", help="Q4_K_M: smaller than the default Q8_0"),
        option("--to", type=str.upper, metavar="QUANT", default="",
               help="another quantisation of llama.cpp, as Q6_K; a wrong one lists them"),
        option("--no-measure", action="store_true", help="no perplexity, no speed: seconds"),
        option("--off", action="store_true",
               help="use the original file again, and delete what was made"),
        JSON, option("name", metavar="NAME"),
    ), starts=True),
    Verb("devices", ".devices:devices", "what computes here, what is mounted and why there",
         (JSON,)),
    Verb("devices restart", ".devices:restart",
         "end a model's engine, or recall, and start it again",
         (JSON, option("device", metavar="NAME"))),
    Verb("poison list", ".poison:list_", "calls that are refused, as they crashed their engine",
         (JSON,)),
    Verb("poison lift", ".poison:lift", "let such a call run again", (
        option("--all", action="store_true", help="every one"),
        JSON, option("id", metavar="ID", nargs="?", default=""),
    )),
    Verb("mount", ".devices:mount", "start a model's engine", (
        _SET,
        option("--pin", action="store_true", help="never unload it by itself"),
        option("--deterministic", action="store_true",
               help="what runs beside a call changes nothing in it; slower"),
        JSON, option("image", metavar="MODEL"),
    ), starts=True),
    Verb("unmount", ".devices:unmount", "stop a model's engine; its processes keep their pages",
         (JSON, option("image", metavar="MODEL"))),
    Verb("daemon start", ".daemon:start",
         "start the kernel in the background; takes --SETTING VALUE", (JSON,), extra=True,
         local=True),
    Verb("daemon stop", ".daemon:stop", "stop the kernel; calls in flight get some seconds", (
        option("--now", action="store_true", help="do not wait for them"), JSON,
    )),
    Verb("daemon restart", ".daemon:restart",
         "stop the kernel and start it as it was; takes --SETTING VALUE", (
        option("--now", action="store_true", help="do not wait for calls in flight"), JSON,
    ), extra=True, local=True),
    Verb("daemon status", ".daemon:status", "ask the kernel how it is", (JSON,)),
    Verb("daemon logs", ".daemon:logs", "what the daemon wrote about itself", (
        option("-f", "--follow", action="store_true", help="wait for more"),
        option("-n", "--lines", type=between(int, 0, 10**6), default=100, metavar="N",
               help="the last N (default 100)"),
        JSON,
    ), local=True),
    Verb("daemon run", ".daemon:run", "run the kernel here", rest=True, local=True),
    Verb("secrets set", ".secrets:set_", "keep a key of an endpoint; it is read from stdin", (
        option("--keyring", action="store_true", help="in the desktop's keyring, not in a file"),
        option("--url", default="", metavar="URL",
               help="the endpoint it is for (else the first model that is added with it)"),
        JSON, option("name", metavar="NAME"),
    ), local=True),
    Verb("secrets list", ".secrets:list_", "names of the keys, and what each is for", (JSON,),
         local=True),
    Verb("secrets rm", ".secrets:rm", "forget a key", (JSON, option("name", metavar="NAME")),
         local=True),
    Verb("users add", ".users:add", "let somebody in", (
        option("--uid", type=between(int, 0, 2**32 - 2), metavar="N",
               help="known by this number of the operating system; without it by keys only"),
        option("--role", choices=ROLES, default="user", help="what they may do (default user)"),
        JSON, _USER,
    ), starts=True),
    Verb("users list", ".users:list_", "who may come, and who is here", (JSON,), starts=True),
    Verb("users rm", ".users:rm",
         "remove a user, with keys, processes and pages", (
        option("-y", "--yes", action="store_true",
               help="do not ask; needed where there is no terminal"), JSON, _USER,
    ), starts=True),
    Verb("users role", ".users:role", "change what a user may do", (
        JSON, _USER, option("role", metavar="ROLE", choices=ROLES, help=", ".join(ROLES)),
    ), starts=True),
    Verb("keys create", ".keys:create", "make a user's key; it is printed this once", (
        option("--user", required=True, type=user, metavar="NAME", help="whose"),
        option("--expires", type=duration, metavar="TIME",
               help="from now, as 12h, 90d or 2w (default: never)"),
        JSON,
    ), starts=True),
    Verb("keys list", ".keys:list_", "keys, without what is secret in them", (
        option("--user", type=user, metavar="NAME", help="of this user only"), JSON,
    ), starts=True),
    Verb("keys revoke", ".keys:revoke", "end a key; its connections close",
         (JSON, option("id", metavar="ID", help="as `keys list` shows it")), starts=True),
    Verb("policy list", ".policy:list_", "the rules in force: who may do what", (
        option("--own", action="store_true", help="only those that you added"), JSON,
    ), starts=True),
    Verb("policy add", ".policy:add", "add rules; all of them, or none", (
        JSON, option("rows", nargs="+", metavar="ROW",
                      help="as `p, r:careful, spawn, /dev/image/big, deny`; quote each"),
    ), starts=True),
    Verb("policy rm", ".policy:rm", "remove rules; all of them, or none", (
        JSON, option("rows", nargs="+", metavar="ROW", help="as `policy list --own` shows it"),
    ), starts=True),
    Verb("policy edit", ".editor:edit", "open your rules in $VISUAL or $EDITOR", (JSON,),
         starts=True),
    Verb("policy undo", ".policy:undo", "go back to your rules before the last change", (JSON,),
         starts=True),
    Verb("policy reload", ".policy:reload", "read the file of your rules again", (JSON,),
         starts=True),
    Verb("policy lint", ".lint:lint", "every mistake in a file of rules; needs no daemon", (
        JSON, option("file", nargs="?", metavar="FILE", help="default: your rules"),
    ), local=True),
    Verb("policy test", ".policy:test", "allow, ask or deny; exit code 0, 75 or 77", (
        JSON, option("words", nargs="+", metavar="WORD",
                      help="SUBJECT... ACTION OBJECT, as u:$USER r:careful spawn /dev/image/big"),
    ), starts=True),
    Verb("policy explain", ".policy:explain", "why, and what to change for another answer", (
        JSON, option("words", nargs="+", metavar="WORD",
                      help="the number that a refusal told, or SUBJECT... ACTION OBJECT"),
    ), starts=True),
    Verb("policy simulate", ".policy:simulate", "what other rules would do to recorded calls", (
        _SINCE, JSON, option("file", metavar="FILE", help="instead of your rules"),
    ), starts=True),
    Verb("policy learn", ".policy:learn", "the least rules that recorded calls needed", (
        _SINCE, JSON, option("who", metavar="PID|APP", help="whose calls"),
    ), starts=True),
    Verb("config list", ".config:list_",
         "settings of the daemon that runs; what waits for a restart",
         (JSON,), local=True),
    Verb("config get", ".config:get", "one setting", (JSON, _SETTING), local=True),
    Verb("config set", ".config:set_", "write a setting into config.toml, for the next start", (
        JSON, _SETTING, option("value", metavar="VALUE"),
    ), local=True),
    Verb("config unset", ".config:unset", "take a setting out of config.toml", (JSON, _SETTING),
         local=True),
    Verb("config path", ".config:path", "where files live", (JSON,), local=True),
    Verb("doctor", ".doctor:doctor", "look for what is wrong, and say how to mend it", (JSON,),
         local=True),
    Verb("bench", "llmasos.userland.bench:main", "measure this machine", rest=True, local=True),
    Verb("version", ".version:version", "versions", (JSON,), local=True),
)  # fmt: skip
VERBS = {row.words: row for row in _ROWS}
GROUPS = frozenset(row.words.split()[0] for row in _ROWS if " " in row.words)


def _lines(rows: Mapping[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"  {words:{width}}  {summary}" for words, summary in rows.items())


def help_text() -> str:
    return (
        "usage: llmasos VERB [ARGUMENT ...]\n\n"
        "The operating system for language-model agents.\n\n"
        f"{_lines({row.words: row.summary for row in _ROWS})}\n\n"
        "`llmasos VERB --help` tells more. Every verb takes --json; then errors are JSON.\n"
        "run, chat, embed, mount and the verbs about models, users, keys and rules start\n"
        "a private daemon when none answers; the others are about what runs: they do not.\n"
        "--host HOST:PORT, or LLMASOS_HOST, asks a kernel on another machine. --ca FILE:\n"
        "the certificate that is trusted; --key-file FILE, or LLMASOS_KEY: your key;\n"
        "--cert FILE, --cert-key FILE: your certificate, where one is asked for."
    )


def group_help(group: str) -> str:
    usage = f"usage: llmasos {group} VERB [ARGUMENT ...]"
    rows = {words: VERBS[words].summary for words in _of(group)}
    own = VERBS.get(group)
    if own is None:
        return f"{usage}\n\n{_lines(rows)}"
    alone = " ".join(filter(None, (group, own.options[-1].settings.get("metavar"))))
    flags = {one.flags[0]: one.settings["help"] for one in own.options[:-1]}
    told = f"\n\n{alone}:\n{_lines(flags)}" if flags else ""
    return (
        f"{usage}\n       llmasos {alone} [ARGUMENT ...]\n\n"
        f"{_lines({alone: own.summary, **rows})}{told}"
    )


def unknown(words: str) -> tuple[str, str]:
    """What there is instead of a verb that is none: a message and a hint."""
    group = words.split()[0]
    if group not in GROUPS:
        return f"there is no {words!r}", "`llmasos --help` lists the verbs"
    own = VERBS[group].options[-1].settings.get("metavar") if group in VERBS else None
    names = [*filter(None, [own]), *(one.split()[1] for one in _of(group))]
    return f"there is no {words!r}", f"{group} takes {', '.join(names)}"


def _of(group: str) -> list[str]:
    return [words for words in VERBS if words.startswith(f"{group} ")]
