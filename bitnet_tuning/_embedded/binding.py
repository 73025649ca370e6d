"""The one place that imports xllamacpp and fills in its parameters."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

from bitnet_tuning.errors import MissingError

VERBOSITY_ERRORS = 1
VERBOSITY_ALL = 10


class Setup(NamedTuple):
    """What decides how a model is loaded; sizes in tokens, None as llama.cpp likes."""

    model: str
    context: int
    threads: int
    threads_batch: int
    batch: int
    ubatch: int
    mmap: bool | None = None
    mlock: bool = False
    flash_attention: str = "auto"
    numa: str = ""
    priority: int = 0
    poll: int = 50
    warmup: bool = True
    verbose: bool = False
    chat_template: str = ""


def load_binding() -> Any:
    """The module ``xllamacpp``. Raises MissingError where it cannot be imported."""
    try:
        return importlib.import_module("xllamacpp")
    except ImportError as error:
        cause = f"the embedded engine needs the package xllamacpp ({error})"
        remedy = "pip install xllamacpp, or this project with its extra: bitnet-tuning[embedded]"
        if "libgomp" in str(error):
            remedy = "its OpenMP runtime is missing; on Debian and Ubuntu: apt-get install libgomp1"
        raise MissingError(cause, remedy) from error


def version_line() -> str:
    """``version: embedded (...)``, with or without xllamacpp."""
    try:
        binding = load_binding()
    except MissingError:
        return "version: embedded (xllamacpp is not installed)"
    build = build_info(binding)
    return (
        f"version: embedded (xllamacpp {binding.__version__}, "
        f"llama.cpp b{build['build_number']} ({build['commit']}), "
        f"{build['compiler']} for {build['build_target']})"
    )


def build_info(binding: Any) -> dict[str, Any]:
    """``build_number``, ``commit``, ``compiler`` and ``build_target`` of its llama.cpp.

    Wheels are built outside llama.cpp's repository, so that its own number is 0;
    the last part of xllamacpp's version is the llama.cpp release that it wraps.
    """
    build = {"build_number": 0, "commit": "unknown", "compiler": "?", "build_target": "?"}
    build.update(getattr(binding, "BUILD_INFO", {}))
    parts = str(binding.__version__).split(".")
    if not build["build_number"] and len(parts) > 2 and parts[2].isdigit():
        build["build_number"] = int(parts[2])
    return build


def fill(binding: Any, setup: Setup) -> Any:
    """CommonParams for ``setup``: one sequence, on CPUs, offline."""
    params = binding.CommonParams()
    params.model.path = setup.model
    for cpu, count in (
        (params.cpuparams, setup.threads),
        (params.cpuparams_batch, setup.threads_batch),
    ):
        cpu.n_threads = count
        cpu.poll = setup.poll
        cpu.priority = binding.ggml_sched_priority(setup.priority)
    params.n_ctx = setup.context
    params.n_batch = setup.batch
    params.n_ubatch = setup.ubatch
    params.warmup = setup.warmup
    if setup.chat_template:
        params.chat_template = setup.chat_template
    params.verbosity = VERBOSITY_ALL if setup.verbose else VERBOSITY_ERRORS
    if setup.numa:
        strategies = binding.ggml_numa_strategy
        params.numa = getattr(strategies, f"GGML_NUMA_STRATEGY_{setup.numa.upper()}")
    _set_flash_attention(binding, params, setup.flash_attention)
    _set_load_mode(binding, params, setup.mmap, setup.mlock)
    # The thoughts of models that think are part of their text.
    params.reasoning_format = binding.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    _set_known(params, QUIET_SERVER)
    return params


# A server made for many clients, cut down to one sequence of one program.
QUIET_SERVER: dict[str, Any] = {
    "n_parallel": 1,
    "cont_batching": False,
    "cache_ram_mib": 0,
    "cache_idle_slots": False,
    "n_ctx_checkpoints": 0,
    "ctx_shift": False,
    "n_threads_http": 1,
    "sse_ping_interval": -1,
    "endpoint_slots": False,
    "endpoint_props": False,
    "endpoint_metrics": False,
    "ui": False,
    "webui": False,
    "offline": True,
    # Would measure the machine's memory and change what was asked for.
    "fit_params": False,
    "n_gpu_layers": 0,
    "no_kv_offload": True,
    "no_op_offload": True,
}


def _set_known(params: Any, values: dict[str, Any]) -> None:
    """Set what this release of xllamacpp knows; names come and go with llama.cpp's."""
    for name, value in values.items():
        if hasattr(params, name):
            setattr(params, name, value)


def _set_flash_attention(binding: Any, params: Any, wanted: str) -> None:
    name = {"on": "ENABLED", "1": "ENABLED", "auto": "AUTO"}.get(wanted, "DISABLED")
    kinds = binding.llama_flash_attn_type
    params.flash_attn_type = getattr(kinds, f"LLAMA_FLASH_ATTN_TYPE_{name}")


def _set_load_mode(binding: Any, params: Any, mmap: bool | None, mlock: bool) -> None:
    if not hasattr(params, "load_mode"):
        _set_known(params, {"use_mmap": mmap is not False, "use_mlock": mlock})
        return
    if mmap is None and not mlock:
        return
    name = {
        (True, False): "MMAP",
        (True, True): "MMAP_MLOCK",
        (False, True): "MLOCK",
        (False, False): "NONE",
    }[mmap is not False, mlock]
    params.load_mode = getattr(binding.llama_load_mode, f"LLAMA_LOAD_MODE_{name}")
