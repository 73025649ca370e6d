"""``python3 -m bitnet_tuning env``: what bitnet-env.sh exports to a shell."""

from __future__ import annotations

import argparse
import glob
import os
import sys
import time

import bitnet_tuning
from bitnet_tuning.cli.arguments import Parser, add_root
from bitnet_tuning.machine.cgroups import read_cgroups
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.root import Root, read_boot_id
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.plan.openmp import (
    BINDING,
    BINDING_BY_USER,
    THREAD_COUNTS,
    WAITING_BY_USER,
    shell_exports,
    user_set,
)
from bitnet_tuning.plan.threads import asked_threads, choose_threads
from bitnet_tuning.store.state import write_atomically

MOST_KEPT = 16
"""Answers kept for one boot: containers and batch jobs have limits of their own."""

COARSEST_CLOCK_S = 2
"""Seconds within which a file system or a shell may see two changes as simultaneous: busybox
compares whole seconds, FAT stores every other one."""

OLDEST_S = 30 * 24 * 3600
"""Seconds after which the answers of another boot are removed."""


def run(arguments: list[str]) -> int:
    parser = Parser(prog="bitnet_tuning env", description="Show what bitnet-env.sh exports.")
    add_root(parser, "read this folder's sys and proc")
    parser.add_argument(
        "--sh",
        action="store_true",
        help="print what bitnet-env.sh reads: threads, and 1 where a CPU quota binds, else 0",
    )
    for name in ("--key", "--keep", "--script", "--looked"):  # bitnet-env.sh's own
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    host = read_host(options.root)
    if not options.sh:
        print(as_text(host))
        return 0
    # The shell heeds the user's variables, so the answer is the machine's alone.
    answer = f"{choose_threads(Request(), host, {}).setting.threads} {int(host.quota_binds)}"
    print(answer)
    if options.keep and may_keep(Root(options.root), options.looked):
        try:
            keep(options.keep, os.path.realpath(options.script), options.key, answer)
        except (OSError, ValueError):  # the next shell asks again
            pass
    return 0


def as_text(host: Host) -> str:
    """Return the thread count, its reason and the exports, a line each.

    Raises UsageError for a BITNET_THREADS that is no positive number.
    """
    environ = os.environ
    mine = {name: value for name, value in environ.items() if name == "BITNET_THREADS"}
    asked = asked_threads(None, mine)
    decided = choose_threads(Request(), host, {})
    threads = asked.number if asked else decided.setting.threads
    exports = shell_exports(environ, threads, host.quota_binds)
    names = (*THREAD_COUNTS, *BINDING_BY_USER, *WAITING_BY_USER)
    kept = [name for name in names if user_set(environ, name)]
    lines = {
        "threads": f"{threads}: {asked.by} says so" if asked else decided.reasons["threads"],
        "exports": " ".join(f"{name}={value}" for name, value in exports.items()) or "nothing",
        "left as you set them": " ".join(kept) or "-",
    }
    if host.quota_binds:
        lines["KMP_BLOCKTIME"] = "not exported: spinning threads would use up the CPU quota"
    if environ.get("BITNET_ENV_BIND") != "1":
        lines[" ".join(BINDING)] = "exported only with BITNET_ENV_BIND=1"
    return "\n".join(f"{name}: {text}" for name, text in lines.items())


def may_keep(root: Root, looked: str) -> bool:
    """Return whether bitnet-env.sh would notice every change of the limits.

    ``looked`` are the folders where it reads quotas, each between colons. Control groups that
    are mounted elsewhere are read here only.
    """
    groups = read_cgroups(root)
    folders = (name for name in (*groups.unified, *groups.cpu) if root.exists(name))
    prefix = root.path.rstrip("/")
    return bool(read_boot_id(root)) and all(f":{prefix}/{name}:" in looked for name in folders)


def keep(path: str, script: str, key: str, answer: str) -> None:
    """Add an answer to those in ``path``, which gets the age of the newest module.

    Raises OSError where it cannot be written, ValueError where it must not be: names with line
    breaks, and files changed so recently that another change might look as old.
    """
    package = os.path.dirname(os.path.abspath(bitnet_tuning.__file__))
    loaded = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    files = {os.path.abspath(name) for name in loaded if name}
    inside = sorted(name for name in files if name.startswith(package + os.sep))
    newest = max(os.stat(name).st_mtime_ns for name in inside)
    head = [script, package, " ".join(os.path.relpath(name, package) for name in inside)]
    if any("\n" in text for text in (*head, key)) or not os.path.isabs(path):
        raise ValueError("cannot be kept: a relative path, or a line break in a name")
    if newest / 1e9 > time.time() - COARSEST_CLOCK_S:
        raise ValueError("cannot be kept: a module has just been changed")
    pairs = {key: answer} | _kept(path, head, newest) | {key: answer}
    lines = [*head, *(line for pair in list(pairs.items())[:MOST_KEPT] for line in pair)]
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    _remove_old(folder)
    write_atomically(path, os.fsencode("".join(f"{line}\n" for line in lines)))
    os.utime(path, ns=(newest, newest))


def _kept(path: str, head: list[str], newest: int) -> dict[str, str]:
    """The answers of the same script and the same package in ``path``."""
    try:
        if os.stat(path).st_mtime_ns != newest:
            return {}
        with open(path, "rb") as file:
            lines = os.fsdecode(file.read(1 << 16)).split("\n")[:-1]
    except OSError:
        return {}
    return dict(zip(lines[3::2], lines[4::2], strict=False)) if lines[:3] == head else {}


def _remove_old(folder: str) -> None:
    """Remove the answers of boots that are long past."""
    for name in glob.glob(f"{glob.escape(folder)}/env-*"):
        if os.stat(name).st_ctime < time.time() - OLDEST_S:
            os.unlink(name)
