"""``python3 -m bitnet_tuning host``: the facts."""

from __future__ import annotations

import json

from bitnet_tuning.cli.arguments import Parser, add_root
from bitnet_tuning.console import GIBIBYTE, aligned
from bitnet_tuning.engine.instruction_sets import vector_flags
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.machine.host import Host, HostFacts, host_facts
from bitnet_tuning.machine.root import format_list
from bitnet_tuning.store.codec import to_json


def run(arguments: list[str]) -> int:
    """Print the facts of this machine, or of the one below --root."""
    parser = Parser(prog="bitnet_tuning host", description="Show what is known of this machine.")
    add_root(parser, "read this folder's sys and proc")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    facts = host_facts(_with_flags(read_host(options.root), options.root))
    print(json.dumps(to_json(facts), indent=2) if options.json else as_text(facts))
    return 0


def _with_flags(host: Host, root: str) -> Host:
    """Where the kernel's file does not tell (no Linux), py-cpuinfo is asked: it is slow."""
    if host.isa or root != "/":
        return host
    from bitnet_tuning.machine.foreign import cpuinfo_flags  # noqa: PLC0415

    return host._replace(isa=cpuinfo_flags())


def as_text(facts: HostFacts) -> str:
    """Return a line per fact: CPU sets as lists, sizes in GiB, only instruction sets of engines."""
    kinds = facts.hybrid
    shown = facts._asdict() | {
        "numa_nodes": "; ".join(
            f"{node.id}: {format_list(node.cpus) or 'memory only'}" for node in facts.numa_nodes
        ),
        "hybrid": kinds
        and f"{kinds.performance_cores} performance cores ({format_list(kinds.performance_cpus)}), "
        f"{kinds.efficiency_cores} efficiency cores ({format_list(kinds.efficiency_cpus)})",
        "isa": " ".join(vector_flags(facts.isa)),
    }
    for key in ("logical_cpus", "allowed_cpus"):
        shown[key] = f"{format_list(shown[key])} ({len(shown[key])})"
    for key in ("memory_total", "memory_available"):
        shown[key] = None if shown[key] is None else f"{shown[key] / GIBIBYTE:.1f} GiB"
    return aligned([(key, _plain(value)) for key, value in shown.items()])


def _plain(value: object) -> str:
    if value is None or value == "":
        return "-"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
