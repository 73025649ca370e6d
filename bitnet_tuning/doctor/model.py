"""The model: its kind, its drive, and the memory that it needs; pure."""

from __future__ import annotations

from shlex import quote

from bitnet_tuning.doctor.case import BENCHMARK, Case, Check, Finding, bad, good, unknown, warn
from bitnet_tuning.engine.known import check_pair
from bitnet_tuning.errors import TuningError
from bitnet_tuning.machine.cgroups import mount_holding
from bitnet_tuning.machine.warnings import MEMORY, MEMORY_FACTOR, SWAPPED
from bitnet_tuning.model.types import I2_S, TERNARY

_SHARED = ("9p", "virtiofs", "nfs", "nfs4", "cifs", "smb3", "smbfs", "vboxsf", "fuse.sshfs")
"""File systems of other machines, or of a virtual machine's host."""

_TO_I2_S = "python3 setup_env.py -md MODEL_FOLDER -q i2_s"


def _model(case: Case) -> Finding | None:
    """Raise UnsupportedError where engine and model cannot work together."""
    model, engine = case.model, case.known_engine
    if model is None:
        return None
    if isinstance(model, TuningError):
        return bad(model.cause, model.remedy)
    if engine:
        check_pair(engine, model)
    text = f"{model.path}: {model.architecture}, {model.quantization}"
    if model.quantization == I2_S:
        return good(text)
    if model.quantization not in TERNARY:
        return warn(f"{text}: not i2_s, so every token reads many times the bytes", _TO_I2_S)
    if engine is not None and engine.i2_s:
        return warn(f"{text}: bitnet.cpp's own kernels are those of i2_s", _TO_I2_S)
    return good(f"{text}, as engines without i2_s need it")


def _drive(case: Case) -> Finding | None:
    path = case.model_path
    if path is None:
        return _drives(case)
    mount = mount_holding(path, case.mounts)
    if mount is None:
        return unknown("which file system holds the model is not known")
    if mount.windows:
        return warn(
            f"{path} lies on a Windows drive ({mount.kind} on {mount.point}), which is read many "
            "times slower than Linux's own file system",
            f"cp {quote(path)} ~/ and name the copy with -m",
        )
    if mount.kind in _SHARED:
        return warn(
            f"{path} lies on {mount.kind}, which is read over a network or from the virtual "
            "machine's host",
            f"cp {quote(path)} to a local disk and name the copy with -m",
        )
    return good(f"{mount.kind} on {mount.point}")


def _drives(case: Case) -> Finding | None:
    """Judge the drives without a model: only those of Windows are worth a word."""
    drives = [mount for mount in case.mounts if mount.windows]
    if not drives or case.host.wsl is None:
        return None
    points = ", ".join(dict.fromkeys(mount.point for mount in drives))
    return unknown(
        f"no model to judge; Windows drives ({drives[0].kind} on {points}) are read many times "
        "slower than Linux's own file system",
        f"keep models off {points}: cp them into your Linux home folder",
    )


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def need(case: Case) -> float:
    """Return the bytes that the model takes with its cache."""
    return MEMORY_FACTOR * case.model_size


def needed(case: Case) -> str:
    """Return in words what the model takes with its cache."""
    whose = "the model needs" if case.known_model else "BitNet b1.58 2B-4T needs"
    return f"{whose} about {gigabytes(need(case))}"


def _memory(case: Case) -> Finding:
    available = case.conditions.memory_available
    if available is None:
        return unknown(f"how much memory is free is not known; {needed(case)}")
    text = f"{gigabytes(available)} are free, {needed(case)}"
    if case.warning(MEMORY) is None:
        return good(text)
    worse = bad if available < case.model_size else warn
    remedy = (
        "close programs, or raise memory= in .wslconfig and run: wsl.exe --shutdown"
        if case.host.wsl
        else "close programs, or take a smaller model"
    )
    return worse(f"{text}: it may be read from disk again for every token", remedy)


def _memory_limit(case: Case) -> Finding:
    limit, machine = case.host.memory.total, case.machine_memory.total
    if limit is None or machine is None or limit >= machine:
        return good("no control group limits memory")
    text = f"a control group allows {gigabytes(limit)} of {gigabytes(machine)}; {needed(case)}"
    if limit >= need(case):
        return good(text)
    return bad(
        f"{text}: the engine will be killed, or read the model from disk for every token",
        "docker run --memory, or MemoryMax= of its systemd unit",
    )


def _swap(case: Case) -> Finding:
    swapped, free = case.conditions.swap_used, case.conditions.memory_available
    if swapped is None:
        return unknown("swap is not shown")
    if swapped < SWAPPED:
        return good("nothing is swapped out")
    text = f"{gigabytes(swapped)} are swapped out"
    if free is None or swapped <= free:
        return good(f"{text}, which slows nothing while memory is free")
    return warn(
        f"{text} and only {gigabytes(free)} of memory are free",
        "close programs; then sudo swapoff -a && sudo swapon -a fetches everything back",
    )


def _memory_lock(case: Case) -> Finding:
    limit, swapped = case.lock_limit, case.conditions.swap_used
    if limit is None:
        return unknown("how much memory may be locked is not known")
    if limit >= case.model_size:
        return good("the model may be locked in memory (--performance-mode)")
    text = f"{gigabytes(limit)} may be locked, less than the model"
    if swapped is None or swapped < SWAPPED:
        return good(f"{text}; that matters only where memory is swapped out")
    return warn(
        f"{text}, and memory is swapped out here",
        "ulimit -l unlimited (as root), or `* - memlock unlimited` in /etc/security/limits.conf; "
        "docker run --ulimit memlock=-1",
    )


def _huge_pages(case: Case) -> Finding:
    chosen = case.huge_pages.transparent
    if chosen is None:
        return unknown("the kernel shows no setting for transparent huge pages")
    if chosen != "never":
        return good(f"transparent huge pages: {chosen}")
    return warn(
        "transparent huge pages are off: more misses in the address cache for what is not mapped "
        "from the model's file",
        "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled, and measure: "
        f"{BENCHMARK}",
    )


CHECKS: tuple[Check, ...] = (
    ("model", _model, "the file's header against what the engine can do"),
    (
        "model's drive",
        _drive,
        "its mount; Microsoft: Working across Windows and Linux file systems",
    ),
    ("memory", _memory, "kernel: MemAvailable; the model's size and 15 % for its cache"),
    ("memory limit", _memory_limit, "kernel: admin-guide/cgroup-v2, memory.max and memory.high"),
    ("swap", _swap, "kernel: SwapTotal, SwapFree and MemAvailable in meminfo"),
    ("memory lock", _memory_lock, "setrlimit(2): RLIMIT_MEMLOCK; llama.cpp: --mlock"),
    (
        "huge pages",
        _huge_pages,
        "measured: copied into huge pages a model reads prompts ×1.26 as fast and loads 2 s longer",
    ),
)
