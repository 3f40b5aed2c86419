"""Settings: where a value comes from, and tables of the file."""

from pathlib import Path

import pytest

from llmasos.kernel import config
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.paths import Paths


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(*(tmp_path / name for name in ("runtime", "state", "cache", "config")))


def write(paths: Paths, text: str) -> None:
    paths.config.mkdir()
    paths.config_file.write_text(text, encoding="utf-8")


def test_a_table_of_the_file_names_its_settings(paths: Paths) -> None:
    write(paths, '[memory]\nurl = "http://localhost:8000"\nembedder = "none"\n')
    found, listed = config.load(paths, {})
    assert (found.memory_url, found.memory_embedder) == ("http://localhost:8000", "none")
    origins = {setting.name: setting.origin for setting in listed}
    assert origins["memory_url"] == str(paths.config_file)
    assert origins["memory_summaries"] == "default"


def test_a_flag_goes_before_the_environment_and_that_before_the_file(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(paths, "window = 512\nslots = 3\nthreads = 1\n")
    monkeypatch.setenv("LLMASOS_SLOTS", "4")
    monkeypatch.setenv("LLMASOS_THREADS", "2")
    found, _ = config.load(paths, {"threads": "3"})
    assert (found.window, found.slots, found.threads) == (512, 4, 3)


@pytest.mark.parametrize("text", ["[memory]\nurll = 'x'\n", "memory_urll = 'x'\n", "memory = 3\n"])
def test_an_unknown_setting_is_named_with_its_origin(paths: Paths, text: str) -> None:
    write(paths, text)
    with pytest.raises(SyscallError) as caught:
        config.load(paths, {})
    assert caught.value.errno is Errno.EINVAL
    assert str(paths.config_file) in caught.value.message


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("idle_exit_s", "abc", "want a number"),
        ("idle_exit_s", "0.5", "want 1 or more"),
        ("idle_exit_s", "nan", "want"),
        ("slots", "1.5", "want a whole number"),
        ("slots", "0", "want 1 or more"),
        ("slots", "1000000", "want 256 or less"),
        ("slots", "9" * 5_000, "want a smaller number"),
        ("mount", "maybe", "want true or false"),
    ],
)
def test_a_wrong_value_says_what_is_wanted(paths: Paths, name: str, text: str, words: str) -> None:
    with pytest.raises(SyscallError, match=words) as caught:
        config.load(paths, {name: text})
    assert caught.value.message.startswith(f"{name} = '")
    assert "Input" not in caught.value.message
    write(paths, f"{name} = [1]\n")
    with pytest.raises(SyscallError, match="want") as caught:
        config.load(paths, {})
    assert "Input" not in caught.value.message
