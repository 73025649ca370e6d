"""The state of machines that are not Linux, as far as psutil knows it."""

from __future__ import annotations

from bitnet_tuning.host.activity import CpuTimes
from bitnet_tuning.host.clock import Clock
from bitnet_tuning.host.memory import Memory
from bitnet_tuning.host.swap import Swap
from bitnet_tuning.records import NamedTuple


class ForeignState(NamedTuple):
    """None for what is not known; all of it without psutil."""

    times: CpuTimes | None = None
    clock: Clock | None = None
    memory: Memory = Memory(None, None)
    swap: Swap | None = None
    on_battery: bool | None = None


def read_foreign_state() -> ForeignState:
    try:
        import psutil  # noqa: F401, PLC0415
    except ImportError:
        return ForeignState()
    return ForeignState(_times(), _clock(), _memory(), _swap(), _on_battery())


def _times() -> CpuTimes:
    """macOS has user, nice, system, idle; Windows user, system, idle, interrupt, dpc."""
    import psutil  # noqa: PLC0415

    seen = psutil.cpu_times()._asdict()
    # Windows counts interrupts and deferred calls in system already.
    return CpuTimes(sum(seen.get(key, 0.0) for key in ("user", "nice", "system")), 0.0)


def _clock() -> Clock | None:
    """One figure for all CPUs; Windows shows the nominal clock, not the present one."""
    import psutil  # noqa: PLC0415

    try:
        seen = psutil.cpu_freq()
    except (AttributeError, OSError, NotImplementedError, RuntimeError, psutil.Error):
        return None
    if seen is None or not seen.current:
        return None
    now = float(seen.current)
    return Clock(now, now, now, None, float(seen.max) if seen.max else None)


def _memory() -> Memory:
    import psutil  # noqa: PLC0415

    seen = psutil.virtual_memory()
    return Memory(int(seen.total), int(seen.available))


def _swap() -> Swap | None:
    import psutil  # noqa: PLC0415

    try:
        seen = psutil.swap_memory()
    except (OSError, RuntimeError, psutil.Error):
        return None
    # ``sin`` is 0 on Windows, which does not count it.
    return Swap(int(seen.used), int(seen.sin) or None)


def _on_battery() -> bool | None:
    import psutil  # noqa: PLC0415

    try:
        seen = psutil.sensors_battery()
    except (AttributeError, OSError, psutil.Error):
        return None
    if seen is None or seen.power_plugged is None:
        return None
    return not seen.power_plugged
