"""P-13: a client that is refused in a loop fills no journal, and delays nobody."""

import threading
import time
from statistics import median

from llmasos.kernel.abi import limits
from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine
from tests.system.raw import Raw, raw

CLIENTS, TURNS, AT_ONCE = 4, 8, 32
NICE_S = 0.5  # at the median, on a machine that does other things, too


def ask_in_a_loop(client: Raw, number: int) -> None:
    """Calls that no rule allows: the same again and again, and different ones."""
    for turn in range(TURNS):
        calls = [
            client.send("user_add", name=f"user{number}x{turn}x{at}" if at % 2 else "same")
            for at in range(AT_ONCE)
        ]
        for call in calls:
            client.answer(call)


def test_refusals_in_a_loop_evict_no_history_and_delay_nobody(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        pid = line.call("spawn", v.Spawn("echo"), v.Spawned).pid
        before = line.call("stat", v.Nothing(), v.Stat)
        threads: list[threading.Thread] = []
        for number in range(CLIENTS):

            def run(number: int = number) -> None:
                with raw(machine.paths.socket) as client:
                    ask_in_a_loop(client, number)

            threads.append(threading.Thread(target=run))
            threads[-1].start()
        took: list[float] = []
        while any(thread.is_alive() for thread in threads):
            begin = time.monotonic()
            line.call("nice", v.Renice(pid, len(took) % 10), v.Nothing)
            took.append(time.monotonic() - begin)
        after = line.call("stat", v.Nothing(), v.Stat)
        events: list[v.Event] = []
        for batch in line.stream("watch", v.Watch(0, follow=False), v.Events, v.Nothing):
            events += batch.events
    refused = CLIENTS * TURNS * AT_ONCE
    assert after.refused - before.refused == refused
    rows = [event for event in events if event.kind == "refused"]
    took_s = after.uptime_s - before.uptime_s
    most = limits.USER_REFUSAL_ROWS * (1 + took_s / limits.REFUSAL_S)
    counts = [int(event.note.split()[1]) for event in rows if event.note.startswith("and ")]
    assert len(rows) - len(counts) <= most
    assert sum(counts) + len(rows) - len(counts) == refused  # nothing is lost
    assert sum(event.syscall == "nice" for event in events) == len(took)
    assert median(took) < NICE_S
    # Beyond those that could be listed, each costs its connection a pause.
    paused = refused - CLIENTS - limits.USER_REFUSAL_ROWS * (1 + took_s / limits.REFUSAL_S)
    assert took_s >= paused / CLIENTS * limits.REFUSAL_PAUSE_S
    assert after.journal_bytes - before.journal_bytes < 16 * 1024 * 1024
    machine.stop()
