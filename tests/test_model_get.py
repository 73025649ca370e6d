"""``python3 -m bitnet_tuning model get``, against a server of its own in place of the Hub."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY as CHECKOUT
from tests.fake_hub import FakeHub, fake_hub
from tests.gguf_files import write_bitnet, write_gguf

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="needs huggingface_hub"
)

REPO, FILE = "microsoft/BitNet-b1.58-2B-4T-gguf", "ggml-model-i2_s.gguf"
PLACE = f"models/BitNet-b1.58-2B-4T/{FILE}"
CHUNK = 10 << 20
"""Bytes that huggingface_hub writes at a time (its DOWNLOAD_CHUNK_SIZE)."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A server with a model in the repo that is the default."""
    with fake_hub(REPO) as server:
        server.files = {"README.md": b"text", FILE: write_bitnet(tmp_path / "m").read_bytes()}
        yield server


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the package and run_inference.py, as in a checkout of BitNet."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "bitnet_tuning").symlink_to(CHECKOUT / "bitnet_tuning", target_is_directory=True)
    (folder / "run_inference.py").symlink_to(CHECKOUT / "run_inference.py")
    return folder


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bitnet_tuning", "model", "get", *arguments]


def variables(checkout: Path, url: str, **more: str) -> dict[str, str]:
    home = str(checkout.parent / "hf")
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    return {**os.environ, "HF_ENDPOINT": url, "HF_HOME": home, **quiet, **more}


def get(
    checkout: Path, url: str, *arguments: str, before: Sequence[str] = (), **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, *command(*arguments)],
        cwd=checkout,
        env=variables(checkout, url, **more),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def failure(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Return the error of a run, which ended with one or two lines and this exit code."""
    assert done.returncode == code, done.stderr
    cause = done.stderr.partition("bitnet-tuning: error: ")[2]
    assert 0 < len(cause.splitlines()) < 3, done.stderr
    return cause


def test_the_default_is_downloaded_to_where_a_run_finds_it(checkout: Path, hub: FakeHub) -> None:
    done = get(checkout, hub.url)
    assert done.returncode == 0, done.stderr
    path = checkout / PLACE
    assert path.read_bytes() == hub.files[FILE]
    assert done.stderr == f"bitnet-tuning: downloading 15.8 MiB to {path}\n"
    assert done.stdout.startswith(f"{path}\nsmall, bitnet-b1.58, i2_s")
    assert f"-m bitnet_tuning model slim {path}\n" in done.stdout
    assert done.stdout.endswith(' -m bitnet_tuning run -p "Your prompt here"\n')
    assert [each.name for each in path.parent.iterdir()] == [FILE]


def test_a_file_that_is_there_is_not_downloaded_again(checkout: Path, hub: FakeHub) -> None:
    path = checkout / PLACE
    path.parent.mkdir(parents=True)
    path.write_bytes(hub.files[FILE])
    done = get(checkout, hub.url)
    assert (done.returncode, hub.ranges) == (0, [])
    assert done.stderr == f"bitnet-tuning: {path} is there already\n"


@pytest.mark.parametrize("more", [b"", b"x"])
def test_a_file_that_differs_stays_as_it_is(checkout: Path, hub: FakeHub, more: bytes) -> None:
    path = checkout / PLACE
    path.parent.mkdir(parents=True)
    other = bytes(len(hub.files[FILE])) + more
    path.write_bytes(other)
    cause = failure(get(checkout, hub.url), 1)
    assert cause.startswith(f"{path} differs from the file in {REPO}\n")
    assert (path.read_bytes(), hub.ranges) == (other, [])


def test_another_repo_has_a_folder_of_its_name(checkout: Path, hub: FakeHub) -> None:
    hub.repository, name = "someone/Falcon3-1B-GGUF", "sub/Falcon3-i2_s.gguf"
    hub.files = {name: hub.files[FILE]}
    done = get(checkout, hub.url, hub.repository)
    path = checkout / "models/Falcon3-1B/Falcon3-i2_s.gguf"
    assert path.is_file(), done.stderr
    assert done.stdout.endswith(' -m bitnet_tuning run -p "Your prompt here"\n'), "the only"
    get(checkout, hub.url, hub.repository)  # it is there already
    write_bitnet(checkout / "models" / "another-i2_s.gguf")
    done = get(checkout, hub.url, hub.repository)
    assert f"-m bitnet_tuning run -m {path} -p" in done.stdout


def test_without_a_name_the_only_i2_s_file_is_taken(checkout: Path, hub: FakeHub) -> None:
    hub.files = {"a-f16.gguf": b"", "a-I2_S.gguf": hub.files[FILE], "config.json": b""}
    assert get(checkout, hub.url, REPO).returncode == 0
    assert [each.name for each in (checkout / PLACE).parent.iterdir()] == ["a-I2_S.gguf"]
    cause = failure(get(checkout, hub.url, REPO, "a-q8.gguf"), 3)
    assert cause.startswith(f"there is no such file in {hub.url}/{REPO}\n")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["a-f16.gguf", "a-q8_0.gguf"],
            "has several models\n  name one of them after the repo: a-f16",
        ),
        (["a-i2_s.gguf", "b-i2_s.gguf", "b.gguf"], "repo: a-i2_s.gguf, b-i2_s.gguf\n"),
        (["model.safetensors"], f"{REPO} has no GGUF file\n"),
    ],
)
def test_without_one_choice_the_files_are_listed(
    checkout: Path, hub: FakeHub, names: list[str], message: str
) -> None:
    hub.files = dict.fromkeys(names, b"")
    assert message in failure(get(checkout, hub.url), 3)


def large(folder: Path) -> bytes:
    """Return a model of two and a half chunks."""
    tensors = (("blk.0.w", (1024, 6400), "f32"),)
    return write_gguf(folder / "large", {}, tensors).read_bytes()


def test_a_broken_connection_is_resumed(checkout: Path, hub: FakeHub) -> None:
    hub.files[FILE], hub.cut = large(checkout.parent), CHUNK
    # Older versions of huggingface_hub leave it to the next call.
    while (done := get(checkout, hub.url)).returncode and len(hub.ranges) < 3:
        assert "cannot download" in failure(done, 1)
    assert done.returncode == 0, done.stderr
    assert (checkout / PLACE).read_bytes() == hub.files[FILE]
    assert hub.ranges == [None, f"bytes={CHUNK}-", f"bytes={2 * CHUNK}-"]


@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
def test_the_next_call_continues_after_ctrl_c(checkout: Path, hub: FakeHub) -> None:
    hub.files[FILE], hub.cut, hub.hangs = large(checkout.parent), CHUNK + 5, True
    with subprocess.Popen(
        command(),
        cwd=checkout,
        env=variables(checkout, hub.url),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert hub.reached.wait(60)
        partial = checkout / f"{PLACE}.incomplete"
        while partial.stat().st_size < CHUNK and process.poll() is None:
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("bitnet-tuning: 10.0 MiB are kept; the same command continues there\n")
    assert not (checkout / PLACE).exists()
    hub.cut = None
    assert get(checkout, hub.url).returncode == 0
    assert hub.ranges == [None, f"bytes={CHUNK}-"]
    assert (checkout / PLACE).read_bytes() == hub.files[FILE]
    assert not partial.exists()


def test_a_wrong_checksum_is_an_error_and_nothing_stays(checkout: Path, hub: FakeHub) -> None:
    hub.etag = "0" * 64
    assert "had a wrong checksum" in failure(get(checkout, hub.url), 1)
    assert list((checkout / PLACE).parent.iterdir()) == []


def test_without_a_checksum_the_file_must_be_a_model(checkout: Path, hub: FakeHub) -> None:
    whole, hub.etag = hub.files[FILE], "short"
    hub.files[FILE] = b"<html>" + bytes(1000)
    cause = failure(get(checkout, hub.url), 1)
    assert cause.startswith("what was downloaded is not a model but ")
    assert list((checkout / PLACE).parent.iterdir()) == []
    partial = checkout / f"{PLACE}.incomplete"
    partial.write_bytes(b"rest of another file")
    hub.files[FILE], hub.ranges = whole, []
    assert get(checkout, hub.url).returncode == 0
    assert (hub.ranges, (checkout / PLACE).read_bytes()) == ([None], whole)


@pytest.mark.parametrize("name", ["..", "a/", "b/.."])
def test_a_name_that_no_file_has_is_refused(checkout: Path, hub: FakeHub, name: str) -> None:
    hub.files[name] = b"x"
    assert failure(get(checkout, hub.url, REPO, name), 2).startswith(f"no such file in {REPO}")
    assert not (checkout / "models").exists()


def test_closed_streams_do_not_matter(checkout: Path, hub: FakeHub) -> None:
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh"]
    assert get(checkout, hub.url, before=shell).returncode == 0
    assert (checkout / PLACE).read_bytes() == hub.files[FILE]


def test_no_password_of_the_endpoint_is_printed(checkout: Path) -> None:
    cause = failure(get(checkout, "http://user:secret@127.0.0.1:1"), 1)
    assert cause.startswith("cannot download from http://127.0.0.1:1: ")
    assert "secret" not in cause


def test_the_rest_of_an_earlier_version_is_not_continued(checkout: Path, hub: FakeHub) -> None:
    partial = checkout / f"{PLACE}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(len(hub.files[FILE]) + 1))
    assert get(checkout, hub.url).returncode == 0
    assert (checkout / PLACE).read_bytes() == hub.files[FILE]


def test_a_file_that_is_no_model_is_named_and_kept(checkout: Path, hub: FakeHub) -> None:
    hub.files[FILE] = b"<!DOCTYPE html>"
    assert str(checkout / PLACE) in failure(get(checkout, hub.url), 3)
    assert (checkout / PLACE).is_file()


@pytest.mark.parametrize(
    ("refusal", "code", "message"),
    [
        (
            (401, "RepoNotFound"),
            3,
            "does not exist, or you may not read it (HTTP 401 RepoNotFound)\n",
        ),
        ((404, "RepoNotFound"), 3, "(HTTP 404 RepoNotFound)\n"),
        ((403, "GatedRepo"), 3, "(HTTP 403 GatedRepo)\n  check the name; accept its conditions"),
        ((503, ""), 1, "answered: HTTP 503\n  try again later"),
    ],
)
def test_a_refusal_is_explained(
    checkout: Path, hub: FakeHub, refusal: tuple[int, str], code: int, message: str
) -> None:
    hub.refusal = refusal
    assert message in failure(get(checkout, hub.url), code)
    assert not (checkout / "models").exists()


def test_what_makes_no_connection_is_explained(checkout: Path) -> None:
    nobody = "http://127.0.0.1:1"
    cause = failure(get(checkout, nobody), 1)
    assert cause.startswith(f"cannot download from {nobody}: ")
    assert "HTTPS_PROXY and HF_ENDPOINT" in cause
    assert "offline mode is enabled" in failure(get(checkout, nobody, HF_HUB_OFFLINE="1"), 1)
    assert failure(get(checkout, nobody, "a/b/c"), 2).startswith("no such repo: a/b/c\n")


def test_a_token_that_is_none_is_named(checkout: Path, hub: FakeHub) -> None:
    cause = failure(get(checkout, hub.url, HF_TOKEN="hf_Größe"), 2)
    assert cause.startswith("your Hugging Face token holds characters that no token has\n")
    assert "HF_TOKEN" in cause


def test_too_little_room_is_seen_before(checkout: Path, hub: FakeHub) -> None:
    hub.size = 1 << 60
    cause = failure(get(checkout, hub.url), 1)
    assert cause.startswith(f"no room in {(checkout / PLACE).parent}: 1073741824 GiB to download, ")
    assert hub.ranges == []


LIMITED = ("bash", "-c", 'ulimit -f 12000 && exec "$@"', "bash")
"""The beginning of a command that may write files of up to 12 MB."""
SMALL = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=16m x models && exec "$@"', "sh")
"""The beginning of a command whose folder models has 16 MiB."""


@pytest.mark.parametrize(("before", "remedy"), [(LIMITED, "`ulimit -f`"), (SMALL, "make room")])
def test_a_full_disk_keeps_what_was_downloaded(
    checkout: Path, hub: FakeHub, before: tuple[str, ...], remedy: str
) -> None:
    (checkout / "models").mkdir()
    if (
        shutil.which(before[0]) is None
        or subprocess.run(
            [*before, "true"], cwd=checkout, capture_output=True, check=False
        ).returncode
    ):
        pytest.skip(f"{before[0]} cannot be used here")
    hub.files[FILE], hub.size = large(checkout.parent), CHUNK + 5
    done = get(checkout, hub.url, before=before)
    cause = failure(done, 1)
    assert cause.startswith("cannot write the model: ")
    assert remedy in cause
    assert " MiB are kept; the same command continues there\n" in done.stderr


def test_a_folder_that_cannot_be_written_is_named(checkout: Path, hub: FakeHub) -> None:
    (checkout / "models").write_bytes(b"")
    cause = failure(get(checkout, hub.url), 1)
    assert cause.startswith("cannot write the model: ")
    assert str(checkout / "models") in cause


def test_a_second_download_at_once_is_refused(checkout: Path, hub: FakeHub) -> None:
    hub.cut, hub.hangs = 5, True
    with subprocess.Popen(
        command(), cwd=checkout, env=variables(checkout, hub.url), stderr=subprocess.DEVNULL
    ) as process:
        assert hub.reached.wait(60)
        cause = failure(get(checkout, hub.url), 1)
        process.kill()
    assert cause.startswith(f"another process is downloading {checkout / PLACE}\n")


def test_without_huggingface_hub_the_command_that_installs_it_is_named(checkout: Path) -> None:
    (checkout / "huggingface_hub.py").write_text("raise ImportError('not here')")
    cause = failure(get(checkout, "http://127.0.0.1:1"), 3)
    assert cause.endswith(f"install it: {sys.executable} -m pip install -U huggingface_hub\n")
