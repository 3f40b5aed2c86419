"""One setting of a file is changed: comments, order and tables stay as they were written."""

import tomllib

import pytest

from llmasos.kernel.abi.errors import SyscallError
from llmasos.userland.cli import toml

FILE = """\
# My machine.
model = "qwen"   # the big one

window = 2_048 # tokens
tune = false

# What is found again.
[memory]
url = 'http://localhost:8000' # Chroma
embedder = "none"
"""


@pytest.mark.parametrize(
    ("name", "value", "before", "after"),
    [
        ("model", 'a "b"\\c', 'model = "qwen"   #', 'model = "a \\"b\\"\\\\c"   #'),
        ("window", 4096, "window = 2_048 #", "window = 4096 #"),
        ("tune", True, "tune = false", "tune = true"),
        ("memory_url", "", "url = 'http://localhost:8000' #", 'url = "" #'),
        ("memory_embedder", "字", 'embedder = "none"', 'embedder = "\\u5b57"'),
        ("slots", 4, "tune = false\n", "tune = false\nslots = 4\n"),
        ("memory_summaries", True, "tune = false\n", "tune = false\nmemory_summaries = true\n"),
        ("idle_exit_s", 1.5, "tune = false\n", "tune = false\nidle_exit_s = 1.5\n"),
    ],
)
def test_only_the_setting_is_changed(name: str, value: toml.Value, before: str, after: str) -> None:
    assert FILE.count(before) == 1
    text = toml.changed(FILE, name, value)
    assert text == FILE.replace(before, after)
    assert toml.flat(text)[name] == value
    assert toml.changed(text, name, value) == text


@pytest.mark.parametrize("name", ["window", "memory_url"])
def test_a_setting_is_taken_out_with_its_line(name: str) -> None:
    text = toml.changed(FILE, name, None)
    assert name not in toml.flat(text)
    assert len(text.splitlines()) == len(FILE.splitlines()) - 1
    assert toml.changed(text, name, None) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "slots = 4\n"),
        ("window = 512", "window = 512\nslots = 4\n"),
        ("# nothing yet\n", "# nothing yet\nslots = 4\n"),
        ("[memory]\nurl = ''\n", "slots = 4\n[memory]\nurl = ''\n"),
        ("# of Chroma\n[memory]\nurl = ''\n", "slots = 4\n# of Chroma\n[memory]\nurl = ''\n"),
        ('model = "a # b"\r\n', 'model = "a # b"\r\nslots = 4\n'),
    ],
)
def test_a_new_setting_comes_before_the_tables(text: str, wanted: str) -> None:
    assert toml.changed(text, "slots", 4) == wanted
    assert tomllib.loads(wanted)["slots"] == 4


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('model = """\nqwen"""\n', "model"),
        ('memory.url = "x"\n', "memory_url"),
        ("memory = {url = 'x'}\n", "memory_url"),
        ('"model" = "x"\n', "model"),
    ],
)
def test_a_form_that_is_not_known_is_refused_and_not_damaged(text: str, name: str) -> None:
    with pytest.raises(SyscallError, match="cannot edit"):
        toml.changed(text, name, "y")


def test_a_file_that_is_no_toml_is_refused() -> None:
    with pytest.raises(SyscallError, match="not valid TOML"):
        toml.changed("model = \n", "window", 512)
