"""Folders with small random models, as a hub would hold them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gtpo_mini.experiments.coldstart import train_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_model(folder: Path, kind: str = "qwen2", **changes) -> Path:
    """A folder with a random model of 2 layers and width 64, as a hub would hold it."""
    tokenizer = train_tokenizer(["user assistant print(12 + 3) the count is"] * 50, vocabulary=320)
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    options = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.1,  # far from uniform, so that a wrong position or mask shows
        **changes,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
