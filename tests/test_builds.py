"""Several builds in one checkout: which one is chosen, and which one really runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bitnet_tuning import demo
from bitnet_tuning.__main__ import main
from bitnet_tuning.cli import run as run_inference
from bitnet_tuning.engine.builds import (
    FASTER,
    KIND,
    OPEN,
    OUT,
    SLOWER,
    BuildResult,
    ComparedBuilds,
    build_name,
    choose_build,
    load_fastest,
    store_fastest,
)
from bitnet_tuning.engine.find import Engine, Location, checkout_of, locate_all
from bitnet_tuning.engine.known import know
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.machine.host import Host
from bitnet_tuning.model.gguf import read_model
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.prepare import find_builds, find_engine, find_pair
from bitnet_tuning.store.state import State
from tests.engines import FakeEngine
from tests.machines import Machine, x86_entries

HASWELL = "fpu pni ssse3 avx f16c fma bmi2 avx2"
ICELAKE = f"{HASWELL} avx512f avx512dq avx512bw avx512cd avx512vl avx512vbmi avx512_vnni"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="fake engines are scripts")


def machine(folder: Path, flags: str = HASWELL) -> Machine:
    return Machine(folder).cores([[0], [1]]).cpuinfo(x86_entries(2, flags))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return tmp_path / "checkout"


def three(checkout: Path) -> dict[str, FakeEngine]:
    """A build for AVX2, one for AVX alone, and one for AVX-512."""
    return {
        "build": FakeEngine(checkout).isa("AVX", "AVX2", "FMA"),
        "build-old": FakeEngine(checkout, build="build-old").isa("AVX"),
        "build-wide": FakeEngine(checkout, build="build-wide").isa("AVX", "AVX2", "FMA", "AVX512"),
    }


# Finding builds


def test_every_build_in_a_checkout_is_found_the_plain_one_first(checkout: Path) -> None:
    for name in ("build-b", "build", "build-a", "buildroot", "other"):
        FakeEngine(checkout, build=name)
    (checkout / "build-empty" / "bin").mkdir(parents=True)
    (checkout / "build.log").write_text("")
    release = FakeEngine(checkout, build="build-win")
    (release.bin / "Release").mkdir()
    (release.bin / "llama-cli").rename(release.bin / "Release" / "llama-cli")
    (checkout / "build-link").symlink_to("build-a")
    found = locate_all(str(checkout), {}, ())
    bins = [each.cli.removeprefix(f"{checkout}/").removesuffix("/llama-cli") for each in found]
    assert bins == [
        "build/bin",
        "build-a/bin",
        "build-b/bin",
        "build-win/bin/Release",
        "buildroot/bin",
    ]
    assert {each.source for each in found} == {"named with --engine"}
    assert {checkout_of(each.cli) for each in found} == {str(checkout)}
    assert [build_name(each.cli) for each in found[2:4]] == ["build-b", "build-win"]


def test_a_named_program_or_build_folder_is_the_only_candidate(checkout: Path) -> None:
    fakes = three(checkout)
    for fake in fakes.values():
        for name in (fake.cli, fake.bin, fake.bin.parent):
            assert [each.cli for each in locate_all(str(name), {}, ())] == [str(fake.cli)]
    top = checkout / "llama-cli"
    top.write_text("#!/bin/sh\n")
    assert [each.cli for each in locate_all(str(checkout), {}, ())] == [str(top)]


def test_the_first_folder_with_a_build_counts(tmp_path: Path) -> None:
    FakeEngine(tmp_path / "a", build="build-x")
    FakeEngine(tmp_path / "b")
    folders = (str(tmp_path / "nowhere"), str(tmp_path / "a"), str(tmp_path / "b"))
    (found,) = locate_all(None, {}, folders)
    assert found.cli == str(tmp_path / "a" / "build-x" / "bin" / "llama-cli")
    environ = {"BITNET_ENGINE": str(tmp_path / "b")}
    assert locate_all(None, environ, folders)[0].source == "named with BITNET_ENGINE"


def test_programs_outside_build_folders_have_no_checkout() -> None:
    for path in ("/usr/bin/llama-cli", "/x/out/bin/llama-cli", "/build/llama-cli"):
        assert checkout_of(path) is None


# Choosing

MODEL = read_model(demo.I2_S)
PLAIN = frozenset(("AVX", "AVX2", "FMA"))


def an_engine(name: str, *isa: str, **changes: Any) -> Engine:
    return Engine(
        location=Location(f"/c/{name}/bin/llama-cli", "found"),
        version="",
        flags=frozenset({"-tb"}),
        chat_flags=frozenset(),
        openmp=None,
        isa=frozenset(isa),
        i2_s=True,
        architectures={},
        files=(),
        completion=None,
    )._replace(**changes)


FIRST = an_engine("build", *PLAIN)
WIDE = an_engine("build-wide", *PLAIN, "AVX512")
OLD = an_engine("build-old", "AVX")


def chosen(
    host: Host,
    *every: Engine,
    model: ModelFile | None = MODEL,
    measured: dict[str, BuildResult] | None = None,
) -> tuple[str, str]:
    """Return the chosen build's name and the reason."""
    compared = ComparedBuilds("2026-11-23T04:05:06Z", "tg", FIRST.path, measured or {})
    found = choose_build(every, host, model, compared if measured else None)
    return build_name(found.path), found.location.source


@pytest.fixture
def avx2(tmp_path: Path) -> Host:
    return machine(tmp_path / "avx2").host()


@pytest.fixture
def avx512(tmp_path: Path) -> Host:
    return machine(tmp_path / "avx512", ICELAKE).host()


def test_the_build_that_uses_most_of_the_cpu_is_chosen(avx2: Host, avx512: Host) -> None:
    name, why = chosen(avx512, FIRST, OLD, WIDE)
    assert name == "build-wide" and "fits this CPU best (AVX, FMA, AVX2, AVX512)" in why
    name, why = chosen(avx2, FIRST, OLD, WIDE)
    assert name == "build"
    assert "build-wide is built for AVX512, which this CPU lacks" in why
    assert chosen(avx2, OLD, WIDE, model=MODEL._replace(quantization="tq2_0"))[0] == "build-old"


def test_the_first_of_equal_builds_is_chosen(avx512: Host, tmp_path: Path) -> None:
    for every in ((FIRST, WIDE._replace(isa=PLAIN)), (WIDE, FIRST._replace(isa=WIDE.isa))):
        name, why = chosen(avx512, *every)
        assert name == build_name(every[0].path)
        assert "all fit this CPU equally well" in why
    unknown = Machine(tmp_path / "unknown").cores([[0]]).host()
    assert chosen(unknown, FIRST, WIDE)[0] == "build"


def test_a_build_without_kernels_for_i2_s_is_the_last_choice(avx512: Host) -> None:
    name, why = chosen(avx512, OLD, FIRST)
    assert name == "build"
    assert "build-old is built without AVX2 and NEON, which i2_s needs" in why
    blank = OLD._replace(isa=frozenset())
    assert chosen(avx512, OLD, blank)[0] == "build-old", "of the other nothing is known"


def test_a_build_that_cannot_run_the_model_is_not_chosen(avx512: Host) -> None:
    for changes in ({"i2_s": False}, {"architectures": {MODEL.architecture: False}}):
        name, why = chosen(avx512, WIDE._replace(**changes), FIRST)
        assert name == "build"
        assert "build-wide" in why


def test_a_build_that_cannot_start_is_not_chosen(avx512: Host) -> None:
    broken = WIDE._replace(fault=("cannot start it: no library", "build it"), i2_s=None)
    name, why = chosen(avx512, broken, FIRST)
    assert name == "build"
    assert "cannot start it: no library" in why


def test_without_a_usable_build_the_error_has_a_reason_for_each(avx2: Host) -> None:
    with pytest.raises(UnsupportedError) as caught:
        chosen(avx2, WIDE, FIRST._replace(i2_s=False))
    assert "build-wide/bin/llama-cli is built for AVX512" in caught.value.cause
    assert "mainline" in caught.value.cause
    assert "build it on this machine" in caught.value.remedy


def ranked(verdict: str, ratio: float = 1.0) -> BuildResult:
    return BuildResult(verdict, (ratio, ratio, ratio))


def test_the_build_that_was_measured_fastest_is_chosen(avx512: Host) -> None:
    narrow = an_engine("build-gcc", *PLAIN)
    every = (FIRST, narrow, WIDE)
    measured = {
        FIRST.path: ranked(OPEN),
        narrow.path: ranked(FASTER, 1.2),
        WIDE.path: ranked(OPEN, 1.1),
    }
    name, why = chosen(avx512, *every, measured=measured)
    assert (
        name == "build-gcc"
        and "measured fastest: ×1.20 (1.20–1.20) over build, measured on 2026-11-23" in why
    )
    measured[WIDE.path] = ranked(FASTER, 1.3)
    assert chosen(avx512, *every, measured=measured)[0] == "build-wide"
    del measured[WIDE.path]
    name, why = chosen(avx512, *every, measured=measured)
    assert name == "build-gcc" and "new or changed since then: build-wide" in why


def test_without_a_measured_difference_the_instruction_sets_decide(avx512: Host) -> None:
    measured = {FIRST.path: ranked(OPEN), WIDE.path: ranked(OPEN, 1.04)}
    name, why = chosen(avx512, FIRST, WIDE, measured=measured)
    assert name == "build-wide" and "none was measured to be faster" in why


@pytest.mark.parametrize("verdict", [SLOWER, f"{OUT}: wrong words"])
def test_a_build_that_was_measured_slower_or_wrong_is_not_chosen(
    avx512: Host, verdict: str
) -> None:
    measured = {FIRST.path: ranked(OPEN), WIDE.path: ranked(verdict, 0.8)}
    name, why = chosen(avx512, FIRST, WIDE, measured=measured)
    assert name == "build" and f"build-wide: {verdict} when measured" in why
    assert "the only one not measured to be slower or to fail" in why


def test_a_build_for_another_cpu_is_not_chosen_though_it_was_measured_fastest(avx2: Host) -> None:
    measured = {FIRST.path: ranked(OPEN), WIDE.path: ranked(FASTER, 2.0)}
    assert chosen(avx2, FIRST, WIDE, measured=measured)[0] == "build"


# Stored results of comparisons


@pytest.fixture
def state(own_state: Path) -> State:
    return State(str(own_state))


def known(checkout: Path, state: State) -> tuple[Engine, ...]:
    return tuple(know(each, state) for each in locate_all(str(checkout), {}, ()))


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Engine, ...]:
    """Two builds of which nothing but their files matters."""
    engines = []
    for name in ("build", "build-b"):
        program = tmp_path / name / "bin" / "llama-cli"
        program.parent.mkdir(parents=True)
        program.touch()
        location = Location(str(program), "found")
        engines.append(FIRST._replace(location=location, files=(str(program),)))
    return tuple(engines)


def remember(state: State, host: Host, every: tuple[Engine, ...], fastest: str) -> None:
    found = {each.path: BuildResult(OPEN, None) for each in every}
    winner = next(path for path in found if build_name(path) == fastest)
    found[winner] = BuildResult(FASTER, (1.25, 1.2, 1.3))
    compared = ComparedBuilds("2026-11-23T04:05:06Z", "tg", every[0].path, found)
    store_fastest(state, host, every, MODEL, compared)


def newer(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1_000_000))


def test_results_hold_while_the_builds_do_not_change(
    stored: tuple[Engine, ...], state: State, avx512: Host
) -> None:
    remember(state, avx512, stored, "build-b")
    first, second = (each.path for each in stored)
    measured = load_fastest(state, avx512, stored, MODEL)
    assert measured is not None and measured.builds.keys() == {first, second}
    assert measured.claim(second) == "×1.25 (1.20–1.30) over build, measured on 2026-11-23"
    newer(Path(second))
    measured = load_fastest(state, avx512, stored, MODEL)
    assert measured is not None and measured.builds.keys() == {first}
    newer(Path(first))
    assert load_fastest(state, avx512, stored, MODEL) is None


def test_results_hold_for_one_host_and_one_model(
    stored: tuple[Engine, ...], state: State, avx512: Host
) -> None:
    remember(state, avx512, stored, "build-b")
    for host in (avx512._replace(brand="Another CPU"), avx512._replace(quota=1.5)):
        assert load_fastest(state, host, stored, MODEL) is None
    other = MODEL._replace(size=MODEL.size + 1)
    assert load_fastest(state, avx512, stored, other) is None


@pytest.mark.parametrize(
    "change", [{"builds": []}, {"builds": {"x": 1}, "reference": "x"}, {"created": 3}]
)
def test_damaged_results_are_set_aside(
    stored: tuple[Engine, ...],
    state: State,
    avx512: Host,
    own_state: Path,
    change: dict[str, object],
) -> None:
    remember(state, avx512, stored, "build-b")
    (record,) = own_state.glob(f"{KIND}-*.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
    assert load_fastest(state, avx512, stored, MODEL) is None
    assert "; renamed to " in (state.warning or "")


# Whole commands


class Shown(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Plan = Callable[[Machine, Path], Shown]
Run = Callable[..., Shown]


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Plan:
    """Plan a run of an engine on a machine."""

    def planned(root: Machine, engine: Path) -> Shown:
        flags = ("--engine", str(engine), "-m", demo.I2_S, "-p", "hello", "--json")
        return Shown(main(["plan", "--root", str(root.path), *flags]), *capsys.readouterr())

    return planned


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run an engine on this machine."""

    def ran(engine: Path, *flags: str) -> Shown:
        named = ("--engine", str(engine), "-m", demo.I2_S, "-p", "hello")
        return Shown(run_inference.main([*named, *flags]), *capfd.readouterr())

    return ran


def test_a_plan_takes_the_best_build_for_the_machine_and_says_why(
    checkout: Path, tmp_path: Path, plan: Plan
) -> None:
    fakes = three(checkout)
    for flags, name in ((ICELAKE, "build-wide"), (HASWELL, "build")):
        made = json.loads(plan(machine(tmp_path / name, flags), checkout).out)
        assert made["engine"] == made["command"][0] == str(fakes[name].cli)
        assert "chosen of 3 builds" in made["reasons"]["engine"]
        said = "not for this CPU's AVX512" in made["reasons"]["isa"]
        assert said == (flags == ICELAKE)
    assert "build-wide is built for AVX512" in made["reasons"]["engine"]


def test_a_plan_takes_the_build_that_was_measured_fastest(
    checkout: Path, tmp_path: Path, state: State, plan: Plan
) -> None:
    wide = FakeEngine(checkout).isa("AVX", "AVX2", "AVX512")
    gcc = FakeEngine(checkout, build="build-gcc").isa("AVX", "AVX2", "FMA")
    root = machine(tmp_path / "root", ICELAKE)
    remember(state, root.host(), known(checkout, state), "build-gcc")
    made = json.loads(plan(root, checkout).out)
    assert made["engine"] == str(gcc.cli)
    assert "measured fastest: ×1.25" in made["reasons"]["engine"]
    newer(gcc.cli)
    assert json.loads(plan(root, checkout).out)["engine"] == str(wide.cli)


def test_a_named_build_for_another_cpu_is_refused(
    checkout: Path, tmp_path: Path, plan: Plan
) -> None:
    FakeEngine(checkout)
    wide = FakeEngine(checkout, build="build-wide").isa("AVX2", "AVX512")
    for name in (wide.cli, wide.bin, wide.bin.parent):
        done = plan(machine(tmp_path / "root"), name)
        assert (done.code, done.out) == (4, "")
        assert f"{wide.cli} is built for AVX512, which this CPU lacks" in done.err
        assert "build it on this machine" in done.err
    assert plan(machine(tmp_path / "other", ICELAKE), wide.cli).code == 0


@pytest.mark.parametrize("dies", ["start", "model"])
def test_a_build_that_dies_of_an_illegal_instruction_never_gets_the_prompt(
    checkout: Path, dies: str, run: Run
) -> None:
    fine = FakeEngine(checkout).isa("AVX2")
    dead = FakeEngine(checkout, build="build-new").isa("AVX2", "AVX512", dies=dies)
    for _ in range(2):
        done = run(checkout)
        assert (done.code, done.out) == (0, "hello and more text\n"), done.err
    assert len(fine.prompts()) == 2
    assert "-t" in fine.prompts()[-1]["argv"]
    asked = len(dead.runs())
    assert dead.prompts() == [] and asked > 0
    done = run(dead.cli)
    assert (done.code, done.out) == (4, "")
    assert str(dead.cli) in done.err
    assert "this CPU lacks" in done.err
    assert len(dead.runs()) == asked, "its death is remembered"


def test_the_chosen_build_is_the_one_that_runs(checkout: Path, state: State, run: Run) -> None:
    fakes = {name: FakeEngine(checkout, build=name).isa("AVX2") for name in ("build", "build-b")}
    assert run(checkout).code == 0
    assert [len(fake.prompts()) for fake in fakes.values()] == [1, 0]
    remember(state, read_host(), known(checkout, state), "build-b")
    made = json.loads(run(checkout, "--dry-run", "--json").out)
    assert run(checkout).code == 0
    assert [len(fake.prompts()) for fake in fakes.values()] == [1, 1]
    assert fakes["build-b"].prompts()[0]["argv"] == made["command"]


# Engines without a model, and records of engines on other CPUs


def test_without_a_model_the_choice_is_for_i2_s(checkout: Path, state: State) -> None:
    FakeEngine(checkout).isa("AVX")
    FakeEngine(checkout, build="build-b").isa("AVX", "AVX2")
    engine = find_engine(str(checkout), state)
    assert build_name(engine.path) == "build-b"
    assert engine == find_engine(str(checkout), state, demo.I2_S)
    assert find_pair(str(checkout), demo.TQ2_0, state)[0].path == engine.path
    assert len(find_builds(str(checkout), demo.I2_S, state)[0]) == 2


def older(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record in the form of early versions."""
    flat = {name: record["engine"][name] for name in ("version", "flags", "isa")}
    return {"schema": 1, "key": record["key"], "identities": record["files"], "probe": 2, **flat}


def asked_on(*flags: str, ran: bool = True) -> Callable[[Any], Any]:
    """Return a change of a record as if it came from another CPU."""
    return lambda record: {**record, "engine": {**record["engine"], "ran": ran, "cpu": flags}}


@pytest.mark.parametrize(
    "change",
    [
        older,
        lambda record: {**record, "version": 2},
        asked_on("of", "another", "machine", ran=False),
    ],
)
def test_records_of_older_versions_and_of_deaths_on_other_cpus_are_not_used(
    checkout: Path, state: State, own_state: Path, change: Callable[[Any], Any]
) -> None:
    fake = FakeEngine(checkout)
    first = know(Location(str(fake.cli), "found"), state)
    assert first.ran is True
    (record,) = own_state.glob("engine-*.json")
    record.write_text(json.dumps(change(json.loads(record.read_text()))))
    asked = len(fake.runs())
    again = State(str(own_state))
    assert know(Location(str(fake.cli), "found"), again) == first
    assert len(fake.runs()) > asked
    assert again.warning is None


def test_the_record_of_a_build_that_ran_holds_on_other_cpus(
    checkout: Path, state: State, own_state: Path
) -> None:
    """Several machines may share a home folder."""
    fake = FakeEngine(checkout).isa("AVX2", "AVX512")
    know(Location(str(fake.cli), "found"), state)
    (record,) = own_state.glob("engine-*.json")
    record.write_text(json.dumps(asked_on("another")(json.loads(record.read_text()))))
    asked = len(fake.runs())
    engine = know(Location(str(fake.cli), "found"), state)
    assert len(fake.runs()) == asked
    assert engine.cpu == {"another"}


def test_a_build_that_chooses_its_kernels_is_probed_on_each_cpu(
    checkout: Path, state: State, own_state: Path
) -> None:
    fake = FakeEngine(checkout)
    (fake.bin / "libggml-cpu-haswell.so").write_bytes(b"\x7fELF")
    first = know(Location(str(fake.cli), "found"), state)
    (record,) = own_state.glob("engine-*.json")
    record.write_text(json.dumps(asked_on("another")(json.loads(record.read_text()))))
    assert know(Location(str(fake.cli), "found"), state) == first
