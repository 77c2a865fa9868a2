from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import save_model
from transformers import AutoTokenizer, DynamicCache

from gtpo_mini.policy import attention
from gtpo_mini.policy.load import load_policy
from gtpo_mini.policy.model import Policy


def test_the_tiny_policy_is_small_and_its_checkpoint_too(tiny_policy):
    from gtpo_mini.policy.load import TINY_FOLDER

    assert sum(p.numel() for p in tiny_policy.model.parameters()) < 2_000_000
    assert sum(path.stat().st_size for path in TINY_FOLDER.iterdir()) < 5 * 2**20
    assert (TINY_FOLDER / "model.safetensors").is_file()


TINY = load_policy("tiny", device="cpu")


@given(st.text())
def test_any_text_can_be_encoded_and_comes_back(text):
    assert TINY.decode(TINY.encode(text)) == text.encode("utf-8", "replace").decode()


def test_text_cannot_forge_special_tokens(random_policy):
    ids = random_policy.encode("<|im_end|> \ud800")
    assert not set(ids) & set(random_policy.tokenizer.all_special_ids)


def test_full_weights_lora_and_nf4_load_and_train(model_folder, tmp_path):
    ids = torch.arange(8)[None]
    plain = load_policy(model_folder, device="cpu")
    with torch.no_grad():
        expected = plain.model(ids).logits
    counts = {}
    for name, options in {"full": {}, "lora": {"lora_rank": 4}, "nf4": {"quantize": "nf4"}}.items():
        policy = load_policy(model_folder, device="cpu", **options)
        with torch.no_grad():
            logits = policy.model(ids).logits
        tolerance = 3.0 if name == "nf4" else 1e-5
        torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0)
        policy.model(ids).logits.logsumexp(-1).sum().backward()
        assert all(p.grad is not None for p in policy.trainable_parameters())
        counts[name] = sum(p.numel() for p in policy.trainable_parameters())
        policy.save(tmp_path / name)
    assert 0 < counts["lora"] < counts["nf4"] < counts["full"]  # rank 4, rank 16, everything
    again = load_policy(tmp_path / "full", device="cpu")
    assert torch.equal(again.model(ids).logits, expected)


def test_4_bit_weights_are_not_repacked_where_the_cpu_has_bf16(model_folder, monkeypatch):
    import bitsandbytes as bnb

    # As on a CPU with AVX512-BF16: eval mode would swap the weights for another kernel's, and training would raise.
    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: True)
    assert bnb.nn.Linear4bit(8, 8, device="meta").support_avx512bf16_for_cpu
    policy, ids = load_policy(model_folder, quantize="nf4", device="cpu"), torch.arange(8)[None]
    layers = [layer for layer in policy.model.modules() if isinstance(layer, bnb.nn.Linear4bit)]
    assert len(layers) == 14 and any(layer.bias is not None for layer in layers)
    with torch.no_grad():
        sampled = policy.model.eval()(ids).logits
        assert torch.equal(policy.model.train()(ids).logits, sampled)
    assert not any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers)
    policy.model(ids).logits.logsumexp(-1).sum().backward()


def test_importing_the_policy_prints_nothing():
    words = [sys.executable, "-W", "ignore", "-c", "import gtpo_mini.policy.load, bitsandbytes"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stderr == ""


def test_a_turn_s_text_keeps_special_tokens_but_end_and_padding(random_policy):
    tokenizer = random_policy.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>"]})
    ids = tokenizer.encode("<tool_call>x</tool_call>", add_special_tokens=False)
    assert len(ids) == 3
    assert random_policy.decode([*ids, tokenizer.eos_token_id, tokenizer.pad_token_id]) == "<tool_call>x</tool_call>"


def test_reference_is_the_policy_of_before(model_folder):
    ids = torch.arange(8)[None]
    for options in ({}, {"lora_rank": 4}):
        policy = load_policy(model_folder, device="cpu", **options)
        policy.keep_reference()
        with torch.no_grad():
            before = policy.model(ids).logits
            for parameter in policy.trainable_parameters():
                parameter += 0.1
            after = policy.model(ids).logits
            with policy.as_reference() as reference:
                assert torch.equal(reference.model(ids).logits, before)
        assert not torch.allclose(before, after)
        assert torch.equal(policy.model(ids).logits, after)


def test_a_model_without_template_pad_token_or_end_is_named(tmp_path):
    folder = save_model(tmp_path)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"no chat template.*instruction-tuned"):
        load_policy(folder, device="cpu")
    (folder / "chat_template.jinja").write_text(template)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": None}))
    with pytest.raises(ValueError, match=r"no pad token.*tokenizer.pad_token"):
        load_policy(folder, device="cpu")


def test_folders_and_names_that_hold_no_model_are_named(tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_policy(tmp_path, device="cpu")
    with pytest.raises(ValueError, match="no-such-org/no-such-model"):
        load_policy("no-such-org/no-such-model", device="cpu")
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_policy(tmp_path, device="cpu")


def add_a_token(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})
    tokenizer.save_pretrained(folder)


def with_a_bad_weight(folder: Path, key: str, value: float) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[key].view(-1)[3] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("quantize", [None, "nf4"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("key", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_weights_that_are_no_finite_numbers_are_named(key, value, quantize, tmp_path):
    with_a_bad_weight(save_model(tmp_path), key, value)
    with pytest.raises(ValueError, match=rf"NaN or infinity in the weight '{re.escape(key)}'"):
        load_policy(tmp_path, quantize, device="cpu")


def test_a_tokenizer_larger_than_the_embedding_is_refused_at_load(tmp_path):
    rows = len(AutoTokenizer.from_pretrained(save_model(tmp_path, "llama")))
    load_policy(tmp_path, device="cpu")
    add_a_token(tmp_path)
    with pytest.raises(ValueError, match=rf"{rows + 1} tokens.* only {rows}; .*resize_token_embeddings") as caught:
        load_policy(tmp_path, device="cpu")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "lost", [["tokenizer.json"], ["tokenizer_config.json"], ["tokenizer.json", "tokenizer_config.json"]]
)
def test_missing_tokenizer_files_are_named(lost, tmp_path):
    save_model(tmp_path)
    for file in lost:
        (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=rf"cannot be loaded \(no {' and no '.join(lost)}\); save the tokenizer"):
        load_policy(tmp_path, device="cpu")


@pytest.mark.parametrize("record", ["metrics.jsonl", "imitation.json"])
def test_a_run_s_folder_means_its_policy(record, tmp_path, tiny_policy):
    (tmp_path / record).write_text("{}\n")
    with pytest.raises(ValueError, match="has saved no policy yet"):
        load_policy(tmp_path, device="cpu")
    tiny_policy.save(tmp_path / "policy")
    ids = torch.arange(8)[None]
    assert torch.equal(load_policy(tmp_path, device="cpu").model(ids).logits, tiny_policy.model(ids).logits)


def test_a_trained_adapter_comes_with_its_base_and_is_not_trained_further(model_folder, tmp_path):
    trained, ids = load_policy(model_folder, lora_rank=4, device="cpu"), torch.arange(8)[None]
    for parameter in trained.trainable_parameters():
        parameter.data += 0.1
    trained.save(tmp_path / "policy")
    (tmp_path / "metrics.jsonl").touch()
    for options in ({"name": tmp_path / "policy"}, {"name": tmp_path}, {"adapter": tmp_path / "policy"}):
        policy = load_policy(**options, device="cpu")
        assert torch.allclose(policy.model(ids).logits, trained.model(ids).logits, atol=1e-5)
        with pytest.raises(ValueError, match=r"a new one cannot go on top.*gtpo-mini merge"):
            policy.make_optimizer(1e-3)
    assert load_policy(model_folder, "nf4", device="cpu", adapter=tmp_path).is_lora
    for options in ({"lora_rank": 4}, {"adapter": tmp_path}):
        with pytest.raises(ValueError, match=r"a new one cannot go on top.*gtpo-mini merge") as caught:
            load_policy(tmp_path / "policy", device="cpu", **options)
        assert str(tmp_path) in str(caught.value)
    with pytest.raises(ValueError, match=r"no adapter_config.json there that names a base model"):
        load_policy(adapter=model_folder, device="cpu")
    with pytest.raises(ValueError, match="does not fit the model 'tiny'"):
        load_policy("tiny", adapter=tmp_path, device="cpu")


def test_a_misspelt_name_without_a_hub_fails_within_seconds():
    """With the hub's own retries it took 47 s. On a machine with a hub the answer is that there is no such model."""
    script = "from gtpo_mini.policy.load import load_policy; load_policy('no-such-org/no-such-model', device='cpu')"
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": "http://localhost:9", "OMP_NUM_THREADS": "1"}  # where nobody answers
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=40, env=environment)
    assert "model 'no-such-org/no-such-model': no such folder here, and the hub does not offer it" in done.stderr
    assert "Retrying" not in done.stderr


def test_bad_options_are_named(model_folder):
    for options, message in (
        ({"quantize": "int3"}, "quantize='int3'"),
        ({"lora_rank": 0}, "lora_rank=0"),
        ({"dtype": "float8"}, "dtype='float8'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_policy(model_folder, device="cpu", **options)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA GPU"):
            load_policy(model_folder, device="cuda")


def test_layers_that_the_cache_cannot_hold_are_named(tmp_path):
    folder = save_model(tmp_path, layer_types=["full_attention", "sliding_attention"], use_sliding_window=True)
    with pytest.raises(ValueError, match="sliding_attention"):
        load_policy(folder, device="cpu")


def test_a_head_that_does_more_than_multiply_is_refused(random_policy):
    plain = random_policy.model.forward
    random_policy.model.forward = lambda **kwargs: _scaled(plain(**kwargs))
    with pytest.raises(ValueError, match="head"):
        attention.check(random_policy.model)


@pytest.mark.parametrize("dropped", ["attention_mask", "position_ids", "past_key_values"])
def test_a_decoder_that_cannot_go_on_from_a_cache_is_refused(dropped, random_policy, monkeypatch):
    random_policy.model.set_attn_implementation("sdpa")
    attention.check(random_policy.model)
    decoder = random_policy.model.get_decoder()
    plain = decoder.forward
    monkeypatch.setattr(decoder, "forward", lambda **kwargs: plain(**{**kwargs, dropped: None}))
    with pytest.raises(ValueError, match="cannot go on from a cache"):
        attention.check(random_policy.model)


def _scaled(output):
    output.logits = output.logits * 3
    return output


def test_own_models_come_in_by_the_class(random_policy):
    policy = Policy(random_policy.model, random_policy.tokenizer, "mine")
    assert policy.context_length == 4096 and policy.eos_ids == {random_policy.tokenizer.eos_token_id}


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("llama", {}),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}, "attention_bias": True},
        ),
        ("qwen2", {}),
        ("qwen3", {}),
        ("mistral", {}),
    ],
    ids=["llama", "llama, scaled", "qwen2", "qwen3", "mistral"],
)
@pytest.mark.parametrize("lora_rank", [None, 4])
def test_the_fast_pass_is_the_model_s_own(kind, changes, lora_rank, tmp_path):
    policy = load_policy(save_model(tmp_path, kind, **changes), device="cpu", lora_rank=lora_rank)
    if lora_rank:
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2)  # an adapter that changes something
    ids, positions = torch.randint(0, len(policy.tokenizer), (3, 40)), torch.arange(40).expand(3, 40)
    mask = torch.full((3, 1, 40, 40), torch.finfo(torch.float32).min).triu(1)
    with torch.no_grad():
        fast = policy.fast_decoder()(ids, positions, mask, DynamicCache(), None)
        assert (fast - policy.hidden_states(ids, use_cache=False)).abs().max() < 1e-4


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("gpt_neox", {}),
        ("olmo2", {}),  # the same names of parts, used in another order
        ("granite", {"residual_multiplier": 0.5, "logits_scaling": 1.0}),  # and here with one number more
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    ],
    ids=["gpt_neox", "olmo2", "granite", "llama, dynamic"],
)
def test_where_the_fast_pass_would_differ_the_model_s_own_is_taken(kind, changes, tmp_path):
    assert load_policy(save_model(tmp_path, kind, **changes), device="cpu").fast_decoder() is None
