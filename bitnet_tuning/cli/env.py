"""``python3 -m bitnet_tuning env``: print what bitnet-env.sh exports to a shell.

bitnet-env.sh itself calls it with ``--sh`` and reads the answers that are saved here."""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
import sys
import time

import bitnet_tuning
from bitnet_tuning.cli.arguments import Parser, add_root
from bitnet_tuning.console import aligned, text_width
from bitnet_tuning.machine.cgroups import read_cgroups
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.root import Root, read_boot_id
from bitnet_tuning.machine.wsl import with_windows_cores
from bitnet_tuning.plan import openmp
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.plan.openmp import BINDING, BINDING_BY_USER, THREAD_COUNTS, WAITING_BY_USER
from bitnet_tuning.plan.threads import asked_threads, choose_threads
from bitnet_tuning.store.state import write_atomically

MOST_KEPT = 16
"""Number of answers saved for one boot: one for each set of CPU limits, as in containers."""

COARSEST_CLOCK_S = 2
"""Seconds within which two changes of a file may get the same time: busybox compares whole
seconds, and FAT stores times in steps of 2 s."""

OLDEST_S = 30 * 24 * 3600
"""Seconds after which the answers of an earlier boot are deleted."""


def run(arguments: list[str]) -> int:
    options = make_parser().parse_args(arguments)
    host = with_windows_cores(read_host(options.root), options.root)
    if not options.sh:
        print(as_text(host))
        return 0
    # bitnet-env.sh itself obeys the variables that the user set, so they are ignored here.
    answer = f"{choose_threads(Request(), host, {}).setting.threads} {int(host.quota_binds)}"
    print(answer)
    if options.keep and may_keep(Root(options.root), options.looked):
        with contextlib.suppress(OSError, ValueError):  # the next shell will ask again
            keep(options.keep, os.path.realpath(options.script), options.key, answer)
    return 0


def make_parser() -> Parser:
    about = "Print which variables bitnet-env.sh exports to a shell, and why."
    parser = Parser("env", description=about)
    add_root(parser, "describe the machine whose sys and proc are in this folder (default: /)")
    what = "for bitnet-env.sh: print the threads, and 1 if a CPU quota limits them, else 0"
    parser.add_argument("--sh", action="store_true", help=what)
    for name in ("--key", "--keep", "--script", "--looked"):  # only bitnet-env.sh passes these
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    return parser


def as_text(host: Host) -> str:
    """Return lines for the thread count with its reason, the exports, and what is not exported.
    Raise UsageError if BITNET_THREADS is not a positive number."""
    environ = os.environ
    asked = asked_threads(None, {"BITNET_THREADS": environ.get("BITNET_THREADS", "")})
    decided = choose_threads(Request(), host, {})
    threads = asked.number if asked else decided.setting.threads
    exports = openmp.shell_exports(environ, threads, host.quota_binds)
    names = (*THREAD_COUNTS, *BINDING_BY_USER, *WAITING_BY_USER)
    kept = [name for name in names if openmp.user_set(environ, name)]
    lines = {
        "threads": f"{threads}: set by {asked.by}" if asked else decided.reasons["threads"],
        "exported": " ".join(f"{name}={value}" for name, value in exports.items()) or "nothing",
        "not changed": f"set by you: {' '.join(kept)}" if kept else "-",
    }
    if host.quota_binds:
        lines["waiting"] = "no KMP_BLOCKTIME: spinning threads would use up the CPU quota"
    if environ.get("BITNET_ENV_BIND") != "1":
        lines["binding"] = f"{' and '.join(BINDING)} are exported only with BITNET_ENV_BIND=1"
    return aligned([*lines.items()], text_width())


def may_keep(root: Root, looked: str) -> bool:
    """Return True if bitnet-env.sh would notice any change of the CPU limits. ``looked`` lists the
    folders in which it reads quotas, with a colon before and after each. It looks for control
    groups in the usual places only; this module reads the mount table."""
    groups = read_cgroups(root)
    folders = (name for name in (*groups.unified, *groups.cpu) if root.exists(name))
    prefix = root.path.rstrip("/")
    return bool(read_boot_id(root)) and all(f":{prefix}/{name}:" in looked for name in folders)


def keep(path: str, script: str, key: str, answer: str) -> None:
    """Add an answer to the file ``path``. Raise OSError if it cannot be written. The file gets the
    time of the newest loaded module, so that the shell sees whether a module changed since. Raise
    ValueError if the shell could not read the answer back, or could miss the next change of a
    module because one has just been changed."""
    package = os.path.dirname(os.path.abspath(bitnet_tuning.__file__))
    loaded = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    files = {os.path.abspath(name) for name in loaded if name}
    inside = sorted(name for name in files if name.startswith(package + os.sep))
    newest = max(os.stat(name).st_mtime_ns for name in inside)
    head = [script, package, " ".join(os.path.relpath(name, package) for name in inside)]
    unreadable = any("\n" in text for text in (*head, key)) or not os.path.isabs(path)
    if unreadable or newest / 1e9 > time.time() - COARSEST_CLOCK_S:
        raise ValueError("cannot be saved: relative path, line break, or module changed just now")
    pairs = {key: answer} | _kept(path, head, newest) | {key: answer}
    lines = [*head, *(line for pair in list(pairs.items())[:MOST_KEPT] for line in pair)]
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    for name in glob.glob(f"{glob.escape(folder)}/env-*"):
        if os.stat(name).st_ctime < time.time() - OLDEST_S:
            os.unlink(name)
    write_atomically(path, os.fsencode("".join(f"{line}\n" for line in lines)))
    os.utime(path, ns=(newest, newest))


def _kept(path: str, head: list[str], newest: int) -> dict[str, str]:
    """Return the answers in ``path`` if they are from the same script and the same package."""
    try:
        if os.stat(path).st_mtime_ns != newest:
            return {}
        with open(path, "rb") as file:
            lines = os.fsdecode(file.read(1 << 16)).split("\n")[:-1]
    except OSError:
        return {}
    return dict(zip(lines[3::2], lines[4::2], strict=False)) if lines[:3] == head else {}
