"""What is known of this call before its verb runs.

`main` sets it; whoever prints or connects reads it. Loaded by every call: nothing is imported here.
"""

# Options of every verb that asks a kernel: which one is asked, and with which files.
HOST = {"--host": "host", "--ca": "ca", "--cert": "cert", "--cert-key": "cert_key",
        "--key-file": "key_file"}  # fmt: skip


class Invocation:
    """One run of the command."""

    def __init__(self) -> None:
        self.begin([])

    def begin(self, words: list[str]) -> list[str]:
        """A new one. What is left for the verb, without the options of HOST."""
        end = words.index("--") if "--" in words else len(words)
        self.verb = ""  # as "models add"
        self.starts = False  # the verb starts a private daemon when none answers
        self.local = False  # the verb is about this machine
        self.remote: dict[str, str] = {}  # the options of HOST that were given
        self.missing = ""  # the one of them whose value was not
        own = self._without_host(words[:end])
        self.json = "--json" in own  # errors are JSON, and notes for people are left out
        return own + words[end:]

    def _without_host(self, words: list[str]) -> list[str]:
        left: list[str] = []
        rest = iter(words)
        for word in rest:
            flag, equals, value = word.partition("=")
            if flag not in HOST:
                left.append(word)
                continue
            value = value if equals else next(rest, "")
            self.remote[HOST[flag]] = value
            self.missing = self.missing or ("" if value else flag)
        return left


CURRENT = Invocation()
