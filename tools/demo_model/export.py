"""The export of the trained network to GGUF files, one for each ternary format."""

from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from torch import Tensor

from tools import ternary
from tools.demo_model.corpus import CHAT_TEMPLATE, SPECIALS
from tools.demo_model.network import EMBEDDING, Shape, ternary_parts
from tools.demo_model.vocabulary import Vocabulary

NAME = "bitnet-tuning-demo"
Array = npt.NDArray[np.generic]


class Format(NamedTuple):
    """A ternary tensor type: ggml's numbers of the tensor and file types, and the packer."""

    tensor_type: int
    file_type: int
    pack: Callable[[ternary.Ternary, float], ternary.Packed]


TQ2_0 = Format(35, 37, ternary.pack_tq2_0)
I2_S = Format(36, 40, ternary.pack_i2_s)


class _Stored(NamedTuple):
    """A tensor ready to be written. `shape` is in weights, slowest dimension first."""

    name: str
    shape: tuple[int, ...]
    data: Array
    tensor_type: int


def write_model(
    path: str, form: Format, parameters: dict[str, Tensor], shape: Shape, vocabulary: Vocabulary
) -> None:
    """Write the network to `path` with its matrices in the given format."""
    writer = GGUFWriter(path, "llama")
    _describe(writer, form, shape)
    _describe_vocabulary(writer, vocabulary)
    tensors = [_stored(name, parameters[name], form) for name in _order(shape)]
    for name, size, data, tensor_type in tensors:
        # The gguf library does not know type 36. It writes the number as it is unless the data are
        # uint8, for which it would look up the block size of the type: hence int8.
        writer.add_tensor_info(name, size, np.dtype(np.int8), data.nbytes, _raw_type(tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()


def _raw_type(number: int) -> GGMLQuantizationType:
    # The library's annotations require the enumeration, but it only writes the number.
    return cast(GGMLQuantizationType, number)


def _order(shape: Shape) -> list[str]:
    return [EMBEDDING, *shape.norms(), *shape.matrices()]


def _stored(name: str, value: Tensor, form: Format) -> _Stored:
    """Store matrices as ternary, the embedding in float16 and gains in float32."""
    size = tuple(value.shape)
    if name == EMBEDDING:
        return _Stored(name, size, value.detach().half().numpy(), GGMLQuantizationType.F16)
    if len(size) == 1:
        return _Stored(name, size, value.detach().float().numpy(), GGMLQuantizationType.F32)
    digits, scale = ternary_parts(value.detach())
    return _Stored(name, size, form.pack(digits.char().numpy(), scale), form.tensor_type)


def _describe(writer: GGUFWriter, form: Format, shape: Shape) -> None:
    writer.add_name(NAME)
    writer.add_description("A short guide to running BitNet on a CPU, learnt by heart")
    writer.add_license("MIT")
    writer.add_file_type(form.file_type)
    writer.add_quantization_version(2)
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(shape.epsilon)


def _describe_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    control = {True: TokenType.CONTROL, False: TokenType.NORMAL}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([control[token in SPECIALS] for token in vocabulary.tokens])
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_eot_token_id(vocabulary.end_of_turn)
    writer.add_pad_token_id(vocabulary.eos)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)
