"""Records in the cache folder: stored, loaded, damaged, and written at the same time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.store.state import (
    SCHEMA,
    State,
    default_folder,
    digest,
    identity,
    write_atomically,
)


class Kept(NamedTuple):
    n: int = 0
    text: str = ""
    more: tuple[float | None, ...] = ()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def state(folder: Path) -> State:
    return State(str(folder))


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def colliding_keys() -> tuple[str, str]:
    """Return two keys with the same digest, which is a remainder."""
    key = "a key of more than 64 bits"
    number = int.from_bytes(key.encode(), "big") + (1 << 64) - 59
    other = os.fsdecode(number.to_bytes(len(key), "big"))
    assert key != other and digest(key) == digest(other)
    return key, other


def test_a_new_folder_has_no_records_and_is_not_created(state: State, folder: Path) -> None:
    assert state.load("model", "k", Kept) is None
    assert state.warning is None
    assert not folder.exists()


def test_a_stored_record_is_loaded(state: State) -> None:
    kept = Kept(-3, '\u00e4 "\\\n\U0001f40d', (1.5, None, -2.5e300, 0.0))
    state.store("model", "k", kept)
    assert state.load("model", "k", Kept) == kept
    assert State(state.folder).load("model", "k", Kept) == kept
    assert state.warning is None


def test_kinds_and_keys_do_not_mix(state: State) -> None:
    state.store("model", "k", Kept(1))
    state.store("engine", "k", Kept(2))
    state.store("model", "l", Kept(3))
    found = [
        state.load(*where, Kept) for where in (("model", "k"), ("engine", "k"), ("model", "l"))
    ]
    assert [record and record.n for record in found] == [1, 2, 3]


def test_storing_again_replaces_the_record(state: State, folder: Path) -> None:
    for number in range(3):
        state.store("model", "k", Kept(number))
    record = state.load("model", "k", Kept)
    assert record is not None
    assert record.n == 2
    assert only_file(folder).suffix == ".json"


def test_keys_with_the_same_digest_are_not_confused(state: State, folder: Path) -> None:
    first, second = colliding_keys()
    state.store("model", first, Kept(1))
    assert state.load("model", second, Kept) is None
    state.store("model", second, Kept(2))
    assert state.load("model", first, Kept) is None
    record = state.load("model", second, Kept)
    assert record is not None
    assert record.n == 2
    assert only_file(folder)


def test_similar_keys_have_different_digests() -> None:
    paths = [f"/models/{number:04}/{end}" for number in range(500) for end in ("a.gguf", "b.gguf")]
    swapped = ["ab" + "." * 62 + "cd", "cd" + "." * 62 + "ab", "ba" + "." * 62 + "dc"]
    assert len({digest(key) for key in paths + swapped}) == len(paths) + len(swapped)


def test_all_records_of_a_kind_are_loaded(state: State, folder: Path) -> None:
    assert state.load_all("model", Kept) == {}
    for key in ("a", "b", "c", "d"):
        assert state.store("model", key, Kept(text=key))
    state.store("engine", "a", Kept(9))
    (folder / f"model-{digest('b')}.json").write_text("{")
    (folder / f"model-{digest('c')}.json").write_text('{"schema": 99}')
    (folder / f"model-{digest('d')}.json.123.tmp").write_text("half")
    found = state.load_all("model", Kept)
    assert {mark: record.text for mark, record in found.items()} == {
        digest("a"): "a",
        digest("d"): "d",
    }
    assert (folder / f"model-{digest('b')}.json.broken").exists()
    assert (folder / f"model-{digest('c')}.json").exists()


def test_a_record_is_of_the_version_that_it_was_stored_as(state: State) -> None:
    state.store("model", "k", Kept(1), version=3)
    assert state.load("model", "k", Kept, version=3) == Kept(1)
    assert state.load("model", "k", Kept) is None


def test_a_kind_is_held_only_where_a_file_of_that_very_kind_is(state: State) -> None:
    assert not state.holds("model")
    state.store("models", "a", Kept(1))
    assert (state.holds("models"), state.holds("model")) == (True, False)


def test_versions_of_a_file_are_told_apart_by_size_and_nanoseconds(tmp_path: Path) -> None:
    path = tmp_path / "x"
    seen = set()
    for content, moment in (("a", 10**18), ("a", 10**18 + 1000), ("ab", 10**18)):
        path.write_text(content)
        os.utime(path, ns=(moment, moment))
        seen.add(identity(str(path)))
    assert len(seen) == 3


def test_a_record_in_the_file_of_another_key_is_not_listed(state: State, folder: Path) -> None:
    state.store("model", "a", Kept(1))
    only_file(folder).rename(folder / f"model-{digest('b')}.json")
    assert state.load_all("model", Kept) == {}


def test_a_key_need_not_be_utf_8(state: State) -> None:
    key = os.fsdecode(b"/models/\xff.gguf")
    state.store("model", key, Kept(text=key))
    record = state.load("model", key, Kept)
    assert record is not None
    assert record.text == key


def test_a_file_of_another_version_is_left_alone(state: State, folder: Path) -> None:
    state.store("model", "k", Kept(1))
    path = only_file(folder)
    path.write_text(path.read_text().replace(f'"schema": {SCHEMA}', '"schema": 99'))
    assert state.load("model", "k", Kept) is None
    assert state.warning is None
    assert path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"schema": 1, "key": "k", ',
        b"[1, 2]",
        b"[1,]",
        b"{} {}",
        b'{"a" 1}',
        b"nul",
        b'"\n"',
        b"null",
        b'"text"',
        b"\xff\xfe\x00",
        b"\0" * 100,
        b"[" * 100_000,
        b"[" + b"9" * 5000 + b"]",
        b" " * (5 << 20),
    ],
    ids=lambda content: repr(content[:8]),
)
def test_a_damaged_file_is_renamed(state: State, folder: Path, content: bytes) -> None:
    state.store("model", "k", Kept(1))
    path = only_file(folder)
    path.write_bytes(content)
    assert state.load("model", "k", Kept) is None
    assert state.warning is not None
    assert str(path) in state.warning
    assert only_file(folder).read_bytes() == content
    assert only_file(folder).name == f"{path.name}.broken"
    state.store("model", "k", Kept(2))
    again = State(state.folder)
    assert again.load("model", "k", Kept) is not None
    assert again.warning is None


def test_only_the_first_warning_is_kept(state: State, folder: Path) -> None:
    for key in "ab":
        state.store("model", key, Kept())
    for path in folder.iterdir():
        path.write_text("?")
    assert state.load("model", "a", Kept) is None
    first = state.warning
    assert state.load("model", "b", Kept) is None
    assert state.warning == first


def test_an_impossible_folder_is_a_warning_with_a_remedy(tmp_path: Path) -> None:
    # A folder below a regular file is impossible for root, too.
    (tmp_path / "file").touch()
    state = State(str(tmp_path / "file" / "state"))
    state.store("model", "k", Kept(1))
    assert state.warning is not None
    assert "cannot save" in state.warning and "BITNET_TUNING_HOME" in state.warning
    assert state.load("model", "k", Kept) is None


def test_an_unreadable_folder_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    state = State(str(tmp_path / "file" / "state"))
    assert state.load("model", "k", Kept) is None
    assert state.warning is not None
    assert "cannot read" in state.warning


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_read_only_folder_is_a_warning(state: State, folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o500)
    state.store("model", "k", Kept(1))
    assert state.warning is not None
    assert list(folder.iterdir()) == []


def test_a_folder_in_place_of_a_file_is_left_alone(state: State, folder: Path) -> None:
    state.store("model", "k", Kept(1))
    path = only_file(folder)
    path.unlink()
    (path / "in the way").mkdir(parents=True)
    assert state.load("model", "k", Kept) is None
    state.store("model", "k", Kept(2))
    assert state.warning is not None
    assert only_file(folder) == path


def test_a_full_disk_leaves_no_other_file(
    state: State, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.store("model", "k", Kept(1))
    path = only_file(folder)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    state.store("model", "k", Kept(2))
    assert state.warning is not None
    assert "No space left" in state.warning
    assert only_file(folder).read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="no named pipes")
def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(str(pipe), b"data")
    assert os.read(reader, 10) == b"data"
    os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.skipif(os.name == "nt", reason="no named pipes")
def test_our_stdout_is_written_into_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with open(out, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        print("before")
        write_atomically(str(out), b"data\n")
        print("after")
    assert out.read_text() == "before\ndata\nafter\n"


def test_a_link_to_a_file_stays_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("older")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_atomically(str(tmp_path / "link"), b"data")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "data"


def test_an_interrupt_leaves_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(str(tmp_path / "x"), b"data")
    assert list(tmp_path.glob("x*")) == []


def test_processes_with_the_same_id_use_different_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers that share a folder may all run as process 1."""
    drafts: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "getpid", lambda: 1)

    def noted(draft: str, path: str) -> None:
        drafts.append(draft)
        replace(draft, path)

    monkeypatch.setattr(os, "replace", noted)
    for _ in range(5):
        write_atomically(str(tmp_path / "x"), b"data")
    assert len(set(drafts)) == 5
    assert {os.path.dirname(draft) for draft in drafts} == {str(tmp_path)}


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o644)])
def test_the_umask_is_respected(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(str(tmp_path / "x"), b"data")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == mode


WRITER = """
import sys
from bitnet_tuning.store.state import State
from tests.test_state import Kept
state = State(sys.argv[1])
for number in range(30):
    state.store("model", "k", Kept(int(sys.argv[2]), sys.argv[2] * (2000 + 180 * number)))
    record = state.load("model", "k", Kept)
    assert record and set(record.text) == {str(record.n)}, record
assert state.warning is None, state.warning
"""


def test_writers_at_the_same_time_leave_complete_records(folder: Path, repository: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(writer)],
            cwd=repository,
            stderr=subprocess.PIPE,
        )
        for writer in range(3)
    ]
    try:
        for process in writers:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in writers:
            process.kill()
            process.wait()
    record = json.loads(only_file(folder).read_text())
    assert set(record["text"]) == {str(record["n"])}


# The folder


def test_bitnet_tuning_home_names_the_folder(tmp_path: Path) -> None:
    environ = {"BITNET_TUNING_HOME": str(tmp_path), "XDG_CACHE_HOME": "/cache", "HOME": "/home/x"}
    assert default_folder(environ) == str(tmp_path)


def test_a_relative_folder_is_made_absolute() -> None:
    assert default_folder({"BITNET_TUNING_HOME": "here"}) == os.path.join(os.getcwd(), "here")


def test_the_folder_is_in_the_users_cache() -> None:
    assert default_folder({"XDG_CACHE_HOME": "/cache"}) == os.path.join("/cache", "bitnet-tuning")


@pytest.mark.parametrize("cache", [None, "", "relative/cache"])
def test_the_users_cache_is_below_the_home_folder_by_default(
    monkeypatch: pytest.MonkeyPatch, cache: str | None
) -> None:
    """A relative XDG_CACHE_HOME must be ignored (XDG base directory specification)."""
    monkeypatch.setenv("HOME", "/home/x")
    environ = {} if cache is None else {"XDG_CACHE_HOME": cache, "BITNET_TUNING_HOME": ""}
    assert default_folder(environ) == "/home/x/.cache/bitnet-tuning"


def test_a_cut_file_is_set_aside_by_a_program_without_json(tmp_path: Path) -> None:
    """CPython's scanner fails in another way before ``json`` is imported."""
    state = State(str(tmp_path))
    state.store("model", "key", Kept(1))
    path = Path(state.path("model", digest("key")))
    path.write_bytes(path.read_bytes()[:20])
    code = (
        "import sys; from bitnet_tuning.store.state import State; "
        "from bitnet_tuning.machine.host import Crowding; "
        f"print('json' in sys.modules); state = State({str(tmp_path)!r}); "
        "print(state.load('model', 'key', Crowding))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = [sys.executable, "-S", "-c", code]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "None"]
    assert [each.name for each in tmp_path.iterdir()] == [f"{path.name}.broken"]
