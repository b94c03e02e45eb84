"""``env``: what a bug report needs of the machine and the versions, as text that can be pasted."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from winnow.words import size

REQUIRED = (
    "torch", "numpy", "scipy", "scikit-learn", "safetensors", "pydantic", "typing-extensions", "typer", "rich", "jinja2", "pillow", "psutil", "PyYAML",
)  # fmt: skip
EXTRAS = {
    "hf": ("transformers", "tokenizers", "accelerate"),
    "lora": ("peft",),
    "lightning": ("lightning",),
    "data": ("pyarrow",),
    "hub": ("datasets",),
    "eval": ("lm-eval",),
    "bench": ("onnxruntime", "onnx", "onnxscript", "openvino", "codecarbon"),
    "ray": ("ray",),
    "plot": ("matplotlib", "pandas"),
    "gpu": ("triton",),
}
# Of what a processor names, what decides which kernels run (x86-64, ARM).
_FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8", "asimd", "asimddp",
    "i8mm", "bf16", "sve",
)  # fmt: skip
# By beginning: what changes how winnow computes, where it keeps things and whether it may fetch. No tokens, no passwords.
_VARIABLES = (
    "WINNOW_", "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "ONEDNN_", "ATEN_", "CUDA_VISIBLE_DEVICES", "XDG_CACHE_HOME", "HF_HOME",
    "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TRANSFORMERS_CACHE", "HF_DATASETS_OFFLINE", "TOKENIZERS_PARALLELISM",
    "RAY_ADDRESS", "PYTHONPATH", "LD_PRELOAD",
)  # fmt: skip


@dataclass(frozen=True)
class Environment:
    """Versions by name ("" where not installed), and facts about machine and settings as they are shown, paths with ~ for home."""

    versions: dict[str, str]
    extras: dict[str, dict[str, str]]
    machine: dict[str, str]
    variables: dict[str, str]
    problems: list[str]


def env() -> Environment:
    """What a figure or a failure can depend on besides model and data. Imports torch, and no other library it reports on."""
    import torch

    from winnow.version import __version__

    versions = {"winnow": __version__, "python": platform.python_version()}
    versions |= {name: _version(name) for name in REQUIRED} | {"torch": torch.__version__}
    return Environment(
        versions=versions,
        extras={extra: {name: _version(name) for name in names} for extra, names in EXTRAS.items()},
        machine={name: _short(text) for name, text in _machine().items()},
        variables={n: _short(v) for n, v in sorted(os.environ.items()) if n.startswith(_VARIABLES)},
        problems=_problems(),
    )


def env_text(found: Environment) -> str:
    """Plain text, a fact a line."""
    rows: list[tuple[str, str]] = [*((n, v or "not installed") for n, v in found.versions.items()), ("", "")]
    for extra, packages in found.extras.items():
        there = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
        lacking = ", ".join(name for name, version in packages.items() if not version)
        hint = f"lacks {lacking}: pip install 'winnow-nn[{extra}]'" if lacking else ""
        rows.append((f"[{extra}]", "; ".join(part for part in (there, hint) if part)))
    rows += [("", ""), *found.machine.items()]
    rows += [("", ""), *found.variables.items()] if found.variables else []
    rows += [("", ""), *(("problem", text) for text in found.problems)] if found.problems else []
    wide = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{wide}}  {text}".rstrip() for name, text in rows)


def _machine() -> dict[str, str]:
    import psutil
    import torch

    from winnow.kernels import cache
    from winnow.machine.facts import machine
    from winnow.machine.memory import available_memory

    facts = machine()
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    timings = cache.folder() / "timings.json"
    return {
        "os": facts["os"],
        "python at": f"{sys.executable} ({platform.python_implementation()})",
        "winnow at": str(Path(__file__).parents[1]),
        "processor": facts["cpu"],
        "cores": f"{facts['cores']} usable of {psutil.cpu_count()} logical, {psutil.cpu_count(logical=False) or 'unknown'} physical",
        "instructions": ", ".join(_instructions()) or "not told by this system",
        "torch computes": torch.backends.cpu.get_cpu_capability(),
        "native kernels": _kernels(),
        "threads": f"{torch.get_num_threads()} in torch, {torch.get_num_interop_threads()} between operators",
        "memory": f"{size(facts['ram'])}, {size(available_memory())} available",
        "gpu": ", ".join(gpus) or "none that torch can use",
        "cuda of torch": torch.version.cuda or "none",
        "timings": f"{timings}, {size(timings.stat().st_size) if timings.is_file() else 'not there yet'}",
        "default encoding": f"{sys.getfilesystemencoding()}, output {getattr(sys.stdout, 'encoding', None)}",
    }


def _kernels() -> str:
    from winnow.errors import InputError
    from winnow.kernels import native

    if not (usable := native.isas()):
        return "none: this installation was built without them, and slow PyTorch code runs"
    try:
        return f"{native.isa()} in use; this build and processor have {', '.join(usable)}"
    except InputError as error:  # WINNOW_ISA, which is a thing to report
        return str(error)


def _instructions() -> list[str]:
    """Those of ``_FLAGS`` that this processor names; empty where the system does not list them."""
    listing = Path("/proc/cpuinfo")
    if not listing.exists():
        return []
    for line in listing.read_text(errors="replace").splitlines():
        if line.lower().startswith(("flags", "features")):
            has = set(line.split(":", 1)[1].split())
            return [flag for flag in _FLAGS if flag in has]
    return []


def _version(name: str) -> str:
    """Of an installed distribution, which is not imported; "" where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _problems() -> list[str]:
    """A sentence for each thing that is likely to be behind a report."""
    try:
        other: Any = metadata.distribution("winnow")
    except metadata.PackageNotFoundError:
        return []
    return [
        f"another distribution, winnow {other.version} ({_short(str(other.locate_file('')))}), installs files of the package winnow too, "
        "and takes them away when it is removed: pip uninstall winnow, then install winnow-nn again with --force-reinstall --no-deps."
    ]


def _short(text: str) -> str:
    """Without the name of the person: these lines are made to be pasted in public."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text
