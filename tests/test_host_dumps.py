"""Facts read from dumps of real machines, if the dumps are beside the checkout."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning.__main__ import main
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.machine.host import host_facts
from bitnet_tuning.store.codec import to_json
from tests.conftest import REPOSITORY

DUMPS = REPOSITORY.parent / "shared" / "hosts"
STATED = DUMPS / "expected.json"
EXPECTED: dict[str, dict[str, Any]] = json.loads(STATED.read_text()) if STATED.exists() else {}

pytestmark = pytest.mark.skipif(not EXPECTED, reason="no dumps beside the checkout")


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of the dumps, which are extracted only once: some have thousands of files."""
    folders = {}
    for name in EXPECTED:
        folders[name] = tmp_path_factory.mktemp(name)
        with tarfile.open(DUMPS / f"{name}.tar.gz") as archive:
            # This filter keeps links within the dump and refuses those that lead out of it.
            archive.extractall(folders[name], filter="tar")
    return folders


def check(name: str, facts: dict[str, Any]) -> None:
    """Compare the facts with the expected ones, except for uncertain and unknown ones."""
    expected = EXPECTED[name]
    kinds = facts["hybrid"]
    found = {
        "logical_cpus": len(facts["logical_cpus"]),
        "physical_cores": facts["physical_cores"],
        "packages": facts["packages"],
        "numa_nodes": len(facts["numa_nodes"]),
        "numa_nodes_with_cpus": sum(bool(node["cpus"]) for node in facts["numa_nodes"]),
        "hybrid": kinds and {key: kinds[key] for key in ("performance_cores", "efficiency_cores")},
    }
    certain = {
        key: expected[key]
        for key in found
        if key in expected
        and key not in expected.get("uncertain", ())
        and (key == "hybrid" or expected[key] is not None)
    }
    assert {key: found[key] for key in certain} == certain
    assert facts["topology_known"]
    assert facts["usable_cores"] == facts["physical_cores"]
    assert facts["allowed_cpus"] == facts["logical_cpus"]


@pytest.mark.parametrize("name", EXPECTED)
def test_the_facts_of_a_dump_are_right(dumps: dict[str, Path], name: str) -> None:
    host = read_host(str(dumps[name]))
    check(name, to_json(host_facts(host)))
    assert sum(len(core.cpus) for core in host.cores) == len(host.online)
    assert frozenset().union(*(core.cpus for core in host.cores)) == host.online


@pytest.mark.parametrize("name", [name for name in EXPECTED if "offline" in name or "hy" in name])
def test_the_command_prints_the_facts_of_a_dump(
    dumps: dict[str, Path], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["host", "--root", str(dumps[name]), "--json"]) == 0
    printed = capsys.readouterr()
    check(name, json.loads(printed.out))
    assert printed.err == ""


def test_the_offline_cpus_are_the_right_ones(dumps: dict[str, Path]) -> None:
    if "xeon-4s-offline" in dumps:
        online = read_host(str(dumps["xeon-4s-offline"])).online
        assert frozenset(range(16)) - online == {2, 5, 13, 14}
