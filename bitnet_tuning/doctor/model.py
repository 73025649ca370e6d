"""Checks of the model's format and embedding, of its drive, and of the memory that it needs."""

from __future__ import annotations

from shlex import quote

from bitnet_tuning import demo
from bitnet_tuning.console import size_text
from bitnet_tuning.doctor.case import MEASURE, Case, Check, Finding, bad, good, moot, unknown, warn
from bitnet_tuning.engine.known import check_pair
from bitnet_tuning.errors import TuningError
from bitnet_tuning.machine.cgroups import mount_holding
from bitnet_tuning.machine.warnings import MEMORY, MEMORY_FACTOR, SWAPPED
from bitnet_tuning.model.types import I2_S, TERNARY, gain_text, is_wide, slim_advice

_TO_I2_S = "convert the model: python3 setup_env.py -md MODEL_FOLDER -q i2_s"


def _model(case: Case) -> Finding | None:
    model, engine = case.model, case.known_engine
    if model is None:
        return None
    if isinstance(model, TuningError):
        return bad(model.cause, model.remedy)
    if engine:
        check_pair(engine, model)  # raises UnsupportedError, which `examine` turns into a finding
    text = f"{model.path}: {model.architecture}, {model.quantization}"
    if model.quantization == I2_S:
        return good(text)
    if model.quantization not in TERNARY:
        return warn(f"{text}: not ternary, so each token reads several times as much", _TO_I2_S)
    if engine is not None and engine.i2_s:
        return warn(f"{text}: bitnet.cpp has fast kernels for i2_s only", _TO_I2_S)
    return good(f"{text}, the right format for an engine without i2_s kernels")


def _embedding(case: Case) -> Finding | None:
    model = case.known_model
    text = model and gain_text(model)
    if not model or not text or case.model_path in demo.MODELS:
        return None
    if not is_wide(model):
        return good(text)
    return warn(text, slim_advice(model, case.slim_copies))


def _drive(case: Case) -> Finding | None:
    path = case.model_path
    if path is None:
        return _drives(case)
    mount = mount_holding(path, case.mounts)
    if mount is None:
        return moot(f"the file system that holds {path} is not shown")
    if mount.slow:
        remedy = f"copy it to a local disk, then name the copy with -m: cp {quote(path)} ~/"
        return warn(f"{path} lies on {mount.slow}", remedy)
    return good(f"the model lies on a local file system ({mount.kind} on {mount.point})")


def _drives(case: Case) -> Finding | None:
    """Warn of Windows drives where no model is named."""
    drives = [mount for mount in case.mounts if mount.windows]
    if not drives or case.host.wsl is None:
        return None
    points = ", ".join(dict.fromkeys(mount.point for mount in drives))
    return unknown(
        f"no model is named; Windows drives ({drives[0].kind} on {points}) are many times slower "
        "to read than Linux's own file system",
        f"keep models in your Linux home folder, not on {points}",
    )


def need(case: Case) -> float:
    """Return the number of bytes that the model needs, its cache included."""
    return MEMORY_FACTOR * case.model_size


def needed(case: Case) -> str:
    """Return a clause that says how much memory the model needs, its cache included."""
    whose = "the model" if case.known_model else "BitNet b1.58 2B-4T"
    return f"{whose} needs about {size_text(need(case))}"


def _memory(case: Case) -> Finding:
    available = case.conditions.memory_available
    if available is None:
        return moot(f"the available memory is not shown; {needed(case)}")
    text = f"{size_text(available)} of memory is available, {needed(case)}"
    if case.warning(MEMORY) is None:
        return good(text)
    worse = bad if available < case.model_size else warn
    other = "raise memory= in .wslconfig and run: wsl.exe --shutdown"
    remedy = f"close programs, or {other if case.host.wsl else 'use a smaller model'}"
    return worse(f"{text}: it may be read from disk again for every token", remedy)


def _memory_limit(case: Case) -> Finding:
    limit, machine = case.host.memory.total, case.machine_memory.total
    if limit is None or machine is None or limit >= machine:
        return good("no control group limits memory")
    text = f"a control group allows {size_text(limit)} of {size_text(machine)}; {needed(case)}"
    if limit >= need(case):
        return good(text)
    return bad(
        f"{text}: the engine will be killed, or read the model from disk for every token",
        f"raise the limit to at least {size_text(need(case))}: docker run --memory, or MemoryMax= "
        "of the systemd unit",
    )


def _swap(case: Case) -> Finding:
    swapped, free = case.conditions.swap_used, case.conditions.memory_available
    if swapped is None:
        return moot("the use of swap is not shown")
    if swapped < SWAPPED:
        return good("little or nothing is swapped out")
    text = f"{size_text(swapped)} are swapped out"
    if free is None or swapped <= free:
        return good(f"{text}, which slows nothing down while memory is free")
    return warn(
        f"{text}, and only {size_text(free)} of memory is available",
        "close programs, then bring everything back into memory: sudo swapoff -a && sudo swapon -a",
    )


def _memory_lock(case: Case) -> Finding:
    limit, swapped = case.lock_limit, case.conditions.swap_used
    if limit is None:
        return moot("no limit of locked memory is shown")
    if limit >= case.model_size:
        return good("the limit of locked memory has room for the model (--performance-mode)")
    text = f"only {size_text(limit)} may be locked in memory, less than the model's size"
    if swapped is None or swapped < SWAPPED:
        return good(f"{text}; that matters only where memory is swapped out")
    return warn(
        f"{text}, and some memory is swapped out",
        "add the line `* - memlock unlimited` to /etc/security/limits.conf and log in again; for a "
        "container: docker run --ulimit memlock=-1",
    )


def _huge_pages(case: Case) -> Finding:
    chosen = case.huge_pages.transparent
    if chosen is None:
        return moot("the kernel shows no transparent huge pages")
    if chosen != "never":
        return good(f"transparent huge pages: {chosen}")
    enable = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
    what = "transparent huge pages are off (never), so a copied model cannot use them"
    return warn(what, f"{enable}; then measure whether they help: {MEASURE}")


CHECKS: tuple[Check, ...] = (
    ("model", _model, "the file's header, compared with what the engine can run"),
    ("embedding", _embedding, "the bytes in the header; microsoft/BitNet: src/README.md"),
    ("model's drive", _drive, "Microsoft: Working across Windows and Linux file systems"),
    ("memory", _memory, "kernel: MemAvailable; the model's size plus 15 % for its cache"),
    ("memory limit", _memory_limit, "kernel: admin-guide/cgroup-v2, memory.max and memory.high"),
    ("swap", _swap, "kernel: SwapTotal, SwapFree and MemAvailable in meminfo"),
    ("memory lock", _memory_lock, "setrlimit(2): RLIMIT_MEMLOCK; llama.cpp: --mlock"),
    ("huge pages", _huge_pages, "measured: prompts ×1.26 as fast, loading takes 2 s longer"),
)
