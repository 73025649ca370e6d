"""A reader for the tensors of an I2_S file, which the library `gguf` refuses to open."""

import os

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, quants

from bitnet_tuning.model.gguf import read_tensors as tensor_infos
from bitnet_tuning.model.types import TensorInfo, tensor_bytes
from tools import ternary

_I2_S = 36

Floats = npt.NDArray[np.float32]


def read_tensors(path: str) -> dict[str, Floats]:
    """Return every tensor of an I2_S file as floats, slowest dimension first.

    Raise ValueError or NotImplementedError for tensor types that neither this module nor the
    library `gguf` dequantizes.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        return {info.name: _read_tensor(handle, info) for info in tensor_infos(path)}
    finally:
        os.close(handle)


def _read_tensor(handle: int, info: TensorInfo) -> Floats:
    data = os.pread(handle, tensor_bytes(info.kind, info.weights), info.offset)
    shape = info.shape[::-1]
    if info.kind == _I2_S:
        digits, scale = ternary.unpack_i2_s(np.frombuffer(data, np.uint8))
        return np.asarray(digits * np.float32(scale), np.float32).reshape(shape)
    rows = np.frombuffer(data, np.uint8).reshape(*shape[:-1], -1)
    floats = quants.dequantize(rows, GGMLQuantizationType(info.kind))
    return np.asarray(floats, np.float32).reshape(shape)
