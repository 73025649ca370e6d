"""Memory against the model, limits, swap, locking, huge pages; pure."""

from __future__ import annotations

from bitnet_tuning.doctor.case import Case, Knob, Verdict, bad, good, unknown, warn
from bitnet_tuning.machine.warnings import MEMORY, MEMORY_FACTOR, SWAPPED


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def need(case: Case) -> float:
    """Bytes that the model takes with its cache."""
    return MEMORY_FACTOR * case.model_size


def needed(case: Case) -> str:
    """In words: whose memory it is."""
    whose = "the model needs" if case.known_model else "BitNet b1.58 2B-4T needs"
    return f"{whose} about {gigabytes(need(case))}"


def _memory(case: Case) -> Verdict:
    available = case.conditions.memory_available
    if available is None:
        return unknown(f"how much memory is free is not known; {needed(case)}")
    text = f"{gigabytes(available)} are free, {needed(case)}"
    if case.warning(MEMORY) is None:
        return good(text)
    worse = bad if available < case.model_size else warn
    return worse(f"{text}: it may be read from disk again for every token", _memory_remedy(case))


def _memory_remedy(case: Case) -> str:
    if case.host.wsl:
        return "close programs, or raise memory= in .wslconfig and run: wsl.exe --shutdown"
    return "close programs, or take a smaller model"


def _group(case: Case) -> Verdict:
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


def _swap(case: Case) -> Verdict:
    swapped, free = case.conditions.swap_used, case.conditions.memory_available
    if swapped is None:
        return unknown("swap is not shown")
    if swapped < SWAPPED:
        return good("nothing is swapped out")
    if free is None or swapped <= free:
        return good(
            f"{gigabytes(swapped)} are swapped out, which slows nothing while memory is free"
        )
    return warn(
        f"{gigabytes(swapped)} are swapped out and only {gigabytes(free)} of memory are free",
        "close programs; then sudo swapoff -a && sudo swapon -a fetches everything back",
    )


def _locking(case: Case) -> Verdict:
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


def _huge_pages(case: Case) -> Verdict:
    chosen = case.huge_pages.transparent
    if chosen is None:
        return unknown("the kernel shows no setting for transparent huge pages")
    if chosen != "never":
        return good(f"transparent huge pages: {chosen}")
    return warn(
        "transparent huge pages are off: more misses in the address cache for what is not mapped "
        "from the model's file",
        "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled, and measure: "
        "python3 benchmark_optimized.py",
    )


KNOBS = (
    Knob("memory", _memory, "kernel: MemAvailable; the model's size and 15 % for its cache"),
    Knob("memory limit", _group, "kernel: admin-guide/cgroup-v2, memory.max and memory.high"),
    Knob("swap", _swap, "kernel: SwapTotal, SwapFree and MemAvailable in meminfo"),
    Knob("memory lock", _locking, "setrlimit(2): RLIMIT_MEMLOCK; llama.cpp: --mlock"),
    Knob(
        "huge pages",
        _huge_pages,
        "measured: copied into huge pages a model reads prompts ×1.26 as fast and loads 2 s longer",
    ),
)
