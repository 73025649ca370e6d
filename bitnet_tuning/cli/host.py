"""``python3 -m bitnet_tuning host``: print what is known about this machine."""

from __future__ import annotations

import json

from bitnet_tuning.cli.arguments import Parser, add_root
from bitnet_tuning.console import aligned, size_text, text_width
from bitnet_tuning.engine.instruction_sets import vector_flags
from bitnet_tuning.machine import foreign
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.machine.host import HostFacts, host_facts
from bitnet_tuning.machine.root import format_list
from bitnet_tuning.machine.wsl import with_windows_cores
from bitnet_tuning.store.codec import to_json


def run(arguments: list[str]) -> int:
    """Print the facts about this machine, or about the one whose files are below ``--root``."""
    options = make_parser().parse_args(arguments)
    host = with_windows_cores(read_host(options.root), options.root)
    if not host.isa and options.root == "/":
        # Only Linux lists them in a file. Elsewhere py-cpuinfo finds them, in over a second.
        host = host._replace(isa=foreign.cpuinfo_flags())
    facts = host_facts(host)
    print(json.dumps(to_json(facts), indent=2) if options.json else as_text(facts))
    return 0


def make_parser() -> Parser:
    about = "Print what is known about this machine: CPUs, limits and memory."
    parser = Parser("host", description=about)
    add_root(parser, "describe the machine whose sys and proc are in this folder (default: /)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def as_text(facts: HostFacts) -> str:
    """Return one line per fact. Of the instruction sets, only those that engines use are listed."""
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
        shown[key] = shown[key] and size_text(shown[key])
    words = {"True": "yes", "False": "no", "None": "-", "": "-"}
    rows = [(key, words.get(str(value), str(value))) for key, value in shown.items()]
    return aligned(rows, text_width())
