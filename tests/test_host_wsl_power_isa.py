"""WSL, governors, and the processor's instruction sets and name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.machines import CPU, Machine, x86_entries


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path).regular(cores=4)


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("4.4.0-19041-Microsoft", 1),
        ("4.4.0-17763-Microsoft", 1),
        ("3.4.0-Microsoft", 1),
        ("5.15.90.1-microsoft-standard-WSL2", 2),
        ("4.19.104-microsoft-standard", 2),
        ("6.6.36.6-microsoft-standard-WSL2+", 2),
        ("6.1.21.1-custom-WSL2", 2),
        ("5.10.60-my-Microsoft", 2),
        ("6.8.0-45-generic", None),
        ("5.15.0-1064-azure", None),
        ("4.4.0-210-generic", None),
        ("", None),
    ],
)
def test_the_release_tells_the_version_of_wsl(
    machine: Machine, release: str, version: int | None
) -> None:
    assert machine.kernel(release).host().wsl == version


@pytest.mark.parametrize(
    "text",
    [
        "Linux version 5.15.0-1064-azure (builder@microsoft.com) (gcc 11.4.0) #1 SMP",
        "Linux version 6.1.0 (oe-user@oe-host) (Microsoft clang) #1 SMP",
    ],
)
@pytest.mark.parametrize("with_release", [True, False])
def test_a_kernel_built_at_microsoft_is_not_wsl(
    machine: Machine, text: str, with_release: bool
) -> None:
    machine.write("proc/version", text)
    if with_release:
        machine.kernel(text.split()[2], text)
    assert machine.host().wsl is None


def test_proc_version_replaces_a_missing_release(machine: Machine) -> None:
    machine.write("proc/version", "Linux version 5.10.16.3-microsoft-standard-WSL2 (x@y) #1 SMP")
    assert machine.host().wsl == 2


@pytest.mark.parametrize("sign", ["run/WSL/1_interop", "proc/sys/fs/binfmt_misc/WSLInterop"])
def test_wsl_is_found_with_a_kernel_that_the_user_built(machine: Machine, sign: str) -> None:
    assert machine.kernel("6.9.1-mine").write(sign, "").host().wsl == 2


# Governors


def test_governors_are_those_of_the_allowed_cpus_most_frequent_first(machine: Machine) -> None:
    assert machine.host().governor is None
    machine.governors({0: "performance", 1: "powersave", 2: "powersave", 3: "powersave"})
    assert machine.host().governor == "powersave,performance"
    assert machine.affinity("0").host().governor == "performance"


def test_the_first_cpus_may_have_no_governor(machine: Machine) -> None:
    assert machine.governors({2: "schedutil"}).host().governor == "schedutil"


@pytest.mark.parametrize("text", ["", "two words", "\0", "x" * 200, "<unknown>"])
def test_a_broken_governor_is_ignored(machine: Machine, text: str) -> None:
    assert machine.governors(dict.fromkeys(range(4), text)).host().governor is None


# Instruction sets

ARM = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes asimddp sve i8mm
CPU implementer\t: 0x41
CPU part\t: 0xd40"""

ARM_32 = """processor\t: 0
Features\t: half thumb neon
CPU implementer\t: 0x41
CPU part\t: 0xd03

Hardware\t: BCM2835
Model\t\t: Some Board"""

RISC_V = """processor\t: 0
hart\t\t: 0
isa\t\t: rv64imafdcv_zicsr_zifencei_zvbb
mmu\t\t: sv39"""

S390 = """vendor_id       : IBM/S390
# processors    : 2
features\t: esan3 zarch stfle vx vxd
processor 0: version = FF,  identification = 0123"""

POWER = """processor\t: 0
cpu\t\t: POWER9, altivec supported
clock\t\t: 3800.000000MHz"""


def test_x86_shows_vendor_flags_and_brand(machine: Machine) -> None:
    host = machine.cpuinfo(x86_entries(4, "sse4_2 avx2 fma", "AuthenticAMD")).host()
    assert (host.vendor, host.isa) == ("AuthenticAMD", ("avx2", "fma", "sse4_2"))
    assert host.brand == "Some CPU"


def test_a_brand_has_single_spaces(machine: Machine) -> None:
    text = "processor\t: 0\nmodel name\t:  A(R)   CPU\t@ 2.00GHz \n"
    assert machine.write("proc/cpuinfo", text).host().brand == "A(R) CPU @ 2.00GHz"


@pytest.mark.parametrize(
    ("text", "vendor", "brand", "some"),
    [
        (ARM, None, "ARM implementer 0x41, part 0xd40", {"asimd", "asimddp", "sve", "i8mm"}),
        (ARM_32, None, "BCM2835", {"neon"}),
        (RISC_V, None, None, {"rv64imafdcv", "zvbb", "zicsr"}),
        (S390, "IBM/S390", None, {"vx", "vxd"}),
        (POWER, None, "POWER9, altivec supported", set()),
    ],
)
def test_other_processors_use_other_names(
    machine: Machine, text: str, vendor: str | None, brand: str | None, some: set[str]
) -> None:
    host = machine.cpuinfo([text, text.replace(": 0", ": 1")]).host()
    assert (host.vendor, host.brand) == (vendor, brand)
    assert some <= set(host.isa)


def test_only_the_first_processor_of_a_long_file_counts(machine: Machine) -> None:
    flags = " ".join(f"flag{number}" for number in range(250))
    host = machine.cpuinfo(x86_entries(100, f"avx2 {flags}")).host()
    assert len(host.isa) == 251


@pytest.mark.parametrize("text", ["", "flags", "flags\t:", "vendor_id:\nFlags:", "\0\0"])
def test_a_broken_cpuinfo_gives_no_processor(machine: Machine, text: str) -> None:
    host = machine.write("proc/cpuinfo", text).host()
    assert (host.vendor, host.isa, host.brand) == (None, (), None)


def test_a_dangling_link_is_a_missing_file(machine: Machine) -> None:
    (machine.path / "proc").mkdir(exist_ok=True)
    (machine.path / "proc/cpuinfo").symlink_to("nowhere")
    (machine.path / CPU / "cpu0/cpufreq").symlink_to("../cpufreq/policy0")
    assert machine.host().isa == ()
