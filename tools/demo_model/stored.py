"""A reader for the tensors of an I2_S file, which the library `gguf` refuses to open."""

import os

import numpy as np
import numpy.typing as npt

from bitnet_tuning.model.gguf import read_tensors as tensor_infos
from bitnet_tuning.model.types import TensorInfo, tensor_bytes
from tools import ternary

_F32, _F16, _I2_S = 0, 1, 36

Floats = npt.NDArray[np.float32]


def read_tensors(path: str) -> dict[str, Floats]:
    """Return every tensor of an I2_S file as floats, slowest dimension first.

    Raise ValueError for tensor types other than F32, F16 and I2_S.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        return {info.name: _read_tensor(handle, info) for info in tensor_infos(path)}
    finally:
        os.close(handle)


def _read_tensor(handle: int, info: TensorInfo) -> Floats:
    if info.kind not in (_F32, _F16, _I2_S):
        raise ValueError(f"{info.name}: tensor type {info.kind} is not F32, F16 or I2_S")
    data = os.pread(handle, tensor_bytes(info.kind, info.weights), info.offset)
    shape = info.shape[::-1]
    if info.kind == _I2_S:
        digits, scale = ternary.unpack_i2_s(np.frombuffer(data, np.uint8))
        return np.asarray(digits * np.float32(scale), np.float32).reshape(shape)
    floats = np.frombuffer(data, "<f4" if info.kind == _F32 else "<f2")
    return np.asarray(floats, np.float32).reshape(shape)
