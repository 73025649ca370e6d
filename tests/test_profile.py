"""Profiles: when one is used, what makes it outdated, and damaged files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning.engine.find import Engine
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.machine.host import Fingerprint, fingerprint
from bitnet_tuning.plan.profile import (
    Profile,
    bound_to,
    claim,
    find_stale,
    load,
    new_profile,
    remove,
    store,
    stored_profiles,
    what_changed,
)
from bitnet_tuning.store.codec import from_json, to_json
from bitnet_tuning.store.state import State, alone
from tests import profile_samples as samples
from tests.machines import Machine, x86_entries
from tests.profile_samples import EVIDENCE, GIBIBYTE, MODEL, SETTING


class Bench:
    """A machine, an engine and their profile in a state folder."""

    def __init__(self, folder: Path) -> None:
        self.machine = samples.machine(folder / "root")
        self.engine = samples.engine_in(folder / "engine")
        self.state = State(str(folder / "state"))
        self.profile = samples.profile(self.machine.host(), self.engine)
        mark = store(self.state, self.profile)
        assert mark is not None
        self.path = Path(self.state.path("profile", mark))

    def load(self, engine: Engine | None = None, **model: Any) -> Profile | None:
        wanted = MODEL._replace(**model)
        return load(self.state, self.machine.host(), engine or self.engine, wanted)

    def changes(self) -> list[str]:
        return what_changed(self.profile, self.machine.host(), self.engine)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# Stored and loaded


def test_a_stored_profile_is_loaded(bench: Bench) -> None:
    assert bench.load() == bench.profile
    assert stored_profiles(bench.state) == [bench.profile]
    assert bench.state.warning is None


def test_a_profile_without_a_setting_is_stored(bench: Bench) -> None:
    stays = bench.profile._replace(setting=None)
    assert store(bench.state, stays) == bench.profile.id
    assert bench.load() == stays


def test_a_new_profile_is_loaded_for_its_host_engine_and_model(bench: Bench) -> None:
    made = new_profile(
        bench.machine.host(), bench.profile.engine, MODEL, SETTING._replace(threads=2), EVIDENCE
    )
    assert store(bench.state, made) == bench.profile.id
    assert bench.load() == made


@pytest.mark.parametrize("name", ["", "two\nlines \x1b[31m", "\u202e", "n" * 100_000, "\udcff"])
def test_a_model_with_any_name_can_have_a_profile(bench: Bench, name: str) -> None:
    host, model = bench.machine.host(), MODEL._replace(name=name, size=7)
    assert store(bench.state, new_profile(host, bench.profile.engine, model, SETTING, EVIDENCE))
    assert bench.load(name=name, size=7) is not None


def test_a_path_need_not_be_utf_8(tmp_path: Path) -> None:
    named = Bench(tmp_path / os.fsdecode(b"\xff"))
    assert named.load() == named.profile


def test_the_name_and_folder_of_a_model_do_not_matter(bench: Bench) -> None:
    assert bench.load(name="Other", path="/elsewhere/m.gguf") == bench.profile


def test_free_memory_and_governor_do_not_matter(bench: Bench) -> None:
    bench.machine.meminfo(8 * GIBIBYTE, GIBIBYTE)
    bench.machine.governors(dict.fromkeys(range(8), "powersave"))
    assert bench.load() == bench.profile


HOSTS: dict[str, tuple[Callable[[Machine], Machine], str]] = {
    "a CPU offline": (lambda machine: machine.offline(7), "online CPUs 0-7, now 0-6"),
    "fewer allowed": (lambda machine: machine.affinity("0-3"), "allowed CPUs 0-7, now 0-3"),
    "a quota": (
        lambda machine: machine.cgroup2(files={"cpu.max": "250000 100000"}),
        "CPU quota none, now 2.5",
    ),
    "another CPU": (
        lambda machine: machine.cpuinfo(x86_entries(8, brand="Newer CPU")),
        "CPU model Some CPU, now Newer CPU",
    ),
    "two nodes": (
        lambda machine: machine.node(0, range(4)).node(1, range(4, 8)),
        "NUMA nodes 0: 0-7, now 0: 0-3; 1: 4-7",
    ),
    "no SMT": (
        lambda machine: machine.cores([[cpu] for cpu in range(8)]),
        "cores 0,4 1,5 2,6 3,7, now 0 1 2 3 4 5 6 7",
    ),
    "two kinds of cores": (
        lambda machine: machine.intel_kinds("0-1,4-5", "2-3,6-7"),
        "performance CPUs none, now 0-1,4-5",
    ),
}


@pytest.mark.parametrize("change", HOSTS)
def test_a_profile_is_not_used_on_a_changed_host(bench: Bench, change: str) -> None:
    make, words = HOSTS[change]
    make(bench.machine)
    assert bench.load() is None
    assert words in bench.changes()


def rebuilt(engine: Engine) -> None:
    Path(engine.files[0]).write_text("other code of the same program, longer")


def patched(engine: Engine) -> None:
    """Change only the modification time."""
    path = engine.files[1]
    later = os.stat(path).st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))


def unlinked(engine: Engine) -> None:
    os.unlink(engine.files[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [(rebuilt, "was replaced"), (patched, "was replaced"), (unlinked, "no longer exists")],
)
def test_a_profile_is_not_used_for_another_build(
    bench: Bench, change: Callable[[Engine], None], words: str
) -> None:
    change(bench.engine)
    assert bench.load() is None
    (found,) = bench.changes()
    assert found.endswith(words)


def test_a_profile_is_not_used_for_another_version_or_library(bench: Bench) -> None:
    engine, host = bench.engine, bench.machine.host()
    for other, change in (
        ({"version": "4000 (new)"}, "engine version 3957 (5eb47b72), now 4000 (new)"),
        ({"files": engine.files[:1]}, f"{engine.files[1]} was added or is no longer used"),
        ({"files": (*engine.files, "/new.so")}, "/new.so was added or is no longer used"),
    ):
        changed = engine._replace(**other)
        assert bench.load(changed) is None
        assert find_stale(bench.state, host, changed, MODEL) == (bench.profile, [change])


@pytest.mark.parametrize("other", [{"architecture": "llama"}, {"quantization": "tq2_0"}])
def test_a_profile_is_not_used_for_another_kind_of_model(
    bench: Bench, other: dict[str, str]
) -> None:
    assert bench.load(**other) is None  # type: ignore[arg-type]
    engine, host = bench.engine, bench.machine.host()
    assert find_stale(bench.state, host, engine, MODEL._replace(**other)) is None  # type: ignore[arg-type]


def test_a_profile_is_outdated_only_after_a_change(bench: Bench) -> None:
    host, model = bench.machine.host(), MODEL._replace(size=5)
    assert find_stale(bench.state, host, bench.engine, MODEL) is None
    assert bench.load(size=5) is None
    changes = ["model size 1.0 GiB, now 0.0 KiB"]
    assert find_stale(bench.state, host, bench.engine, model) == (bench.profile, changes)
    larger = find_stale(bench.state, host, bench.engine, MODEL._replace(size=GIBIBYTE + 1))
    assert larger and larger[1] == ["model size 1,073,741,824 bytes, now 1,073,741,825 bytes"]


def test_outdated_profiles_of_another_kind_of_model_are_not_listed(bench: Bench) -> None:
    host, newer = bench.machine.host(), bench.engine._replace(version="4000 (new)")
    assert find_stale(bench.state, host, newer, MODEL._replace(quantization="tq2_0")) is None
    assert find_stale(bench.state, host, newer, MODEL._replace(size=5 * GIBIBYTE))
    larger = MODEL._replace(size=5 * GIBIBYTE)
    assert find_stale(bench.state, host, bench.engine, larger)


def test_the_newest_profile_is_listed_first(bench: Bench) -> None:
    bench.machine.affinity("0-3")
    newer = samples.profile(bench.machine.host(), bench.engine)
    for created in ("2026-11-24T00:00:00Z", "2026-11-22T00:00:00Z"):
        other = newer._replace(created=created)
        store(bench.state, other)
        expected = sorted((bench.profile, other), key=lambda each: each.created, reverse=True)
        assert stored_profiles(bench.state) == expected


def test_a_profile_moves_to_the_same_engine_elsewhere(bench: Bench) -> None:
    host, ours = bench.machine.host(), bench.profile.engine
    files = tuple((f"C:\\{Path(path).name}", size, 5) for path, size, _ in ours.files)
    exported = bench.profile._replace(engine=ours._replace(path="C:\\llama-cli", files=files))
    assert bound_to(exported, host, ours) == bench.profile
    for differing in (files[:1], (*files, ("C:\\new.dll", 1, 5))):
        other = exported._replace(engine=exported.engine._replace(files=differing))
        with pytest.raises(UnsupportedError):
            bound_to(other, host, ours)


def test_several_hosts_can_share_a_folder(bench: Bench) -> None:
    before = bench.load()
    bench.machine.affinity("0-3")
    store(bench.state, samples.profile(bench.machine.host(), bench.engine))
    assert len(stored_profiles(bench.state)) == 2
    assert bench.load() != before
    for _ in range(2):
        remove(bench.state, bench.profile)
    assert bench.load() is not None
    assert len(stored_profiles(bench.state)) == 1


def test_a_fingerprint_is_reproducible(bench: Bench) -> None:
    first = fingerprint(bench.machine.host())
    assert first == fingerprint(bench.machine.host())
    assert from_json(Fingerprint, json.loads(json.dumps(to_json(first)))) == first


def test_hosts_are_told_apart_by_the_speed_of_their_slower_cores(bench: Bench) -> None:
    host = bench.machine.host()
    fast, *others = host.cores
    seen = {
        str(fingerprint(host._replace(cores=(fast._replace(speed=speed), *others))))
        for speed in (0.4, 0.44, 1.0)
    }
    assert len(seen) == 3


# Damaged files


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"schema": 1}', b"\xff" * 50, b'{"schema": 1, "key": "x']
)
def test_a_damaged_file_is_renamed_and_replaced(bench: Bench, content: bytes) -> None:
    bench.path.write_bytes(content)
    assert bench.load() is None
    assert bench.state.warning is not None
    assert Path(f"{bench.path}.broken").read_bytes() == content
    assert store(bench.state, bench.profile)
    assert bench.load() == bench.profile


@pytest.mark.parametrize("field", ["schema", "version"])
def test_a_file_of_another_version_is_not_used(bench: Bench, field: str) -> None:
    record = {**json.loads(bench.path.read_text()), field: 99}
    bench.path.write_text(json.dumps(record))
    assert bench.load() is None
    assert stored_profiles(bench.state) == []
    assert (bench.path.exists(), bench.state.warning) == (True, None)


def edited(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Return the JSON of a profile after a change."""
    host = {
        "brand": None,
        "online": "0-3",
        "allowed": "0-3",
        "quota": None,
        "cores": "0 1 2 3",
        "speeds": {"1.00": "0-3"},
        "nodes": {"0": "0-3"},
        "performance_cpus": None,
    }
    record: dict[str, Any] = json.loads(
        json.dumps(
            {
                "created": samples.CREATED,
                "host": host,
                "engine": {"path": "/e", "version": "1", "files": [["/e", 1, 2]]},
                "model": {"architecture": "a", "quantization": "q", "size": 1, "name": "n"},
                "setting": SETTING._replace(env=dict(SETTING.env))._asdict(),  # type: ignore[arg-type]
                "evidence": {
                    **to_json(EVIDENCE),
                    "ratio": {"median": 1.2, "low": 1.1, "high": 1.3, "rounds": 9},
                    "against_upstream": None,
                },
            }
        )
    )
    change(record)
    return record


def test_the_unchanged_record_is_valid() -> None:
    assert to_json(from_json(Profile, edited(lambda record: None))) == edited(lambda record: None)


def at(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    """Return a function that puts a value into a record."""

    def put(record: Any) -> None:
        for step in path[:-1]:
            record = record[step]
        record[path[-1]] = value

    return put


WRONG = {
    "a date without a time": at("created", value="2026-11-23"),
    "a change of the direction of text": at("model", "name", value="a\u202eb"),
    "an escape sequence": at("host", "brand", value="\x1b[2J"),
    "an unknown field": at("host", "hostname", value="x"),
    "no CPU list": at("host", "online", value="all"),
    "a quota of 0": at("host", "quota", value=0),
    "a quota of true": at("host", "quota", value=True),
    "nodes as a list": at("host", "nodes", value=["0-3"]),
    "files that are texts": at("engine", "files", value=["/e"]),
    "a short file": at("engine", "files", value=[["/e", 1]]),
    "a negative size": at("model", "size", value=-1),
    "a fractional size": at("model", "size", value=1.5),
    "no model": at("model", value=None),
    "a long name": at("model", "name", value="n" * 100_000),
    "a setting that is a list": at("setting", value=[1]),
    "no threads": at("setting", "threads", value=0),
    "many threads": at("setting", "threads", value=513),
    "a library to load": at("setting", "env", value={"LD_PRELOAD": "/tmp/x.so"}),
    "a tool to load": at("setting", "env", value={"OMP_TOOL_LIBRARIES": "/tmp/x.so"}),
    "a line break": at("setting", "env", value={"OMP_PLACES": "a\nb"}),
    "a foreign CPU": at("setting", "cpus", value="0-4"),
    "no CPU": at("setting", "cpus", value=""),
    "a flag for numa": at("setting", "numa", value="--rpc"),
    "no micro-batch": at("setting", "ubatch", value=-1),
    "a poll above 100": at("setting", "poll", value=101),
    "a node below 0": at("setting", "node", value=-1),
    "memory spread over nothing": at("setting", "interleave", value=""),
    "a priority": at("setting", "nice", value=-5),
    "a lower priority": at("setting", "nice", value=5),
    "another file": at("setting", "embedding", value="q6_k"),
    "an infinite ratio": at("evidence", "ratio", "median", value=float("inf")),
    "no ratio": at("evidence", "ratio", "low", value=float("nan")),
    "a ratio in words": at("evidence", "ratio", "high", value="1.3"),
    "an unknown objective": at("evidence", "objective", "name", value="fast"),
    "a missing field": lambda record: record["evidence"].pop("verdict"),
    "nothing": lambda record: record.clear(),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_record_that_no_tuning_writes_is_refused_in_one_line(what: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        from_json(Profile, edited(WRONG[what]))
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_an_edited_profile_is_renamed(bench: Bench) -> None:
    record = json.loads(bench.path.read_text())
    record["setting"]["env"]["LD_PRELOAD"] = "/tmp/x.so"
    bench.path.write_text(json.dumps(record))
    assert bench.load() is None
    assert not bench.path.exists()
    assert '(setting.env: "LD_PRELOAD" is not one of ' in (bench.state.warning or "")


def test_a_profile_of_another_host_under_the_key_of_this_one_is_not_used(bench: Bench) -> None:
    record = json.loads(bench.path.read_text())
    record["host"]["brand"] = "Another CPU"
    bench.path.write_text(json.dumps(record))
    assert bench.load() is None
    assert stored_profiles(bench.state) == []


def test_a_setting_on_cpus_that_are_not_allowed_is_refused() -> None:
    record = edited(at("host", "allowed", value="0-1"))
    record["setting"]["cpus"] = "0-1"
    assert from_json(Profile, record).setting is not None
    record["setting"]["cpus"] = "0-2"
    with pytest.raises(ValueError, match="cpus"):
        from_json(Profile, record)


def test_an_invalid_profile_is_not_stored(bench: Bench) -> None:
    wrong = bench.profile._replace(setting=SETTING._replace(nice=-5))
    assert store(bench.state, wrong) is None
    assert bench.state.warning is not None
    assert bench.load() == bench.profile


def test_an_impossible_folder_is_a_warning(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    state = State(str(tmp_path / "file" / "state"))
    assert store(state, bench.profile) is None
    assert state.warning is not None
    assert stored_profiles(state) == []


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_profiles_in_a_read_only_folder_are_loaded(bench: Bench) -> None:
    bench.path.parent.chmod(0o500)
    assert bench.load() == bench.profile
    assert store(bench.state, bench.profile) is None
    assert bench.state.warning is not None
    bench.path.parent.chmod(0o700)


# The claim in reasons


@pytest.mark.parametrize(
    ("objective", "end"),
    [("tg", "default"), ("pp", "for prompts"), ("request", "for whole requests")],
)
def test_the_claim_names_the_objective(bench: Bench, objective: str, end: str) -> None:
    evidence = EVIDENCE._replace(objective=EVIDENCE.objective._replace(name=objective))
    said = claim(bench.profile._replace(evidence=evidence))
    assert said.startswith(samples.CLAIM)
    assert said.endswith(end)


def test_the_claim_quotes_the_resolution(bench: Bench) -> None:
    evidence = EVIDENCE._replace(resolution=0.02)
    said = claim(bench.profile._replace(evidence=evidence))
    assert said == f"{samples.CLAIM} (resolution 2 %)"


def test_a_claim_without_a_ratio_has_only_the_date(bench: Bench) -> None:
    evidence = EVIDENCE._replace(ratio=None)
    assert claim(bench.profile._replace(evidence=evidence)) == "measured on 2026-11-23"


# Several processes

posix = pytest.mark.skipif(os.name != "posix", reason="signals")

WRITER = """
import sys
from pathlib import Path
from bitnet_tuning.plan.profile import store
from bitnet_tuning.store.state import State
from tests import profile_samples as samples

folder, name = Path(sys.argv[1]), sys.argv[2]
state = State(str(folder / "state"))
host = samples.machine(folder / f"root-{name}").host()
engine = samples.engine_in(folder / f"engine-{name}")
for number in range(1_000_000):
    model = samples.MODEL._replace(size=1 + number % 20)
    assert store(state, samples.profile(host, engine, model=model)), state.warning
    print("stored", flush=True)
"""


@posix
def test_a_killed_writer_leaves_complete_files_and_no_lock(
    tmp_path: Path, repository: Path
) -> None:
    for name in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(name)]
        with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                for _ in range(10 * (1 + name)):
                    assert process.stdout.readline() == b"stored\n"
            finally:
                process.kill()  # most likely while it stores the next profile
    state = State(str(tmp_path / "state"))
    assert len(stored_profiles(state)) >= 10 + 20 + 20
    assert not list((tmp_path / "state").glob("*.broken"))
    host, engine = samples.machine(tmp_path / "root").host(), samples.engine_in(tmp_path / "engine")
    assert store(state, samples.profile(host, engine))
    assert state.warning is None


@posix
def test_a_lock_excludes_others_and_ends_with_its_holder(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with alone(path) as first:
        assert first
        with alone(path) as second:
            assert not second
    with alone(path) as third:
        assert third


def test_a_lock_that_is_impossible_keeps_nobody_out(tmp_path: Path) -> None:
    with alone(str(tmp_path / "none" / "lock")) as held:
        assert held
