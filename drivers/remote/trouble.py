"""What can go wrong with an endpoint."""

from llmasos.kernel.errors import DeviceFault


class Trouble(Exception):
    """The endpoint answered, and it makes no sense. In words that may be the endpoint's own."""


class Refusal(DeviceFault):
    """A request that got no usable answer, in one clean line. `again`: it may be sent once more."""

    def __init__(
        self, message: str, hint: str = "", *, status: int = 0, again: bool = False,
        after_s: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(message, hint)
        self.status = status  # of HTTP; 0: none came
        self.again = again
        self.after_s = after_s  # not before
