"""Failures of an endpoint."""

from llmasos.kernel.abi.errors import DeviceFault


class EndpointFailure(Exception):
    """An invalid answer of the endpoint. The message may contain the endpoint's own text."""


class Refusal(DeviceFault):
    """A request without a usable answer. The message is one sanitised line."""

    def __init__(
        self, message: str, hint: str = "", *, status: int = 0, retryable: bool = False,
        after_s: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(message, hint)
        self.status = status  # of HTTP; 0: no response
        self.retryable = retryable  # the request may be sent again
        self.after_s = after_s  # not earlier than this
