"""Global options of this command, parsed before its verb runs.

`main` sets them; the output and connection modules read them. Loaded by every call: nothing is
imported here.
"""

# Options of every verb that connects to a kernel: its address and the credential files.
HOST = {"--host": "host", "--ca": "ca", "--cert": "cert", "--cert-key": "cert_key",
        "--key-file": "key_file"}  # fmt: skip


class Invocation:
    """One run of the command."""

    def __init__(self) -> None:
        self.begin([])

    def begin(self, words: list[str]) -> list[str]:
        """Reset all fields. Returns the words without the options of HOST, for the verb."""
        end = words.index("--") if "--" in words else len(words)
        self.verb = ""  # such as "models add"
        self.starts = False  # the verb starts a private daemon when none answers
        self.local = False  # the verb concerns this machine only
        self.remote: dict[str, str] = {}  # the given options of HOST
        self.missing = ""  # the first of them without a value
        verb_words = self._without_host(words[:end])
        self.json = "--json" in verb_words  # errors are JSON, and notes for people are left out
        return verb_words + words[end:]

    def _without_host(self, words: list[str]) -> list[str]:
        remaining: list[str] = []
        rest = iter(words)
        for word in rest:
            flag, equals, value = word.partition("=")
            if flag not in HOST:
                remaining.append(word)
                continue
            value = value if equals else next(rest, "")
            self.remote[HOST[flag]] = value
            self.missing = self.missing or ("" if value else flag)
        return remaining


CURRENT = Invocation()
