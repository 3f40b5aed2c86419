"""What is known of this call before its verb runs.

`main` sets it; whoever prints or connects reads it. Loaded by every call: nothing is imported here.
"""


class Invocation:
    """One run of the command."""

    def __init__(self) -> None:
        self.reset([])

    def reset(self, words: list[str]) -> None:
        """Begin a new one."""
        own = words[: words.index("--")] if "--" in words else words
        self.json = "--json" in own  # errors are JSON, and notes for people are left out
        self.verb = ""  # as "models add"
        self.starts = False  # the verb starts a private daemon when none answers


CURRENT = Invocation()
