"""The NUMA nodes whose page cache has a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bitnet_tuning.machine.memory import cached_nodes, read_numa_maps
from bitnet_tuning.machine.root import Root
from tests.machines import Machine

PAGE = 4096
MAPS = """\
7f10 default file=/models/m.gguf mapped=16 active=0 N0=12 N1=4 kernelpagesize_kB=4
7f20 default file=/models/m.gguf mapped=3 N1=3 kernelpagesize_kB=4
7f30 default file=/models/m.gguf2 mapped=9 N1=9 kernelpagesize_kB=4
7f40 default anon=5 dirty=5 N0=5 kernelpagesize_kB=4
7f50 prefer:1 file=/a\\040b.gguf N2=7 kernelpagesize_kB=4
"""


def test_pages_are_counted_by_node(tmp_path: Path) -> None:
    root = Root(str(Machine(tmp_path).write("proc/7/numa_maps", MAPS).path))
    assert read_numa_maps(root, "7", "/models/m.gguf") == {0: 12 * PAGE, 1: 7 * PAGE}
    assert read_numa_maps(root, "7", "/a b.gguf") == {2: 7 * PAGE}
    assert read_numa_maps(root, "7", "/other") == {}
    assert read_numa_maps(root, "7") == {0: 17 * PAGE, 1: 16 * PAGE, 2: 7 * PAGE}
    assert read_numa_maps(root, "8") is None


def test_without_numa_maps_the_nodes_are_unknown(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"x" * 10000)
    machine = Machine(tmp_path / "root")
    assert cached_nodes(Root(str(machine.path)), str(model)) is None
    machine.write("proc/self/numa_maps", f"7f default file={model} mapped=2 N3=2")
    assert cached_nodes(Root(str(machine.path)), str(model)) == {3: 2 * PAGE}
    assert cached_nodes(Root(str(machine.path)), str(tmp_path / "none")) is None


@pytest.mark.skipif(not os.path.exists("/proc/self/numa_maps"), reason="no NUMA in this kernel")
def test_the_pages_of_a_file_that_was_just_read_are_found(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(os.urandom(1 << 20))
    with open(model, "rb") as file:
        os.fsync(file.fileno())
        file.read()
    found = cached_nodes(Root(), str(model))
    if not found:
        pytest.skip("this file system has no page cache or does not support RWF_NOWAIT")
    assert sum(found.values()) >= 64 * PAGE
