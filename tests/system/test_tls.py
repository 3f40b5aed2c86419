"""TCP: only with TLS 1.3, only with a key, off unless asked for."""

import socket
import ssl
from pathlib import Path

import pytest

from llmasos import LLMasOS
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from tests.system.daemon import Machine
from tests.system.raw import Raw, hung_up_on, raw

HAS_IPV6 = Path("/proc/net/if_inet6").exists()


def port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


def flags(folder: Path, number: int) -> list[str]:
    return [
        "--mount", "false", "--listen", f"127.0.0.1:{number}",
        "--tls-cert", str(folder / "machine.pem"), "--tls-key", str(folder / "machine.key"),
    ]  # fmt: skip


def trusting(folder: Path, own: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / "machine.pem"))
    if own:
        context.load_cert_chain(folder / f"{own}.pem", folder / f"{own}.key")
    return context


def a_key(machine: Machine) -> str:
    with raw(machine.paths.socket, "owner") as root:
        root.call("user_add", name="alice")
        made: str = root.call("key_create", user="alice")["key"]
        return made


def refusals(machine: Machine, words: str) -> list[str]:
    return [note for note in hung_up_on(machine.paths.socket) if words in note]


def test_a_client_far_away_comes_with_tls_and_a_key(machine: Machine, certificates: Path) -> None:
    number = port()
    machine.start(*flags(certificates, number))
    place = f"tls://localhost:{number}"
    made = a_key(machine)
    with LLMasOS(made, socket=place, tls=trusting(certificates)) as client:
        assert client.spawn("echo").pid
        assert client.stat().connections == 1
    with pytest.raises(SyscallError, match="no key"):
        LLMasOS(socket=place, tls=trusting(certificates)).__enter__()
    with pytest.raises(SyscallError, match="does not exist"):
        LLMasOS(f"{made[:-4]}AAAA", socket=place, tls=trusting(certificates)).__enter__()


def test_a_certificate_that_nobody_trusts_is_refused_by_the_client(
    machine: Machine, certificates: Path
) -> None:
    number = port()
    machine.start(*flags(certificates, number))
    with pytest.raises(SyscallError, match="certificate") as caught:
        LLMasOS("key", socket=f"tls://localhost:{number}").__enter__()
    assert caught.value.errno is Errno.EACCES


def test_client_certificates_can_be_asked_for(machine: Machine, certificates: Path) -> None:
    number = port()
    machine.start(*flags(certificates, number), "--tls-clients", str(certificates / "machine.pem"))
    place, made = f"tls://localhost:{number}", a_key(machine)
    with LLMasOS(made, socket=place, tls=trusting(certificates, "machine")) as client:
        assert client.stat().owner
    for own in ("", "stranger"):
        with pytest.raises((SyscallError, OSError)):
            LLMasOS(made, socket=place, tls=trusting(certificates, own)).__enter__()
    assert len(refusals(machine, "TLS 1.3 handshake failed")) == 2


def test_far_away_users_have_so_many_places(machine: Machine, certificates: Path) -> None:
    number = port()
    machine.start(*flags(certificates, number), "--user-connections", "2")
    place, made = f"tls://localhost:{number}", a_key(machine)
    with (
        LLMasOS(made, socket=place, tls=trusting(certificates)),
        LLMasOS(made, socket=place, tls=trusting(certificates)) as client,
    ):
        with pytest.raises(
            SyscallError, match="2 connections of user:alice are open; at most 2 are allowed"
        ) as late:
            LLMasOS(made, socket=place, tls=trusting(certificates)).__enter__()
        assert late.value.errno is Errno.EAGAIN
        assert client.stat().owner


def test_strangers_have_so_many_places_and_take_nobody_elses(
    machine: Machine, certificates: Path
) -> None:
    number = port()
    machine.start(*flags(certificates, number), "--user-connections", "2")
    place, made = f"tls://localhost:{number}", a_key(machine)
    with (
        LLMasOS(made, socket=place, tls=trusting(certificates)) as client,
        socket.create_connection(("127.0.0.1", number), timeout=30),
        socket.create_connection(("127.0.0.1", number), timeout=30),
    ):
        with socket.create_connection(("127.0.0.1", number), timeout=30) as late:
            assert late.recv(1) == b""  # before its handshake
        assert client.stat().connections == 3
    [why] = refusals(machine, "at most 2 are allowed")
    assert why.startswith("2 connections of tcp:127.0.0.1 are open")


def test_plain_bytes_and_old_tls_get_no_answer(machine: Machine, certificates: Path) -> None:
    number = port()
    machine.start(*flags(certificates, number))
    with socket.create_connection(("127.0.0.1", number), timeout=30) as plain:
        client = Raw(plain)
        client.send("hello", version=limits.PROTOCOL_VERSION)
        with pytest.raises((EOFError, ConnectionError, ValueError, SyscallError)):
            client.receive()
    old = trusting(certificates)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", number), timeout=30) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        old.wrap_socket(plain, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", number), timeout=30) as silent:
        assert silent.recv(1) == b""
    assert len(refusals(machine, "TLS 1.3 handshake failed")) == 3


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--listen", "127.0.0.1:0"], "plain TCP is not supported"),
        (["--listen", "somewhere"], "want HOST:PORT"),
        (["--listen", ":0", "--tls-cert", "/none", "--tls-key", "/none"], "/none"),
    ],
)
def test_what_cannot_be_served_is_said_at_the_start(
    machine: Machine, more: list[str], why: str
) -> None:
    with pytest.raises(AssertionError, match=why):  # it carries the daemon's log
        machine.start("--mount", "false", *more)


def test_an_address_that_is_in_use_stops_the_start_and_leaves_no_socket(
    machine: Machine, certificates: Path
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        number = int(other.getsockname()[1])
        with pytest.raises(AssertionError, match="in use") as caught:
            machine.start(*flags(certificates, number))
    assert f"127.0.0.1:{number}" in str(caught.value)
    assert machine.reap() == 1


@pytest.mark.skipif(not HAS_IPV6, reason="this system has no IPv6")
def test_a_client_may_come_by_ipv6(machine: Machine, certificates: Path) -> None:
    number = port()
    words = flags(certificates, number)
    machine.start(*[f"[::1]:{number}" if word == f"127.0.0.1:{number}" else word for word in words])
    context = trusting(certificates)
    context.check_hostname = False  # the certificate names the other address
    with LLMasOS(a_key(machine), socket=f"tls://[::1]:{number}", tls=context) as client:
        assert client.stat().connections == 1
