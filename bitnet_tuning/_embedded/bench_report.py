"""Rows of a benchmark in the forms that llama-bench prints."""

from __future__ import annotations

import json
import statistics
import time
from typing import Any, NamedTuple

from bitnet_tuning._embedded.bench_options import BenchOptions, Config, Test
from bitnet_tuning._embedded.binding import build_info
from bitnet_tuning.model.gguf import read_model

FLASH = {"auto": -1, "off": 0, "on": 1}
"""As llama-bench writes them."""

# Speaks for any model whose header does not state its vocabulary.
SMALLEST_VOCABULARY = 256


class Facts(NamedTuple):
    """What all rows of one model and engine share."""

    shared: dict[str, Any]
    vocabulary: int


def describe(engine: Any, model: str) -> Facts:
    """Facts about engine, CPU and model. Raises MissingError for a damaged file."""
    file = read_model(model)
    build = build_info(engine.binding)
    devices = engine.binding.get_device_info()
    cpus = [each["description"] for each in devices if each["type"].name.endswith("_CPU")]
    shared = {
        "build_commit": build["commit"],
        "build_number": build["build_number"],
        "cpu_info": ", ".join(cpus),
        "gpu_info": "",
        "backends": "CPU",
        "engine": f"embedded (xllamacpp {engine.binding.__version__})",
        "model_filename": model,
        "model_type": f"{file.architecture} {file.quantization.upper()}",
        # Of the file, header included: llama-bench adds up the tensors.
        "model_size": file.size,
        "model_n_params": sum(share.weights for share in file.types),
    }
    return Facts(shared, file.vocabulary or SMALLEST_VOCABULARY)


def record(
    facts: Facts, config: Config, test: Test, started: float, samples: list[Any]
) -> dict[str, Any]:
    """One row under llama-bench's keys: ``_ns`` in nanoseconds, ``_ts`` in tokens/s."""
    durations = [sample.nanoseconds for sample in samples]
    speeds = [1e9 * sample.tokens / sample.nanoseconds for sample in samples]
    return {
        **facts.shared,
        "n_batch": config.batch,
        "n_ubatch": config.ubatch,
        "n_threads": config.threads,
        "type_k": "f16",
        "type_v": "f16",
        "n_gpu_layers": 0,
        "use_mmap": config.mmap,
        "flash_attn": FLASH[config.flash_attention],
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "n_depth": 0,
        "test_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "avg_ns": int(statistics.fmean(durations)),
        "stddev_ns": int(_spread(durations)),
        "avg_ts": round(statistics.fmean(speeds), 6),
        "stddev_ts": round(_spread(speeds), 6),
        "samples_ns": durations,
        "samples_ts": [round(speed, 6) for speed in speeds],
    }


def _spread(values: list[Any]) -> float:
    """The standard deviation of a sample, 0 for a single run, as llama-bench has it."""
    return float(statistics.stdev(values)) if len(values) > 1 else 0.0


class Json:
    """An array that grows with each row, so that an interrupted run leaves its rows."""

    def __init__(self, options: BenchOptions) -> None:
        self._separator = ""

    def begin(self) -> None:
        """Open the array."""
        print("[", flush=True)

    def row(self, row: dict[str, Any]) -> None:
        """Add an object."""
        body = json.dumps(row, indent=2).replace("\n", "\n  ")
        print(f"{self._separator}  {body}", end="", flush=True)
        self._separator = ",\n"

    def end(self) -> None:
        """Close the array."""
        print("\n]", flush=True)


class Jsonl(Json):
    """One object a line."""

    def begin(self) -> None:
        """Nothing comes before the first line."""

    def row(self, row: dict[str, Any]) -> None:
        """Add a line."""
        print(json.dumps(row), flush=True)

    def end(self) -> None:
        """Nothing comes after the last line."""


class Csv(Jsonl):
    """Quoted fields under a header; the samples stay out, as in llama-bench."""

    def row(self, row: dict[str, Any]) -> None:
        """Add a line, the header before the first."""
        fields = {key: value for key, value in row.items() if not key.startswith("samples_")}
        if not self._separator:
            print(",".join(fields))
            self._separator = "\n"
        print(",".join(_quoted(value) for value in fields.values()), flush=True)


def _quoted(value: Any) -> str:
    text = str(int(value) if isinstance(value, bool) else value)
    return '"' + text.replace('"', '""') + '"'


class Markdown(Jsonl):
    """A table; a column for each setting that takes more than one value."""

    def __init__(self, options: BenchOptions) -> None:
        super().__init__(options)
        optional = {
            "n_batch": options.batch,
            "n_ubatch": options.ubatch,
            "flash_attn": options.flash_attention,
            "use_mmap": options.mmap,
        }
        self._extra = [key for key, values in optional.items() if len(values) > 1]
        self._build = ""

    def begin(self) -> None:
        """Print the head of the table."""
        names = ["model", "size", "params", "backend", "threads", *self._extra, "test", "t/s"]
        print("| " + " | ".join(names) + " |")
        print("| " + " | ".join("---" if name == "model" else "---:" for name in names) + " |")

    def row(self, row: dict[str, Any]) -> None:
        """Print one line of the table."""
        self._build = f"build: {row['build_commit']} ({row['build_number']}), {row['engine']}"
        cells = [
            row["model_type"],
            f"{row['model_size'] / 2**20:.2f} MiB",
            f"{row['model_n_params'] / 1e6:.2f} M",
            row["backends"],
            row["n_threads"],
            *(int(row[key]) for key in self._extra),
            Test(row["n_prompt"], row["n_gen"]).name,
            f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}",
        ]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)

    def end(self) -> None:
        """Name the build below the table."""
        print(f"\n{self._build}", flush=True)


PRINTERS = {"json": Json, "jsonl": Jsonl, "csv": Csv, "md": Markdown}
