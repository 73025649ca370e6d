"""Download published models through huggingface_hub, which knows proxies, tokens and mirrors."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from shlex import quote
from typing import Any

from bitnet_tuning.console import say, size_text
from bitnet_tuning.errors import MissingError, TuningError, UsageError, cause_of
from bitnet_tuning.launch.failure import shorten
from bitnet_tuning.model.find import REPOSITORY
from bitnet_tuning.model.gguf import read_model
from bitnet_tuning.model.types import I2_S
from bitnet_tuning.store.state import hold_named

_LONGEST = 400
"""Most characters of a server's text that are shown."""

_ROOM = "make room, or replace the folder models with a link to one on another disk"


def get_model(repository: str, file: str | None, folders: Sequence[str]) -> str:
    """Return the path of a published model. Download it unless it is there already: below one of
    ``folders``, in ``models/`` and a folder named after the repo. Without ``file``, it is the
    repo's only GGUF file, or its only i2_s file. Raise TuningError."""
    try:
        import huggingface_hub as hub  # noqa: PLC0415 (an extra)
        from huggingface_hub.errors import HFValidationError  # noqa: PLC0415
    except ImportError as error:
        why = f"downloading a model needs huggingface_hub 0.25 or later ({error})"
        remedy = f"install it: {quote(sys.executable)} -m pip install -U huggingface_hub"
        marker = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
        if sys.prefix == sys.base_prefix and os.path.exists(marker):  # pip refuses (PEP 668)
            pip = "python3 -m venv .venv && .venv/bin/pip install huggingface_hub"
            remedy = f"install it: {pip} && .venv/bin/python -m bitnet_tuning model get"
        raise MissingError(why, remedy) from error
    if file is not None and os.path.basename(file) in ("", ".", ".."):
        raise UsageError(f"no such file in {repository}: {file}", "name a .gguf file")
    try:
        # HF_TOKEN, or the file that `hf auth login` writes; anything else fits in no HTTP header.
        if not all("!" <= letter <= "~" for letter in hub.get_token() or ""):
            cause = "your Hugging Face token holds characters that no token has"
            raise UsageError(cause, "copy it again into HF_TOKEN, or run: hf auth login")
        name = file or _choose(repository, hub.model_info(repository).siblings or ())
        facts = hub.get_hf_file_metadata(hub.hf_hub_url(repository, name))
        if not facts.commit_hash:
            raise ConnectionError("what answers is not the Hugging Face Hub")
        path = _place(repository, name, folders)
        # The Hub's ETag of a large file is its SHA-256.
        checksum = facts.etag if len(facts.etag or "") == 64 else None
        if sys.stderr is None:  # where huggingface_hub would draw its bars
            hub.utils.disable_progress_bars()
        if not os.path.exists(path):
            url = hub.hf_hub_url(repository, name, revision=facts.commit_hash)
            _download(url, path, facts.size, checksum)
        elif _differs(path, facts.size, checksum):
            cause = f"{path} differs from the file in {repository}"
            raise TuningError(cause, "to download that, move it away")
        else:
            say(f"{path} is there already")
    except TuningError:
        raise
    except HFValidationError as error:
        raise UsageError(f"no such repo: {repository}", f"name one like {REPOSITORY}") from error
    except Exception as error:  # of its HTTP library, which is another one in each generation
        raise _explained(error, repository, hub.constants.ENDPOINT) from error
    return path


def _choose(repository: str, entries: Sequence[Any]) -> str:
    files = [entry.rfilename for entry in entries if entry.rfilename.lower().endswith(".gguf")]
    found = [name for name in files if I2_S in name.lower() or len(files) == 1]
    if len(found) == 1:
        return str(found[0])
    listed = "name one of them after the repo: " + shorten(", ".join(found or files), _LONGEST)
    count = "several models" if files else "no GGUF file"
    raise MissingError(f"{repository} has {count}", listed if files else "name another repo")


def _place(repository: str, name: str, folders: Sequence[str]) -> str:
    """Return the path at which a run finds the model: where it is already, beside the
    run_inference.py in one of ``folders``, else below the current folder."""
    # As upstream's setup_env.py names the folder.
    model = repository.rpartition("/")[2]
    model = model[:-5] if model.lower().endswith("-gguf") else model
    below = os.path.join("models", model, os.path.basename(name))
    there = [folder for folder in folders if os.path.exists(os.path.join(folder, below))]
    scripts = [each for each in folders if os.path.isfile(os.path.join(each, "run_inference.py"))]
    writable = [folder for folder in scripts if os.access(folder, os.W_OK)]
    return os.path.join([*there, *writable, os.getcwd()][0], below)


def _download(url: str, path: str, size: int | None, checksum: str | None) -> None:
    # hf_hub_download deletes what it has when it is interrupted (huggingface_hub 2.4); http_get, on
    # which it builds, continues a file.
    from huggingface_hub.file_download import http_get  # noqa: PLC0415 (an extra)
    from huggingface_hub.utils import build_hf_headers  # noqa: PLC0415

    folder, partial = os.path.dirname(path), f"{path}.incomplete"
    os.makedirs(folder, exist_ok=True)
    with open(partial, "ab") as file:
        if not hold_named(file, partial):
            raise TuningError(f"another process is downloading {path}", "wait until it has ended")
        # It may be of an earlier version of the file, which only a checksum shows afterwards.
        done = file.seek(0, os.SEEK_END)
        if not checksum or (size is not None and done > size):
            done = file.truncate(0)
        missing, free = (size or 0) - done, shutil.disk_usage(folder).free
        if missing > free:
            lack = f"{size_text(missing)} to download, {size_text(free)} free"
            raise TuningError(f"no room in {folder}: {lack}", _ROOM)
        say(f"downloading {size_text(missing)} to {path}")
        more = {"headers": build_hf_headers(), "displayed_filename": os.path.basename(path)}
        try:
            http_get(url, file, resume_size=done, expected_size=size, **more)
        except BaseException:
            if checksum and file.tell():
                say(f"{size_text(file.tell())} are kept; the same command continues there")
            raise
    if _differs(partial, size, checksum):
        os.unlink(partial)
        cause = f"the download of {url} had a wrong checksum; it was deleted"
        raise TuningError(cause, "download it again")
    if not checksum and path.lower().endswith(".gguf"):
        try:
            read_model(partial)
        except MissingError as error:
            os.unlink(partial)
            cause = error.cause.replace(partial, "what was downloaded")
            raise TuningError(f"{cause}; it was deleted", "download it again") from error
    os.replace(partial, path)


def _differs(path: str, size: int | None, checksum: str | None) -> bool:
    """Return whether a file is known to differ from the published one, in size or checksum."""
    from huggingface_hub.utils.sha import sha_fileobj  # noqa: PLC0415 (an extra)

    if size is not None and os.path.getsize(path) != size:
        return True
    with open(path, "rb") as file:
        return checksum is not None and sha_fileobj(file).hex() != checksum


def _explained(error: Exception, repository: str, endpoint: str) -> TuningError:
    """Return cause and remedy of an error of huggingface_hub, its HTTP library or the system."""
    if isinstance(error, OSError) and isinstance(error.errno, int):
        access = "check permissions and `ulimit -f`, or run this in another folder"
        remedy = _ROOM if error.errno in (errno.ENOSPC, errno.EDQUOT) else access
        return TuningError(f"cannot write the model: {cause_of(error)}", remedy)
    answer: Any = getattr(error, "response", None)
    scheme, _, place = endpoint.partition("://")
    endpoint = f"{scheme}://{place.rpartition('@')[2]}"  # without a password
    page = f"{endpoint}/{repository}"
    if answer is None:
        why = cause_of(error).partition("\n")[0]
        remedy = "check the network, HTTPS_PROXY and HF_ENDPOINT, and run the same command again"
        return TuningError(f"cannot download from {endpoint}: {why}", remedy)
    code, text = (answer.headers.get(f"X-Error-{part}", "") for part in ("Code", "Message"))
    said = shorten(" ".join(filter(None, (f"HTTP {answer.status_code}", code, text))), _LONGEST)
    if code == "EntryNotFound":
        return MissingError(f"there is no such file in {page}", f"its files: {page}/tree/main")
    if answer.status_code in (401, 403, 404):
        hint = "check the name; accept its conditions there, and set HF_TOKEN or run: hf auth login"
        return MissingError(f"{page} does not exist, or you may not read it ({said})", hint)
    return TuningError(f"{endpoint} answered: {said}", "try again later")
