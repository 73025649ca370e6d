"""Read the configuration of the Windows Subsystem for Linux, and ask Windows for its cores."""

from __future__ import annotations

from bitnet_tuning.launch.background import capture
from bitnet_tuning.machine.cgroups import Mount
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.root import MAX_CPU, Root, as_integer, as_size, read_boot_id
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.store.state import State

POWERSHELL = "/mnt/c/Windows/System32/WindowsPowerShell/v1.0/powershell.exe"
"""Where PowerShell usually is if PATH lacks it (``appendWindowsPath=false`` in wsl.conf)."""

_COUNT_CORES = "(Get-CimInstance Win32_Processor | Measure-Object NumberOfCores -Sum).Sum"

PATIENCE_S = 10
"""Seconds to wait for PowerShell, whose first start takes some."""

_CUSTOMARY = "mnt/c"
"""Folder at which WSL mounts drive C: unless ``wsl.conf`` names another one."""


class WslConfig(NamedTuple):
    """The ``.wslconfig`` file of one Windows user. None stands for what the file does not set."""

    path: str
    memory: int | None = None
    """Memory limit of the virtual machine in bytes."""
    processors: int | None = None
    problems: tuple[str, ...] = ()
    """Lines that cannot be parsed."""


class WindowsCores(NamedTuple):
    """The physical cores that Windows told, if it did, and in which boot of Linux it was asked."""

    cores: int | None
    boot: str


def with_windows_cores(host: Host, root: str, ask: bool = False) -> Host:
    """Return the host with the number of cores that Windows told, where WSL hides the cores. With
    ``ask``, ask Windows if that was not done, or not since a boot in which it did not tell."""
    place = Root(root)
    if not (host.cores_hidden and host.wsl and place.live):
        return host
    state, key, boot = State(), host.brand or "", read_boot_id(place)
    found = state.load("windows", key, WindowsCores)
    if ask and (found is None or (found.cores is None and found.boot != boot)):
        # Stored first: a run that is interrupted, or that can store nothing, asks only once.
        found = WindowsCores(None, boot)
        if state.store("windows", key, found):
            import shutil  # noqa: PLC0415 (slow)

            program = shutil.which("powershell.exe") or POWERSHELL
            told = capture((program, "-NoProfile", "-Command", _COUNT_CORES), seconds=PATIENCE_S)
            cores = as_integer(told.stdout.strip()) if told.code == 0 else None
            found = WindowsCores(cores if cores and 0 < cores < MAX_CPU else None, boot)
            state.store("windows", key, found)
    return host._replace(windows_cores=found and found.cores)


def read_wsl_configs(root: Root, mounts: tuple[Mount, ...]) -> tuple[WslConfig, ...]:
    """Return the ``.wslconfig`` files of all Windows users that can be read."""
    # Linux does not know which of the users started WSL.
    drives = [mount.point.strip("/") for mount in mounts if mount.windows]
    folders = (f"{drive}/Users" for drive in dict.fromkeys((*drives, _CUSTOMARY)))
    users = (f"{folder}/{user}" for folder in folders for user in sorted(root.names(folder)))
    read = ((f"{user}/.wslconfig", root.read(f"{user}/.wslconfig")) for user in users)
    return tuple(parse_wsl_config(f"/{name}", text) for name, text in read if text is not None)


def parse_wsl_config(path: str, text: str) -> WslConfig:
    """Return the settings in the section ``[wsl2]``, or one problem if the text is not valid."""
    import configparser  # noqa: PLC0415 (half a millisecond that a run need not pay)

    parser = configparser.ConfigParser(
        interpolation=None, strict=False, allow_no_value=True, inline_comment_prefixes=("#", ";")
    )
    try:
        parser.read_string(text.removeprefix("\ufeff"))
    except configparser.Error as error:
        return WslConfig(path, problems=(str(error).splitlines()[0],))
    sections = (parser[name] for name in parser.sections() if name.lower() == "wsl2")
    stated = {key: value or "" for section in sections for key, value in section.items()}
    memory, processors = as_size(stated.get("memory")), as_integer(stated.get("processors"))
    understood = {"memory": memory, "processors": processors}
    problems = [f"{key}={stated[key]}" for key in stated if understood.get(key, 0) is None]
    return WslConfig(path, memory, processors, tuple(problems))
