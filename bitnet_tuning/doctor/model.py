"""The model: there, of the right kind, on a fast drive; pure."""

from __future__ import annotations

from shlex import quote

from bitnet_tuning.doctor.case import Case, Knob, Problem, Verdict, bad, good, unknown, warn
from bitnet_tuning.engine.builds import check_pair
from bitnet_tuning.machine.mounts import Mount, mount_holding
from bitnet_tuning.model.types import I2_S

_TERNARY = (I2_S, "tq1_0", "tq2_0")

_SHARED = ("9p", "virtiofs", "nfs", "nfs4", "cifs", "smb3", "smbfs", "vboxsf", "fuse.sshfs")
"""File systems of other machines, or of a virtual machine's host."""

_TO_I2_S = "python3 setup_env.py -md MODEL_FOLDER -q i2_s"


def _model(case: Case) -> Verdict | None:
    """Raises UnsupportedError where engine and model cannot work together."""
    model, engine = case.model, case.known_engine
    if model is None:
        return None
    if isinstance(model, Problem):
        return bad(model.cause, model.remedy)
    if engine:
        check_pair(engine, model)
    text = f"{model.path}: {model.architecture}, {model.quantization}"
    if model.quantization == I2_S:
        return good(text)
    if model.quantization in _TERNARY:
        return _ternary(case, text)
    return warn(f"{text}: not i2_s, so every token reads many times the bytes", _TO_I2_S)


def _ternary(case: Case, text: str) -> Verdict:
    """What the embedded engine and mainline want, bitnet.cpp has better kernels than."""
    engine = case.known_engine
    if engine is not None and engine.i2_s:
        return warn(f"{text}: bitnet.cpp's own kernels are those of i2_s", _TO_I2_S)
    return good(f"{text}, as engines without i2_s want it")


def _drive(case: Case) -> Verdict | None:
    if case.model_path is None:
        return _drives(case)
    where = mount_holding(case.model_path, case.mounts)
    if where is None:
        return unknown("which file system holds the model is not known")
    if where.windows:
        return warn(
            f"{case.model_path} lies on a Windows drive ({where.kind} on {where.point}), which is "
            "read many times slower than Linux's own file system",
            f"cp {quote(case.model_path)} ~/ and name the copy with -m",
        )
    if where.kind in _SHARED:
        return warn(
            f"{case.model_path} lies on {where.kind}, which is read over a network or from the "
            "virtual machine's host",
            f"cp {quote(case.model_path)} to a local disk and name the copy with -m",
        )
    return good(f"{where.kind} on {where.point}")


def _drives(case: Case) -> Verdict | None:
    """Without a model: only Windows drives are worth a word."""
    drives: list[Mount] = [mount for mount in case.mounts if mount.windows]
    if not drives or case.host.wsl is None:
        return None
    points = ", ".join(dict.fromkeys(mount.point for mount in drives))
    return unknown(
        f"no model to judge; Windows drives ({drives[0].kind} on {points}) are read many times "
        "slower than Linux's own file system",
        f"keep models off {points}: cp them into your Linux home folder",
    )


KNOBS = (
    Knob("model", _model, "the file's header against what the engine can do"),
    Knob(
        "model's drive",
        _drive,
        "its mount; Microsoft: Working across Windows and Linux file systems",
    ),
)
