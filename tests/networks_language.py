"""Small models of transformers with random weights, their inputs, and what must grow."""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="its models are what is tested")

TOKENS = {"input_ids": torch.arange(14).reshape(2, 7)}
IMAGE = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SEEN = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
WHISPER = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "num_mel_bins": 8,
    "max_source_positions": 16,
    "max_target_positions": 32,
    "vocab_size": 64,
    "decoder_start_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
T5 = {
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 20,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 64,
    "decoder_start_token_id": 0,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "n_inner": 20, "vocab_size": 64}
SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
GQA = {**TEXT, "num_key_value_heads": 2}
MOE = {
    **GQA,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "experts_implementation": "eager",  # torch has no grouped products in float64
}
CLIP = {"text_config": TEXT, "vision_config": SEEN, "projection_dim": 12}
DECODED = {**TOKENS, "decoder_input_ids": TOKENS["input_ids"]}
HEARD = {
    "input_features": torch.linspace(-1, 1, 2 * 8 * 32).reshape(2, 8, 32),
    "decoder_input_ids": TOKENS["input_ids"],
}
LLAMA = {
    ("model.embed_tokens", 16),
    ("layers.0.self_attn.q_proj", 2),
    ("layers.1.mlp.gate_proj", 20),
}
# Model, configuration, sizes, inputs, and groups that must grow: ends of names, and widths.
MODELS = {
    "bert": (
        "BertModel",
        "BertConfig",
        TEXT,
        TOKENS,
        {("layer.0.attention.self.query", 4), ("layer.1.intermediate.dense", 20)},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        GPT2,
        TOKENS,
        {("wpe", 16), ("h.0.attn.c_attn", 4), ("h.1.mlp.c_fc", 20)},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GQA, TOKENS, LLAMA),
    "mistral": ("MistralForCausalLM", "MistralConfig", GQA, TOKENS, LLAMA),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GQA, TOKENS, LLAMA),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        MOE,
        TOKENS,
        {
            ("model.embed_tokens", 16),
            ("layers.0.self_attn.q_proj", 2),
            ("layers.1.mlp.experts", 20),
        },
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        T5,
        DECODED,
        {
            ("encoder.block.0.layer.0.SelfAttention.q", 4),
            ("decoder.block.0.layer.1.EncDecAttention.q", 4),
            ("decoder.block.1.layer.2.DenseReluDense.wi", 20),
        },
    ),
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        SEEN,
        IMAGE,
        {
            ("layers.0.attention.q_proj", 2),
            ("layers.1.mlp.fc1", 20),
            ("vit.embeddings.patch_embeddings.projection", 16),
        },
    ),
    "swin": (
        "SwinModel",
        "SwinConfig",
        SWIN,
        {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)},
        {("layers.0.blocks.0.attention.q_proj", 2), ("layers.1.blocks.1.mlp.fc1", 64)},
    ),
    "clip": (
        "CLIPModel",
        "CLIPConfig",
        CLIP,
        {**TOKENS, **IMAGE},
        {
            ("vision_model.encoder.layers.0.self_attn.q_proj", 2),
            ("text_model.encoder.layers.1.mlp.fc1", 20),
        },
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        WHISPER,
        HEARD,
        {
            ("encoder.layers.0.self_attn.q_proj", 4),
            ("decoder.layers.1.encoder_attn.q_proj", 4),
            ("decoder.layers.1.fc1", 20),
            ("decoder.layers.0.self_attn.out_proj", 16),
        },
    ),
}


FALCON = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "multi_query": True,
    "parallel_attn": True,
    "new_decoder_architecture": False,
    "alibi": False,
    "bias": False,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
}
# Models in which all heads share one head of keys and values; where the heads' layer is.
SHARED = {
    "one_key": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**TEXT, "num_key_value_heads": 1},
        TOKENS,
        {("layers.0.self_attn.q_proj", 4), ("layers.1.self_attn.q_proj", 4)},
    ),
    "falcon": (
        "FalconForCausalLM",
        "FalconConfig",
        FALCON,
        TOKENS,
        {("h.0.self_attention.query_key_value", 4), ("h.1.self_attention.query_key_value", 4)},
    ),
    "gpt_bigcode": (
        "GPTBigCodeForCausalLM",
        "GPTBigCodeConfig",
        {**GPT2, "multi_query": True, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
        TOKENS,
        {("h.0.attn.c_attn", 4), ("h.1.attn.c_attn", 4)},
    ),
}


def made(name, attention="sdpa", **changes):
    """Model in float64, its inputs, and the groups that must be able to grow."""
    torch.manual_seed(0)
    model, config, sizes, inputs, wanted = {**MODELS, **SHARED}[name]
    own = getattr(transformers, config)(**{**sizes, **changes})
    own._attn_implementation = attention
    if "experts_implementation" in sizes:
        own._experts_implementation = sizes["experts_implementation"]
    cast = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    return getattr(transformers, model)(own).double(), cast, wanted
