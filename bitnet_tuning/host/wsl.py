"""Whether this Linux is the Windows Subsystem for Linux."""

from __future__ import annotations

from bitnet_tuning.host.root import Root


def read_wsl(root: Root) -> int | None:
    """1, 2, or None outside WSL.

    Version 1 releases look like ``4.4.0-19041-Microsoft``, version 2 ones like
    ``5.15.90.1-microsoft-standard-WSL2``; a kernel that the user built may say
    neither, but version 2 always has the interop handler or /run/WSL.
    """
    release = root.read("proc/sys/kernel/osrelease") or _release_in_version(root)
    if "microsoft" in release.lower():
        is_first = release.endswith("-Microsoft") and release.startswith(("3.", "4.4."))
        return 1 if is_first else 2
    if "wsl2" in release.lower() or root.exists("run/WSL"):
        return 2
    return 2 if root.exists("proc/sys/fs/binfmt_misc/WSLInterop") else None


def _release_in_version(root: Root) -> str:
    """``Linux version RELEASE (builder) …``: the builder may well be somebody at Microsoft."""
    words = (root.read("proc/version") or "").split()
    return words[2] if len(words) > 2 else ""
