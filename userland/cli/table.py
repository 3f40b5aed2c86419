"""The table of verbs. The parser and the help are generated from it.

A row holds the name of the verb, its function ("module:function", relative to this package if the
module starts with a dot) and its arguments as argparse takes them. No heavy module is imported
here: `--help` loads only this table.
"""

from collections.abc import Mapping

from llmasos.kernel.abi import limits

from . import table_memory
from .duration import duration, interval, since
from .table_memory import AGO, TIMEOUT
from .verb import JSON, PID, Verb, between, bias, option, user

SIGNALS = ("TERM", "KILL", "INT", "STOP", "CONT")
EVENTS = ("begin", "end", "call", "refused", "process", "device", "job", "policy", "boot")
ROLES = ("owner", "operator", "user", "guest")  # of users
_USER = option("name", metavar="NAME", type=user)
_NICE = between(int, limits.NICE_MIN, limits.NICE_MAX)
_MODEL = option("-m", "--model", help="name or alias of a model [default: $LLMASOS_MODEL, else the "
                "setting `model`, else smollm2]")  # fmt: skip
_PIDS = option("pids", nargs="+", metavar="PID", type=between(int, 1, 2**53))
_SETTING = option("name", metavar="SETTING", help="as shown by `config list`")
_SET = option("--set", action="append", default=[], metavar="KEY=VALUE", dest="options",
              help="driver option, such as window=4096; repeatable")  # fmt: skip
_SAMPLING = (
    option("--max-tokens", type=between(int, 1, limits.WINDOW_MAX), metavar="N",
           help=f"maximum number of new tokens [default: {limits.MAX_TOKENS}]"),
    option("--temperature", type=between(float, 0, 100), metavar="T",
           help=f"sampling temperature; 0 is greedy [default: {limits.TEMPERATURE}]"),
    option("--repeat-penalty", type=between(float, 0.01, 10), metavar="P",
           default=limits.REPEAT_PENALTY, help="values above 1 reduce repetition "
           f"[default: {limits.REPEAT_PENALTY}]"),
    option("--seed", type=between(int, 0, limits.SEED_MAX), metavar="N",
           help="random seed for reproducible answers; chat adds 1 after each turn"),
    option("--stop", action="append", metavar="TEXT", help="stop before this text; repeatable"),
    option("--grammar", metavar="FILE", help="constrain the answer to this GBNF grammar"),
    option("--schema", metavar="FILE",
           help="constrain the answer to JSON that satisfies this JSON schema"),
    option("--bias", action="append", type=bias, metavar="ID=VALUE",
           help="add VALUE (-100 to 100) to the logit of token ID; repeatable"),
    option("--logprobs", type=between(int, 0, limits.LOGPROBS), metavar="N",
           help="with --json: print the probabilities of each token and of the N most likely"),
    option("--lookup", action="store_true", default=None, group="lookup",
           help="draft from earlier text what the answer may repeat: faster for quotations and "
           "edits [default: where it is exact and measured to be faster]"),
    option("--no-lookup", dest="lookup", action="store_false", default=None, group="lookup",
           help="never draft"),
    option("--deterministic", action="store_true",
           help="fail unless concurrent calls cannot change the answer"),
    option("--nice", type=_NICE, default=0, metavar="N",
           help="-20 (large share) to 19 (small share); applies when all slots of the engine are "
           "in use [default: 0]"),
    option("--system", default="", metavar="TEXT", help="system prompt"),
    TIMEOUT,
    option("--overflow", choices=table_memory.OVERFLOW, default="page",
           help="page out what exceeds the window, or fail with an error [default: page]"),
    option("--no-recall", action="store_true", help="do not recall pages into the window"),
)  # fmt: skip
_SINCE = option("--since", type=since, default="7d", metavar="TIME",
                help=f"only calls since TIME: {AGO} [default: 7d]")  # fmt: skip
_SIGNAL = (
    option("-s", "--signal", type=str.upper, choices=SIGNALS, default="TERM",
           help="TERM ends the process, KILL also discards the turn in flight, INT ends only "
           "its current call [default: TERM]"),
    *(option(f"-{name}", dest="signal", action="store_const", const=name, help=f"same as -s {name}")
      for name in SIGNALS),
    option("-9", dest="signal", action="store_const", const="KILL", help="same as -s KILL"),
)  # fmt: skip

_ROWS = (
    Verb("run", ".run:run", "send a prompt to a model: the arguments, then stdin", (
        _MODEL, *_SAMPLING,
        option("--raw", action="store_true", help="use no chat template: send the prompt verbatim"),
        option("--keep", action="store_true", help="keep the process, for `chat --pid`"),
        option("-v", "--verbose", action="store_true",
               help="print the pid and the usage on stderr"),
        JSON, option("prompt", nargs="*", metavar="PROMPT"),
    ), starts=True),
    Verb("chat", ".chat:chat", "chat with a model; the process keeps the conversation", (
        _MODEL, *_SAMPLING,
        option("--pid", type=between(int, 1, 2**53),
               help="continue the conversation of this process"), JSON,
    ), starts=True),
    Verb("embed", ".embed:embed", "embed texts or lines of stdin; print one JSON line each", (
        _MODEL, JSON, option("texts", nargs="*", metavar="TEXT"),
    ), starts=True),
    Verb("ps", ".processes:ps", "list processes", (
        option("-a", "--all", action="store_true", help="include ended processes"),
        option("-l", "--long", action="store_true", help="show all columns at full width"),
        option("-q", "--quiet", action="store_true", help="print only pids"), JSON,
    )),
    Verb("top", ".top:top", "show processes and devices, updated periodically", (
        option("--once", action="store_true", help="print once and exit"),
        option("--interval", type=interval, default=2.0, metavar="TIME",
               help="update interval: seconds, or as 1m [default: 2]"),
        JSON,
    )),
    Verb("fork", ".processes:fork", "create children that share the context of a process", (
        option("-n", "--count", type=between(int, 1, limits.FORKS), default=1, metavar="COUNT",
               help="number of children [default: 1]"),
        option("--app", default="", metavar="NAME",
               help="app name shown by `ps` [default: the parent's]"),
        option("--nice", type=_NICE, metavar="N",
               help="nice value [default: the parent's]"), JSON, PID,
    )),
    Verb("kill", ".processes:kill", "send a signal to processes", (
        *_SIGNAL, JSON, _PIDS,
    )),
    Verb("nice", ".processes:nice", "set the nice value of a process", (
        JSON, option("nice", metavar="N", type=_NICE, help="-20 (large share) to 19 (small share)"),
        PID,
    )),
    Verb("wait", ".processes:wait",
         "wait for processes to end; exit with their first nonzero code", (
        TIMEOUT, JSON, _PIDS,
    )),
    Verb("rm", ".removal:rm", "end processes and remove them with their pages", (
        option("-f", "--force", action="store_true", help="discard the turn in flight"),
        JSON, _PIDS,
    )),
    Verb("prune", ".removal:prune", "remove ended processes with their pages", (
        option("--kept", action="store_true",
               help="also remove kept conversations that are not in use"),
        option("--older-than", type=duration, metavar="TIME",
               help="only processes that ended or were last used at least TIME ago: 12h, 30d"),
        option("--dry-run", action="store_true", help="only print what would be removed"),
        option("-y", "--yes", action="store_true",
               help="do not ask for confirmation; required without a terminal"),
        JSON,
    )),
    Verb("attach", ".processes:attach", "follow the output of a process; ctrl-C detaches",
         (JSON, PID)),
    *table_memory.ROWS,
    Verb("logs", ".journal:logs", "print the journal: every call and its outcome", (
        option("-f", "--follow", action="store_true", help="wait for new events"),
        option("-n", "--lines", type=between(int, 0, 10**6), metavar="N",
               help="print the last N events [default with -f: 10]"),
        option("--since", type=since, metavar="TIME", help=f"only events since TIME: {AGO}"),
        option("--after", type=between(int, 0, 2**53), metavar="N",
               help="only events after event number N"),
        option("--kind", action="append", default=[], metavar="KIND", choices=EVENTS,
               help=f"only events of this kind: {', '.join(EVENTS)}; repeatable"),
        JSON, option("pid", nargs="?", default=0, metavar="PID", type=between(int, 1, 2**53)),
    )),
    Verb("models list", ".models:list_", "list installed models", (JSON,), starts=True),
    Verb("models show", ".models:show", "show a model: file, digest, licence",
         (JSON, option("name", metavar="NAME")), starts=True),
    Verb("models add", ".models:add", "add a GGUF file (used in place) or the URL of an endpoint", (
        _SET, JSON, option("--no-check", action="store_true", help="do not contact the endpoint"),
        option("name", metavar="NAME"), option("file", metavar="FILE|URL",
                                            help="a URL such as https://api.example.com/v1"),
    ), starts=True),
    Verb("models alias", ".models:alias", "add an alias for a model",
         (JSON, option("name", metavar="NAME"), option("image", metavar="EXISTING")), starts=True),
    Verb("models rm", ".models:rm", "remove a model or an alias from the list; deletes no file",
         (JSON, option("name", metavar="NAME")), starts=True),
    Verb("models tune", ".tune:tune", "choose the fastest quantisation of a model by measurement", (
        option("--small", action="store_true", help="make a Q4_K_M, which is smaller"),
        option("--to", type=str.upper, metavar="QUANT", default="",
               help="make this llama.cpp quantisation, such as Q6_K; an unknown name lists all"),
        option("--no-measure", action="store_true",
               help="make a Q8_0, or what --to names, without measuring"),
        option("--off", action="store_true",
               help="use the original file again and delete the tuned file"),
        JSON, option("name", metavar="NAME"),
    ), starts=True),
    Verb("devices", ".devices:devices", "list hardware and mounted models, with placement reasons",
         (JSON,)),
    Verb("devices restart", ".devices:restart",
         "restart the engine of a model, or the recall process",
         (JSON, option("device", metavar="NAME"))),
    Verb("poison list", ".poison:list_", "list calls quarantined for crashing their engine",
         (JSON,)),
    Verb("poison lift", ".poison:lift", "release a call from quarantine", (
        option("--all", action="store_true", help="release all calls"),
        JSON, option("id", metavar="ID", nargs="?", default=""),
    )),
    Verb("mount", ".devices:mount", "start the engine of a model", (
        _SET,
        option("--engine", metavar="ENGINE",
               help="llama or openvino; auto: the faster one for this file, measured once"),
        option("--pin", action="store_true", help="never unload the model automatically"),
        option("--deterministic", action="store_true",
               help="concurrent calls cannot change each other's answers; slower"),
        JSON, option("image", metavar="MODEL"),
    ), starts=True),
    Verb("unmount", ".devices:unmount",
         "stop the engine of a model; its processes keep their pages",
         (JSON, option("image", metavar="MODEL"))),
    Verb("daemon start", ".daemon:start",
         "start the kernel in the background; takes --SETTING VALUE", (JSON,), takes_settings=True,
         local=True),
    Verb("daemon stop", ".daemon:stop",
         f"stop the kernel; wait {limits.DRAIN_S:g} s for calls in flight", (
        option("--now", action="store_true", help="do not wait for calls in flight"), JSON,
    )),
    Verb("daemon restart", ".daemon:restart",
         "restart the kernel with its flags; takes --SETTING VALUE", (
        option("--now", action="store_true", help="do not wait for calls in flight"), JSON,
    ), takes_settings=True, local=True),
    Verb("daemon status", ".daemon:status", "show the status of the kernel", (JSON,)),
    Verb("daemon logs", ".daemon:logs", "print the log of the daemon", (
        option("-f", "--follow", action="store_true", help="wait for new lines"),
        option("-n", "--lines", type=between(int, 0, 10**6), default=100, metavar="N",
               help="print the last N lines [default: 100]"),
        JSON,
    ), local=True),
    Verb("daemon run", ".daemon:run", "run the kernel in the foreground", rest=True, local=True),
    Verb("secrets set", ".secrets:set_", "store the key of an endpoint; reads it from stdin", (
        option("--keyring", action="store_true",
               help="store in the keyring of the desktop instead of a file"),
        option("--url", default="", metavar="URL",
               help="endpoint of the key [default: that of the first model added with it]"),
        JSON, option("name", metavar="NAME"),
    ), local=True),
    Verb("secrets list", ".secrets:list_",
         "list the names of stored keys and their endpoints", (JSON,),
         local=True),
    Verb("secrets rm", ".secrets:rm", "remove a stored key", (JSON, option("name", metavar="NAME")),
         local=True),
    Verb("users add", ".users:add", "add a user", (
        option("--uid", type=between(int, 0, 2**32 - 2), metavar="N",
               help="user id of the operating system; without it the user needs a key"),
        option("--role", choices=ROLES, default="user", help="role of the user [default: user]"),
        JSON, _USER,
    ), starts=True),
    Verb("users list", ".users:list_",
         "list users and the number of their connections", (JSON,), starts=True),
    Verb("users rm", ".users:rm",
         "remove a user with all keys, processes and pages", (
        option("-y", "--yes", action="store_true",
               help="do not ask for confirmation; required without a terminal"), JSON, _USER,
    ), starts=True),
    Verb("users role", ".users:role", "change the role of a user", (
        JSON, _USER, option("role", metavar="ROLE", choices=ROLES, help=", ".join(ROLES)),
    ), starts=True),
    Verb("keys create", ".keys:create", "create a key for a user; it is printed only once", (
        option("--user", required=True, type=user, metavar="NAME", help="user of the key"),
        option("--expires", type=duration, metavar="TIME",
               help="lifetime, such as 12h, 90d or 2w [default: unlimited]"),
        JSON,
    ), starts=True),
    Verb("keys list", ".keys:list_", "list keys without their secrets", (
        option("--user", type=user, metavar="NAME", help="only keys of this user"), JSON,
    ), starts=True),
    Verb("keys revoke", ".keys:revoke", "revoke a key and close its connections",
         (JSON, option("id", metavar="ID", help="as shown by `keys list`")), starts=True),
    Verb("policy list", ".policy:list_", "list the rules in force", (
        option("--own", action="store_true", help="only rules that you added"), JSON,
    ), starts=True),
    Verb("policy add", ".policy:add", "add rules, all or none", (
        JSON, option("rows", nargs="+", metavar="ROW",
                      help="such as `p, r:careful, spawn, /dev/image/big, deny`; quote each row"),
    ), starts=True),
    Verb("policy rm", ".policy:rm", "remove rules, all or none", (
        JSON, option("rows", nargs="+", metavar="ROW", help="as shown by `policy list --own`"),
    ), starts=True),
    Verb("policy edit", ".editor:edit", "edit your rules in $VISUAL or $EDITOR", (JSON,),
         starts=True),
    Verb("policy undo", ".policy:undo", "undo the last change to your rules", (JSON,),
         starts=True),
    Verb("policy reload", ".policy:reload", "reload the file of your rules", (JSON,),
         starts=True),
    Verb("policy lint", ".lint:lint", "check a file of rules for mistakes; needs no daemon", (
        JSON, option("file", nargs="?", metavar="FILE", help="[default: the file of your rules]"),
    ), local=True),
    Verb("policy test", ".policy:test",
         "test a permission; exit 0 (allow), 75 (ask) or 77 (deny)", (
        JSON, option("words", nargs="+", metavar="WORD",
                     help="SUBJECT... ACTION OBJECT, as u:$USER r:careful spawn /dev/image/big"),
    ), starts=True),
    Verb("policy explain", ".policy:explain",
         "explain a decision and the rules that would change it", (
        JSON, option("words", nargs="+", metavar="WORD",
                      help="the call number from an error message, or SUBJECT... ACTION OBJECT"),
    ), starts=True),
    Verb("policy simulate", ".policy:simulate", "evaluate recorded calls under other rules", (
        _SINCE, JSON, option("file", metavar="FILE", help="rules to use instead of yours"),
    ), starts=True),
    Verb("policy learn", ".policy:learn", "print the minimal rules that recorded calls need", (
        _SINCE, JSON,
        option("who", metavar="PID|APP", help="process or app whose calls are evaluated"),
    ), starts=True),
    Verb("config list", ".config:list_",
         "list the settings of the daemon and pending changes",
         (JSON,), local=True),
    Verb("config get", ".config:get", "print a setting", (JSON, _SETTING), local=True),
    Verb("config set", ".config:set_", "write a setting to config.toml, for the next start", (
        JSON, _SETTING, option("value", metavar="VALUE"),
    ), local=True),
    Verb("config unset", ".config:unset", "remove a setting from config.toml", (JSON, _SETTING),
         local=True),
    Verb("config path", ".config:path",
         "print the paths of files and directories", (JSON,), local=True),
    Verb("doctor", ".doctor:doctor", "check this machine for problems and suggest fixes", (JSON,),
         local=True),
    Verb("bench", "llmasos.userland.bench:main",
         "run benchmarks on this machine", rest=True, local=True),
    Verb("version", ".version:version", "print the version", (JSON,), local=True),
)  # fmt: skip
VERBS = {row.name: row for row in _ROWS}
GROUPS = frozenset(row.name.split()[0] for row in _ROWS if " " in row.name)


def _lines(rows: Mapping[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"  {name:{width}}  {summary}" for name, summary in rows.items())


def help_text() -> str:
    return (
        "usage: llmasos VERB [ARGUMENT ...]\n\n"
        "The operating system for language-model agents.\n\n"
        f"{_lines({row.name: row.summary for row in _ROWS})}\n\n"
        "Every verb takes --json, which prints errors as JSON, too.\n"
        "run, chat, embed, mount and the verbs for models, users, keys and policy start a\n"
        "private daemon if none is running; the other verbs do not.\n\n"
        "Options for a kernel on another machine:\n"
        "  --host HOST:PORT  address of the kernel [default: $LLMASOS_HOST]\n"
        "  --ca FILE         trusted certificate [default: $LLMASOS_CA]\n"
        "  --key-file FILE   your key, or set $LLMASOS_KEY [default: $LLMASOS_KEY_FILE]\n"
        "  --cert FILE       client certificate [default: $LLMASOS_CLIENT_CERT]\n"
        "  --cert-key FILE   its private key [default: $LLMASOS_CLIENT_KEY]\n\n"
        "Run `llmasos VERB --help` for the options of a verb."
    )


def group_help(group: str) -> str:
    usage = f"usage: llmasos {group} VERB [ARGUMENT ...]"
    rows = {name: VERBS[name].summary for name in _names(group)}
    own = VERBS.get(group)
    if own is None:
        return f"{usage}\n\n{_lines(rows)}"
    command = " ".join(filter(None, (group, own.options[-1].settings.get("metavar"))))
    flags = {one.flags[0]: one.settings["help"] for one in own.options[:-1]}
    options = f"\n\n{command}:\n{_lines(flags)}" if flags else ""
    return (
        f"{usage}\n       llmasos {command} [ARGUMENT ...]\n\n"
        f"{_lines({command: own.summary, **rows})}{options}"
    )


def unknown(name: str) -> tuple[str, str]:
    """The error message and the hint for a verb that does not exist."""
    group = name.split()[0]
    message = f"unknown verb {name!r}"
    if group not in GROUPS:
        return message, "`llmasos --help` lists the verbs"
    own = VERBS[group].options[-1].settings.get("metavar") if group in VERBS else None
    names = [*filter(None, [own]), *(one.split()[1] for one in _names(group))]
    return message, f"{group} takes {', '.join(names)}"


def _names(group: str) -> list[str]:
    return [name for name in VERBS if name.startswith(f"{group} ")]
