"""Import xllamacpp and fill in its parameters."""

from __future__ import annotations

import importlib
from typing import Any

from bitnet_tuning.embedded.flags import LoadOptions
from bitnet_tuning.errors import MissingError

ERRORS_ONLY = 1
"""llama.cpp's level of the log at which it prints errors only."""


def load_binding() -> Any:
    """Return the module ``xllamacpp``. Raise MissingError if it cannot be imported."""
    try:
        return importlib.import_module("xllamacpp")
    except ImportError as error:
        cause = f"the embedded engine needs the package xllamacpp ({error})"
        remedy = "install it: pip install xllamacpp"
        if "libgomp" in str(error):
            remedy = "install GNU's OpenMP runtime; on Debian and Ubuntu: apt-get install libgomp1"
        raise MissingError(cause, remedy) from error


def version_line() -> str:
    """Return the line ``version: embedded (…)`` with all versions; raise MissingError without
    xllamacpp."""
    binding = load_binding()
    build = {"build_number": 0, "commit": "unknown", "compiler": "?", "build_target": "?"}
    build.update(getattr(binding, "BUILD_INFO", {}))
    # Wheels are built outside llama.cpp's repository, which makes its number 0. The third part of
    # xllamacpp's version is the llama.cpp release in it: 2026.10.11549.
    number = build["build_number"] or "".join(str(binding.__version__).split(".")[2:3])
    return (
        f"version: embedded (xllamacpp {binding.__version__}, "
        f"llama.cpp b{number} ({build['commit']}), "
        f"{build['compiler']} for {build['build_target']})"
    )


# llama.cpp's server reduced to one sequence for this process. fit_params would measure the
# machine's memory and change parameters.
QUIET_SERVER: dict[str, Any] = {
    **dict.fromkeys(("n_parallel", "n_threads_http"), 1),
    **dict.fromkeys(("cache_ram_mib", "n_ctx_checkpoints", "n_gpu_layers"), 0),
    **dict.fromkeys(("cont_batching", "cache_idle_slots", "ctx_shift", "fit_params"), False),
    **dict.fromkeys(("endpoint_slots", "endpoint_props", "endpoint_metrics"), False),
    **dict.fromkeys(("ui", "webui"), False),
    **dict.fromkeys(("offline", "no_kv_offload", "no_op_offload"), True),
    "sse_ping_interval": -1,
}


def fill(binding: Any, options: LoadOptions) -> Any:
    """Return the CommonParams for ``options``: one sequence, on CPUs, without a network."""
    params = binding.CommonParams()
    params.model.path = options.model
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads_batch
    params.n_ctx = options.context
    params.n_batch = options.batch
    params.n_ubatch = options.ubatch
    if options.chat_template:
        params.chat_template = options.chat_template
    params.verbosity = ERRORS_ONLY
    if options.numa:
        strategies = binding.ggml_numa_strategy
        params.numa = getattr(strategies, f"GGML_NUMA_STRATEGY_{options.numa.upper()}")
    flash = {True: "ENABLED", False: "DISABLED", None: "AUTO"}[options.flash]
    kinds = binding.llama_flash_attn_type
    params.flash_attn_type = getattr(kinds, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
    _set_load_mode(binding, params, options.mmap, options.mlock)
    # Reasoning of models is part of their text, as in llama-cli.
    params.reasoning_format = binding.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    set_known(params, QUIET_SERVER)
    return params


def set_known(params: Any, values: dict[str, Any]) -> None:
    """Set those parameters that this release of xllamacpp has."""
    for name, value in values.items():
        if hasattr(params, name):
            setattr(params, name, value)


def set_host(params: Any, host: str) -> None:
    """Set the address to listen on: a list in newer releases, a single name in older ones."""
    if hasattr(params, "hostnames"):
        params.hostnames = [host]
    else:
        params.hostname = host


def _set_load_mode(binding: Any, params: Any, mmap: bool | None, mlock: bool) -> None:
    if not hasattr(params, "load_mode"):
        set_known(params, {"use_mmap": mmap is not False, "use_mlock": mlock})
    elif mmap is not None or mlock:
        mapped, copied = ("MMAP_MLOCK", "MLOCK") if mlock else ("MMAP", "NONE")
        name = copied if mmap is False else mapped
        params.load_mode = getattr(binding.llama_load_mode, f"LLAMA_LOAD_MODE_{name}")
