"""Write a copy of a model with a smaller embedding by llama-quantize, and check it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from shutil import disk_usage
from typing import BinaryIO

from bitnet_tuning.console import GIBIBYTE, Progress, clock, size_text
from bitnet_tuning.errors import MissingError, UnsupportedError, UsageError
from bitnet_tuning.launch.background import Captured, serve
from bitnet_tuning.launch.failure import failure
from bitnet_tuning.launch.start import Launch
from bitnet_tuning.model import types
from bitnet_tuning.model.find import MARK
from bitnet_tuning.model.gguf import read_metadata, read_tensors
from bitnet_tuning.model.types import EMBEDDING, OUTPUT, TERNARY, ModelFile, Part, TensorInfo
from bitnet_tuning.store.state import hold_named

PERPLEXITY = {
    "f16": 17.1090,
    "q8_0": 17.1197,
    "q6_k": 17.1487,
    "q5_0": 17.2379,
    "q4_0": 17.3529,
    "q3_k": 17.6434,
}
"""Types of an embedding, with the perplexity of BitNet b1.58 2B4T on wikitext: table "Embedding
Quantization" in src/README.md of microsoft/BitNet, where F32 has the figure of F16."""

DRAFT = ".slim-draft"
"""End of the name of a copy that is not complete or not checked yet."""

PATIENCE, SECONDS_PER_GIB = 60.0, 1200.0
"""Seconds, and more for each GiB of the copy, after which llama-quantize counts as hung. With one
thread it takes 30 s for the 2B model on a machine of 2024."""

_MATRICES = {
    EMBEDDING: (types.TOKENS, "--token-embedding-type"),
    OUTPUT: (types.MATRIX, "--output-tensor-type"),
}
_CHUNK = 1 << 24


def check_loss(kind: str) -> None:
    """Raise UsageError for a type that needs the user's consent."""
    if PERPLEXITY[kind] > PERPLEXITY["q6_k"]:
        figures = ", ".join(f"{each} {PERPLEXITY[each]:.3f}" for each in ("f16", "q6_k", kind))
        said = f"Microsoft's perplexity of the 2B model on wikitext, lower is better: {figures}"
        cause = f"{kind} loses more than q6_k ({said})"
        raise UsageError(cause, f"add --yes to write {kind} all the same")


def check_model(model: ModelFile, kind: str) -> None:
    """Raise UnsupportedError for a model of which llama-quantize would spoil other tensors, and
    UsageError for a type that does not fit its rows."""
    if model.quantization not in TERNARY:
        cause = f"llama-quantize would change the layers of {model.path}: {model.quantization}"
        raise UnsupportedError(cause, f"name a model with layers in {', '.join(TERNARY)}")
    if (count := len(types.part_paths(model.path))) > 1:
        cause = f"{model.path} is the first of {count} files"
        raise UnsupportedError(cause, types.slim_advice(model, ()))
    if not types.fits(model, kind):
        # bitnet.cpp's llama-quantize ends with 0 and writes rows that no engine can read.
        rows = f"{model.path} has rows of {model.embedding_length} weights"
        cause = f"{rows}, and {kind} needs a multiple of {types.block_weights(types.NUMBERS[kind])}"
        raise UsageError(cause, f"choose --embedding {types.slim_type(model)}")


def size_of(model: ModelFile, after: Sequence[Part], available: int | None) -> int:
    """Return the bytes of the copy with the parts ``after``. Raise UnsupportedError if there is
    less memory ``available`` (in bytes; None: unknown) than llama-quantize allocates: the largest
    matrix in F32, unless it is stored so, and the result."""
    # llama_model_quantize_internal of llama.cpp. Measured for the 2B model: resident are 1.58 GB
    # with F16 and 0.27 GB with F32, besides the mapped file.
    changed = [pair for pair in zip(model.parts, after, strict=True) if pair[0] != pair[1]]
    wide = (4 * old.weights for old, _ in changed if old.type != "f32")
    need = max(wide, default=0) + max(new.size for _, new in changed)
    if available is not None and available < need:
        cause = f"llama-quantize needs {size_text(need)} of memory, {size_text(available)} are free"
        raise UnsupportedError(cause, "end other programs")
    return model.size + sum(new.size - old.size for old, new in changed)


def command(
    program: str, model: ModelFile, after: Sequence[Part], draft: str, threads: int
) -> tuple[str, ...]:
    """Return the argument list that writes ``draft`` with the parts ``after``."""
    flags = ["--allow-requantize"]
    for part in after:
        if part.name in _MATRICES:
            flags += [_MATRICES[part.name][1], part.type]
    # Absolute: llama-quantize takes an argument that begins with a digit for a type.
    places = (os.path.abspath(model.path), os.path.abspath(draft))
    return (program, *flags, *places, model.quantization.upper(), str(threads))


def write(argv: tuple[str, ...], draft: str, size: int, shown: Progress) -> None:
    """Write a draft of ``size`` bytes; raise UnsupportedError if llama-quantize fails or hangs."""
    seconds = PATIENCE + SECONDS_PER_GIB * size / GIBIBYTE
    started = time.monotonic()
    with serve(Launch(argv, {})) as service:
        while (code := service.ended(0.2)) is None:
            spent, done = time.monotonic() - started, os.path.getsize(draft)
            if spent > seconds:
                break
            # The embedding comes first and takes most of the time; its size says nothing.
            written = f"{size_text(done)} of {size_text(size)} written"
            now = written if done > size / 10 else "quantizing the embedding"
            shown.running(now, done)
            shown.tell(f"{now} ({clock(spent)})")
        # Its last line only says that it failed; the one before says why.
        log = service.log().partition("main: failed to quantize")[0]
        if wrong := failure(Captured(code, "", log), seconds):
            wrong = wrong.replace("the engine", "it", 1)
            raise failed(draft, size, f"{argv[0]} failed: {wrong}")


def failed(draft: str, size: int, cause: str) -> UnsupportedError:
    """Return the error for a draft that did not become the copy, of ``size`` bytes."""
    free = disk_usage(os.path.dirname(draft)).free
    kept = "nothing was kept of the copy"
    if free < size - os.path.getsize(draft):
        kept = f"the disk is full ({size_text(free)} are free); {kept}"
    return UnsupportedError(cause, kept)


def problem(model: ModelFile, after: Sequence[Part], copy: str) -> str | None:
    """Return what keeps a file from being the model's copy with the parts ``after``, as the rest of
    a sentence; None if all else is the model's, byte for byte."""
    try:
        tensors = {info.name: info for info in read_tensors(model.path)}
        copied = {info.name: info for info in read_tensors(copy)}
        wanted = {_MATRICES[part.name][0]: part.type for part in after if part.name in _MATRICES}
        if tensors.keys() != copied.keys():
            return "has other tensors"
        for name, info in tensors.items():
            kind, found = (types.type_name(each.kind, None) for each in (info, copied[name]))
            if (found, copied[name].shape) != (wanted.get(name, kind), info.shape):
                return f"has {name} in {found} {copied[name].shape}"
        meta, kept = read_metadata(model.path), read_metadata(copy)
        for key in meta:
            if meta[key] != kept.get(key) and key != "general.quantization_version":
                return f"has another value of {key} in its metadata"
        with open(model.path, "rb") as ours, open(copy, "rb") as theirs:
            for name, info in tensors.items():
                changed = copied[name].kind != info.kind
                if not changed and _differs(ours, info, theirs, copied[name]):
                    return f"has other bytes in {name}"
    except MissingError as error:
        return f"cannot be used: {error.cause}"
    return None


def _differs(ours: BinaryIO, info: TensorInfo, theirs: BinaryIO, copied: TensorInfo) -> bool:
    size = types.tensor_bytes(info.kind, info.weights)
    ours.seek(info.offset)
    theirs.seek(copied.offset)
    steps = (min(_CHUNK, size - start) for start in range(0, size, _CHUNK))
    return size == 0 or any(ours.read(step) != theirs.read(step) for step in steps)


@contextmanager
def drafted(path: str, size: int) -> Iterator[str]:
    """Yield the path of an empty draft, which becomes the file ``path`` after the block; it is
    removed if the block raises. Raise UnsupportedError if the disk has no room for ``size`` bytes,
    if it cannot be written, if another process writes the same file, or if that exists."""
    draft = path + DRAFT
    try:
        for name in os.listdir(os.path.dirname(path)):
            if MARK in name and name.endswith(DRAFT):  # of a process that was killed, if not locked
                old = os.path.join(os.path.dirname(path), name)
                with suppress(OSError), open(old, "rb+") as left:
                    if hold_named(left, old):
                        os.unlink(old)
        free = disk_usage(os.path.dirname(path)).free
        if free < size:
            cause = f"{path} needs {size_text(size)} of disk, {size_text(free)} are free"
            raise UnsupportedError(cause, "name another disk with -o")
        with open(draft, "ab") as file:
            if not hold_named(file, draft):
                raise UnsupportedError(f"another process is writing {path}", "wait for its end")
            try:
                file.truncate(0)
                yield draft
                os.fsync(file.fileno())
                if os.path.lexists(path):
                    raise UnsupportedError(f"{path} exists now", "name another file with -o")
                if os.name == "nt":  # where a file that is open cannot be renamed
                    file.close()
                os.rename(draft, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(draft)
                raise
    except OSError as error:
        cause = f"cannot write {path}: {error.strerror or error}"
        raise UnsupportedError(cause, "name another file with -o") from error
