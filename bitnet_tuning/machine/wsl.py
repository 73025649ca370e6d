"""Read the configuration files of the Windows Subsystem for Linux."""

from __future__ import annotations

from bitnet_tuning.machine.cgroups import Mount
from bitnet_tuning.machine.root import Root, as_integer, as_size
from bitnet_tuning.namedtuple import NamedTuple

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


def read_wsl_configs(root: Root, mounts: tuple[Mount, ...]) -> tuple[WslConfig, ...]:
    """Return the ``.wslconfig`` files of all Windows users that can be read."""
    # Linux does not know which of the users started WSL.
    drives = [mount.point.strip("/") for mount in mounts if mount.windows]
    found = []
    for drive in dict.fromkeys((*drives, _CUSTOMARY)):
        for user in sorted(root.names(f"{drive}/Users")):
            name = f"{drive}/Users/{user}/.wslconfig"
            text = root.read(name)
            if text is not None:
                found.append(parse_wsl_config(f"/{name}", text))
    return tuple(found)


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
