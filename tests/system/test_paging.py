"""P-05: context without end. Nothing leaves the window silently, and what is needed comes back."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine

WINDOW = 512
GREEDY = v.Sampling(temperature=0, max_tokens=60)
TALK = "Tell me something new about {}, please, as it rains today and we have time to talk."
SUBJECTS = [
    "bread", "clouds", "maps", "tea", "boats", "moss", "violins", "chairs", "lamps", "rivers",
    "shoes", "bees",
]  # fmt: skip


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine for tests that look at processes of their own only."""
    machine = Machine(tmp_path_factory.mktemp("common"))
    machine.start("--mount", "false", "--window", str(WINDOW))
    yield machine
    machine.down()


@pytest.fixture
def line(common: Machine) -> Iterator[BlockingClient]:
    with BlockingClient(common.paths.socket, profile=v.Profile.OPERATOR) as line:
        yield line


@pytest.fixture
def alone(machine: Machine) -> Iterator[BlockingClient]:
    """The only one who speaks with a machine."""
    machine.start("--mount", "false", "--window", str(WINDOW))
    with BlockingClient(machine.paths.socket, profile=v.Profile.OPERATOR) as line:
        yield line


def spawn(line: BlockingClient, **fields: object) -> int:
    return line.call("spawn", v.Spawn("echo", **fields), v.Spawned).pid  # type: ignore[arg-type]


def say(line: BlockingClient, pid: int, text: str, **fields: object) -> tuple[str, v.Generated]:
    asked = v.Generate(pid, [v.Message(v.Role.USER, text)], sampling=GREEDY, **fields)  # type: ignore[arg-type]
    stream = line.stream("generate", asked, v.Delta, v.Generated)
    text = "".join(delta.text for delta in stream)
    assert stream.reply is not None
    return text, stream.reply


def chat(line: BlockingClient, pid: int, turns: int) -> list[v.Generated]:
    return [
        say(line, pid, f"{turn}. {TALK.format(SUBJECTS[turn % len(SUBJECTS)])}")[1]
        for turn in range(turns)
    ]


def pages(line: BlockingClient, pid: int, **fields: object) -> list[v.Page]:
    return line.call("read_mem", v.ReadMem(pid, **fields), v.Pages).pages  # type: ignore[arg-type]


def resident(line: BlockingClient, pid: int) -> set[int]:
    return {page.number for page in pages(line, pid) if page.where is v.Where.WINDOW}


def trace(line: BlockingClient, pid: int, page: int) -> list[tuple[str, str]]:
    found = line.call("trace_mem", v.TraceMem(pid, page), v.Trace)
    return [(move.what, move.why) for move in found.moves]


def test_a_window_grows_until_it_is_full_and_is_compacted_in_one_step(line: BlockingClient) -> None:
    pid = spawn(line, system="You are kind.")
    replies = chat(line, pid, 20)
    seen: set[int] = set()
    for reply in replies:
        assert reply.usage.prompt_tokens + 60 <= WINDOW
        if not reply.evicted:  # nothing left: what was there before is there, in the engine too
            assert seen <= set(reply.window)
        assert 0 in reply.window  # the system prompt
        seen = set(reply.window)
    compactions = [reply for reply in replies if reply.evicted]
    assert 1 < len(compactions) < len(replies) // 2
    assert len(pages(line, pid)) == 41  # all of it is still there


def test_every_page_can_tell_where_it_is_and_why(line: BlockingClient) -> None:
    pid = spawn(line, system="You are kind.")
    replies = chat(line, pid, 12)
    gone = {page for reply in replies for page in reply.evicted}
    for page in pages(line, pid):
        moves = trace(line, pid, page.number)
        assert moves[0][0] == "written"
        last = moves[-1][0]
        assert (page.where is v.Where.WINDOW) is (last in ("written", "recalled"))
        assert (page.number in gone) is any(what == "evicted" for what, _ in moves)
    faults = [fault for reply in replies for fault in reply.faults]
    for fault in faults:
        assert ("recalled", "a request") in trace(line, pid, fault.page)


def test_what_was_said_long_ago_comes_back_when_it_is_asked_for(line: BlockingClient) -> None:
    pid = spawn(line)
    say(line, pid, "The password of the vault is tangerine.")
    chat(line, pid, 12)
    assert 0 not in resident(line, pid)
    said, reply = say(line, pid, "Which password opens the vault?")
    assert 0 in {fault.page for fault in reply.faults}
    assert 0 in reply.window
    assert "The password of the vault is tangerine." in said  # echo repeats what it was told
    found = line.call("trace_mem", v.TraceMem(pid, 0), v.Trace)
    assert [move.what for move in found.moves][-2:] == ["evicted", "recalled"]
    assert found.moves[-1].parts["words"] > 0
    assert found.moves[-1].call == reply.call


def test_nothing_is_brought_back_where_it_is_not_wanted(line: BlockingClient) -> None:
    pid = spawn(line)
    say(line, pid, "The password of the vault is tangerine.")
    chat(line, pid, 12)
    _, reply = say(line, pid, "Which password opens the vault?", recall=False)
    assert reply.faults == []
    assert 0 not in reply.window


def test_a_request_larger_than_the_window_is_stored_whole_and_said(line: BlockingClient) -> None:
    pid = spawn(line)
    filler = " ".join(f"Line {n} is about nothing much at all." for n in range(300))
    text = f"Read this. {filler} The anchor weighs two tons. {filler} What does the anchor weigh?"
    said, reply = say(line, pid, text)
    (notice,) = reply.notices
    assert "of its" in notice
    assert notice.endswith("in the window, the others are stored outside it")
    assert "".join(p.text for p in pages(line, pid) if p.kind is v.Kind.USER) == text
    assert reply.usage.prompt_tokens + 60 <= WINDOW
    assert said.startswith("Read this.")
    beside = next(p.number for p in pages(line, pid) if p.number not in reply.window)
    assert [what for what, _ in trace(line, pid, beside)] == ["written", "beside"]
    assert set(reply.window) == resident(line, pid)
    with pytest.raises(SyscallError, match=f"the window has {WINDOW}") as caught:
        say(line, pid, text, overflow=v.Overflow.ERROR)
    assert caught.value.errno is Errno.E2BIG
    before = len(pages(line, pid))
    with pytest.raises(SyscallError, match="600 are requested"):
        line.call(
            "generate",
            v.Generate(pid, [v.Message(v.Role.USER, "x")], sampling=v.Sampling(max_tokens=600)),
            v.Generated,
        )
    assert len(pages(line, pid)) == before


def test_pinned_pages_stay_and_come_back(line: BlockingClient) -> None:
    pid = spawn(line)
    say(line, pid, "The password of the vault is tangerine.")
    line.call("pin", v.Pin(pid, 0), v.Nothing)
    assert all(0 in reply.window for reply in chat(line, pid, 12))
    line.call("pin", v.Pin(pid, 0, pinned=False), v.Nothing)
    chat(line, pid, 8)
    assert 0 not in resident(line, pid)
    line.call("pin", v.Pin(pid, 0), v.Nothing)
    _, reply = say(line, pid, "hello")
    assert 0 in reply.window
    assert all(0 in reply.window for reply in chat(line, pid, 8))


def test_an_evicted_page_leaves_at_once(line: BlockingClient) -> None:
    pid = spawn(line)
    chat(line, pid, 2)
    line.call("evict", v.Evict(pid, 0, 2), v.Nothing)
    assert resident(line, pid) == {2, 3}
    assert trace(line, pid, 0)[-1] == ("evicted", "requested")
    _, reply = say(line, pid, "And now for something else entirely", recall=False)
    assert 0 not in reply.window


def test_the_window_is_the_same_after_kill_9(alone: BlockingClient, machine: Machine) -> None:
    pid = spawn(alone, system="You are kind.")
    chat(alone, pid, 9)
    before, texts = resident(alone, pid), pages(alone, pid)
    machine.shoot()
    machine.start("--mount", "false", "--window", str(WINDOW))
    with BlockingClient(machine.paths.socket) as again:
        assert resident(again, pid) == before
        assert pages(again, pid) == texts
        _, reply = say(again, pid, "hello again")
        assert before <= set(reply.window) or reply.evicted


def test_a_child_sees_its_parents_window_and_writes_apart(line: BlockingClient) -> None:
    pid = spawn(line, system="You are kind.")
    chat(line, pid, 9)
    (child,) = line.call("fork", v.Fork(pid), v.Forked).pids
    assert resident(line, child) == resident(line, pid)
    say(line, child, "The child says kumquat.")
    line.call("write_mem", v.WriteMem(child, "another text", page=1), v.Written)
    assert "another text" not in [page.text for page in pages(line, pid)]
    hits = line.call("search_mem", v.SearchMem(pid, "kumquat"), v.Hits).hits
    assert not any("kumquat" in hit.page.text for hit in hits)
    hits = line.call("search_mem", v.SearchMem(child, "clouds"), v.Hits).hits
    assert "clouds" in hits[0].page.text  # the parent's page, found by the child


def test_a_document_is_mapped_stored_once_and_found(alone: BlockingClient, tmp_path: Path) -> None:
    book = tmp_path / "a book.md"
    chapters = [f"Chapter {n}. {TALK.format(SUBJECTS[n % 12])} " * 4 for n in range(40)]
    chapters[25] += "The lighthouse keeper hid the ledger behind the third stone."
    book.write_text("\n\n".join(chapters), encoding="utf-8")
    one, two = spawn(alone), spawn(alone)
    source = f"/files{book}"
    mapped = alone.call("mmap", v.Mmap(one, source), v.Mapped)
    assert mapped.first == 0
    assert mapped.count > 20
    again = alone.call("mmap", v.Mmap(two, source), v.Mapped)
    assert again.count == mapped.count
    checked = alone.call("fsck", v.Fsck(), v.Checked)
    assert checked.pages == mapped.count  # of both
    assert checked.faults == []
    assert "".join(page.text for page in pages(alone, one)) == book.read_text(encoding="utf-8")
    assert {page.source for page in pages(alone, one)} == {source}
    _, reply = say(alone, two, "Where did the keeper of the lighthouse hide the ledger?")
    texts = {page.number: page.text for page in pages(alone, two)}
    assert any("behind the third stone" in texts[fault.page] for fault in reply.faults)
    assert alone.call("mmap", v.Mmap(two, source, writable=False), v.Mapped) == again
    with pytest.raises(SyscallError, match="mapped read-only") as caught:
        alone.call("write_mem", v.WriteMem(two, "mine", page=0), v.Written)
    assert caught.value.errno is Errno.EACCES
    alone.call("write_mem", v.WriteMem(one, "mine", page=0), v.Written)
    assert pages(alone, one)[0].text == "mine"
    assert pages(alone, two)[0].text == texts[0]
    assert alone.call("mmap", v.Mmap(one, source), v.Mapped).first == mapped.count
    assert [page.text for page in pages(alone, one)] == list(texts.values())[: mapped.count]
    assert alone.call("fsck", v.Fsck(), v.Checked).faults == []
    alone.call("munmap", v.Munmap(one, mapped.count), v.Nothing)
    assert pages(alone, one) == []
    assert alone.call("fsck", v.Fsck(), v.Checked).pages > mapped.count  # the other has it still


def test_a_folder_is_mapped_and_what_is_no_text_is_named(
    line: BlockingClient, tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.txt").write_text("The first note is about saffron.")
    (folder / "deep" / "two.txt").write_text("The second note is about copper.")
    (folder / "picture.bin").write_bytes(b"\0\1\2")
    (folder / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    (folder / ".hidden").write_text("not to be seen")
    pid = spawn(line)
    mapped = line.call("mmap", v.Mmap(pid, f"/files{folder}"), v.Mapped)
    assert mapped.count == 2
    assert mapped.hidden == 1
    assert [one.name for one in mapped.skipped] == ["latin.txt", "picture.bin"]
    assert {page.key for page in pages(line, pid)} == {"one.txt", "deep/two.txt"}


@pytest.mark.parametrize(
    ("content", "errno", "words"),
    [
        (None, Errno.ENOENT, "does not exist or you may not read it"),
        (b"\xff\xfe\xff", Errno.EINVAL, "not valid UTF-8 at byte 0"),
        (b"a\0b", Errno.EINVAL, "zero byte"),
        (b"  \n", Errno.EINVAL, "is empty"),
        (b"a" * (17 << 20), Errno.E2BIG, "has more than"),
    ],
    ids=["nothing", "latin", "binary", "empty", "huge"],
)
def test_what_cannot_be_mapped_is_named(
    line: BlockingClient, tmp_path: Path, content: bytes | None, errno: Errno, words: str
) -> None:
    if content is not None:
        (tmp_path / "it").write_bytes(content)
    assert refused(line, tmp_path / "it", words) is errno


def test_a_link_and_a_folder_without_texts_are_named(line: BlockingClient, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to("/etc/hostname")
    assert refused(line, folder / "link", "is a link") is Errno.EACCES
    assert refused(line, folder, "there is no text") is Errno.EINVAL


def refused(line: BlockingClient, path: Path, words: str) -> Errno:
    pid = spawn(line)
    with pytest.raises(SyscallError, match=words) as caught:
        line.call("mmap", v.Mmap(pid, f"/files{path}"), v.Mapped)
    assert pages(line, pid) == []
    return caught.value.errno


def test_a_careful_program_maps_no_files(
    line: BlockingClient, common: Machine, tmp_path: Path
) -> None:
    (tmp_path / "it.txt").write_text("secret")
    pid = spawn(line)
    with BlockingClient(common.paths.socket, profile=v.Profile.CAREFUL) as careful:
        with pytest.raises(SyscallError, match="may not mmap") as caught:
            careful.call("mmap", v.Mmap(pid, f"/files{tmp_path}/it.txt"), v.Mapped)
        assert caught.value.errno is Errno.EACCES


def test_pages_of_another_process_are_mapped_and_shared(line: BlockingClient) -> None:
    one, two = spawn(line), spawn(line)
    say(line, one, "The password of the vault is tangerine.")
    mapped = line.call("mmap", v.Mmap(two, f"/proc/{one}/mem"), v.Mapped)
    assert mapped.count == 2
    said, _ = say(line, two, "Which password opens the vault?")
    assert "tangerine" in said
    shared = line.call("share", v.Share(two, one, 0, 1), v.Mapped)
    assert [p.text for p in pages(line, one)][shared.first] == (
        "The password of the vault is tangerine."
    )
    with pytest.raises(SyscallError, match="has its own pages already"):
        line.call("mmap", v.Mmap(one, f"/proc/{one}/mem"), v.Mapped)
    with pytest.raises(SyscallError, match="there is no process 99") as caught:
        line.call("mmap", v.Mmap(one, "/proc/99/mem"), v.Mapped)
    assert caught.value.errno is Errno.ESRCH


def test_a_rule_keeps_one_process_out_of_anothers_memory(
    alone: BlockingClient, machine: Machine
) -> None:
    one, two = spawn(alone), spawn(alone)
    say(alone, one, "mine alone")
    row = f"p, r:careful, mmap, /proc/{one}/mem, deny"
    with BlockingClient(machine.paths.socket, profile=v.Profile.OWNER) as owner:
        owner.call("policy_edit", v.PolicyEdit([row]), v.PolicyChanged)
    with BlockingClient(machine.paths.socket, profile=v.Profile.CAREFUL) as careful:
        with pytest.raises(SyscallError, match=row) as caught:
            careful.call("mmap", v.Mmap(two, f"/proc/{one}/mem"), v.Mapped)
        assert caught.value.errno is Errno.EACCES


def test_keys_hold_one_value(line: BlockingClient) -> None:
    pid = spawn(line)
    for text in ("blue", "green"):
        line.call("write_mem", v.WriteMem(pid, text, key="colour", labels=["web"]), v.Written)
    (page,) = pages(line, pid, key="colour")
    assert (page.text, page.labels, page.kind) == ("green", ["web"], v.Kind.NOTE)
    assert pages(line, pid, key="size") == []
    with pytest.raises(SyscallError, match="a page or a key, not both"):
        line.call("write_mem", v.WriteMem(pid, "x", page=0, key="colour"), v.Written)


def test_searches_are_filtered(line: BlockingClient) -> None:
    pid = spawn(line)
    rows = [
        ("The boat is red.", "ann", 100.0, "web"),
        ("The boat is green.", "bob", 200.0, "file"),
        ("The boat is blue.", "ann", 300.0, "web"),
    ]
    for text, speaker, time, label in rows:
        asked = v.WriteMem(pid, text, speaker=speaker, time=time, labels=[label])
        line.call("write_mem", asked, v.Written)

    def found(**fields: object) -> set[str]:
        asked = v.SearchMem(pid, "Which colour has the boat?", **fields)  # type: ignore[arg-type]
        reply = line.call("search_mem", asked, v.Hits)
        assert "lexical only" in reply.note
        return {hit.page.text.split()[-1] for hit in reply.hits}

    assert found() == {"red.", "green.", "blue."}
    assert found(author="ann") == {"red.", "blue."}
    assert found(author=line.welcome.owner) == {"red.", "green.", "blue."}
    assert found(since=150.0, until=250.0) == {"green."}
    assert found(label="web", since=150.0) == {"blue."}
    assert found(kinds=[v.Kind.NOTE, v.Kind.TOOL]) == {"red.", "green.", "blue."}
    assert found(kinds=[v.Kind.TOOL]) == set()
    assert found(author="nobody") == set()
    assert len(found(count=1)) == 1


def test_a_large_request_is_told_of_also_when_the_window_was_full(line: BlockingClient) -> None:
    """What is looked for again, after pages left, takes no notice away."""
    pid = spawn(line)
    chat(line, pid, 12)
    filler = " ".join(f"Line {n} is about nothing much at all." for n in range(100))
    _, reply = say(line, pid, f"{filler} What do you know about bread?")
    assert reply.evicted
    assert [notice for notice in reply.notices if "stored outside it" in notice]


def test_a_process_that_thrashes_is_told(line: BlockingClient) -> None:
    pid = spawn(line)
    notices: list[str] = []
    for turn in range(20):
        if turn:  # without its first page, all that stands after it is computed again
            line.call("evict", v.Evict(pid, min(resident(line, pid))), v.Nothing)
        _, reply = say(line, pid, f"{turn} " + "many words of no use " * 10)
        notices += reply.notices
    stat = line.call("stat", v.Nothing(), v.Stat)
    assert stat.evictions > 0
    assert stat.hard_faults > 0
    assert stat.thrashes > 0
    assert any(f"process {pid} thrashes" in notice for notice in notices)


def test_no_summary_is_made_unless_it_is_wanted(line: BlockingClient) -> None:
    pid = spawn(line)
    assert any(reply.evicted for reply in chat(line, pid, 8))
    assert not [page for page in pages(line, pid) if page.kind is v.Kind.SUMMARY]


def test_a_page_that_was_replaced_is_found_by_what_it_says_now(line: BlockingClient) -> None:
    pid = spawn(line)
    say(line, pid, "The password is pomegranate.")
    line.call("write_mem", v.WriteMem(pid, "The password is tangerine.", page=0), v.Written)
    hits = line.call("search_mem", v.SearchMem(pid, "Which password?"), v.Hits).hits
    (page,) = [hit.page for hit in hits if hit.page.number == 0]
    assert page.text == "The password is tangerine."
    assert page.kind is v.Kind.NOTE  # whoever replaced it has written it


def test_a_document_of_which_something_was_forgotten_is_mapped_whole_again(
    line: BlockingClient, tmp_path: Path
) -> None:
    book = tmp_path / "book.md"
    book.write_text("\n\n".join(f"Chapter {n}. {TALK} " * 6 for n in range(20)))
    one, two = spawn(line), spawn(line)
    mapped = line.call("mmap", v.Mmap(one, f"/files{book}"), v.Mapped)
    line.call("forget", v.Forget(one, 1, 2), v.Forgotten)
    assert len(pages(line, one)) == mapped.count - 2
    again = line.call("mmap", v.Mmap(two, f"/files{book}"), v.Mapped)
    assert again.count == mapped.count
    assert "".join(page.text for page in pages(line, two)) == book.read_text()
    assert line.call("fsck", v.Fsck(), v.Checked).faults == []


def test_names_of_files_that_are_no_utf_8_harm_nobody(line: BlockingClient, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    odd = bytes(folder) + b"/\xff\xfe"
    Path(os.fsdecode(odd + b".bin")).write_bytes(b"\0")
    assert refused(line, folder, "there is no text") is Errno.EINVAL
    Path(os.fsdecode(odd + b".txt")).write_text("A text with an odd name.")
    pid = spawn(line)
    mapped = line.call("mmap", v.Mmap(pid, f"/files{folder}"), v.Mapped)
    why = "is not a text file: it has a zero byte"
    assert mapped.skipped == [v.SkippedFile("\\xff\\xfe.bin", why)]
    (page,) = pages(line, pid)
    assert (page.text, page.key) == ("A text with an odd name.", "\\xff\\xfe.txt")


def test_replies_with_many_labels_are_cut_and_go_on(line: BlockingClient) -> None:
    pid = spawn(line)
    labels = [f"a-label-with-a-long-name-that-takes-its-room-{n}" for n in range(16)]
    for number in range(700):
        asked = v.WriteMem(pid, f"page {number} of bread", labels=labels, key=f"{number:0200}")
        line.call("write_mem", asked, v.Written)
    found: list[v.Page] = []
    first: int | None = 0
    while first is not None:
        reply = line.call("read_mem", v.ReadMem(pid, first), v.Pages)
        found += reply.pages
        first = reply.next
    assert len(found) == 700
    search = v.SearchMem(pid, "bread", 1000, texts=False)
    assert len(line.call("search_mem", search, v.Hits).hits) > 100


def test_pages_are_read_by_key_and_time_and_without_their_texts(line: BlockingClient) -> None:
    pid = spawn(line)
    for number in range(300):
        asked = v.WriteMem(pid, f"page {number}", key=f"{number}", time=1000.0 + number)
        line.call("write_mem", asked, v.Written)
    assert [page.text for page in pages(line, pid, key="299")] == ["page 299"]
    assert pages(line, pid, key="299", first=299) == pages(line, pid, key="299")
    assert pages(line, pid, key="298", first=299) == []
    assert pages(line, pid, key="300") == []
    numbers = [page.number for page in pages(line, pid, since=1010, until=1012)]
    assert numbers == [10, 11, 12]
    bare = pages(line, pid, texts=False)
    assert [page.number for page in bare] == list(range(300))
    assert {page.text for page in bare} == {""}


def test_a_summary_is_not_for_programs_to_write(line: BlockingClient) -> None:
    pid = spawn(line)
    line.call("write_mem", v.WriteMem(pid, "x"), v.Written)
    assert [page.kind for page in pages(line, pid)] == [v.Kind.NOTE]
