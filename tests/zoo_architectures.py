"""Small models of any architecture of transformers, from its default configuration.

Nothing here knows an architecture: sizes are made small by the names that configurations give
them, and inputs follow from the names of the arguments. What can't be built, or run, that way
has no model here.
"""

from __future__ import annotations

import inspect
import re

import torch
from checks import doubled, outputs, randomised, run

WIDTH, TOKENS, PIXELS = 32, 12, 64
# Names of numbers in configurations, and what they become at most.
NUMBERS = (
    (r".*(hidden_size|hidden_dim|embed_dim|embedding_size|projection_dim|d_model|n_embd)", WIDTH),
    (r"(width|emb_dim|model_dim|d_embed|dim)", WIDTH),
    (r".*(hidden_layers|num_layers|n_layers?|coder_layers|num_blocks|depth|depths|layers)", 2),
    (r".*(attention_heads|n_heads?|num_heads)", 4),
    (r".*(num_key_value_heads|num_kv_heads|n_kv_heads|kv_heads)", 2),
    (r"(head_dim|d_kv|kv_channels|v_head_dim|qk_nope_head_dim|head_size|qk_head_dim)", 8),
    (r"qk_rope_head_dim", 4),
    (r"(kv_lora_rank|q_lora_rank)", 16),
    (r".*(intermediate_size|ffn_dim|d_ff|n_inner|ffn_hidden_size|mlp_dim|d_inner)", 48),
    (r".*vocab_size.*", 64),
    (r"(max_position_embeddings|n_positions|max_(source|target)_positions|n_ctx)", 128),
    (r"image_size", PIXELS),
    (r"patch_size", 16),
    (r"(num_experts|num_local_experts|n_routed_experts|moe_num_experts)", 4),
    (r"(num_experts_per_tok|moe_topk|top_k|moe_k|num_selected_experts)", 2),
    (r"(n_group|topk_group|n_shared_experts|num_shared_experts|first_k_dense_replace)", 1),
    (r"(pad|bos|eos|sep|cls|mask|decoder_start|unk|forced_eos)_token_id", 1),
    (r".*(image|video|audio|vision_start|vision_end)_token_(id|index).*", 3),
    (r"(mamba_)?chunk_size|sliding_window|attention_window|window_size|num_buckets", 8),
    (r"(state_size|mamba_d_state|ssm_state_size|mamba_n_heads|mamba_d_head)", 8),
    (r"num_mel_bins|num_queries", 16),
    (r"upsample_initial_channel", 32),  # of a vocoder, which makes hundreds of samples a token
)
# What follows from the rest, and is left to the configuration.
LEFT_OUT = re.compile(
    r"(.*layer_types|transformers_version|architectures|(torch_)?dtype|id2label|label2id"
    r"|model_type|rope_\w+|layers_block_type|attn_layer_indices|no_rope_layers|_.*)\Z"
)
HEADS = (
    *("CAUSAL_LM", "IMAGE_CLASSIFICATION", "SEQUENCE_CLASSIFICATION", "MASKED_LM"),
    *("SEQ_TO_SEQ_CAUSAL_LM", "CTC", "AUDIO_CLASSIFICATION", "SPEECH_SEQ_2_SEQ"),
    *("OBJECT_DETECTION", "SEMANTIC_SEGMENTATION", "DEPTH_ESTIMATION", "IMAGE_TEXT_TO_TEXT"),
)
MOST = 30e6  # parameters


def small(value, key=""):
    """Make a value of a configuration small; dropout is off, so that runs can be compared."""
    if isinstance(value, float) and re.search("drop|mask_time|mask_feature|jitter", key):
        return 0.0
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {k: small(v, k) for k, v in value.items() if not LEFT_OUT.match(k)}
    if isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):
        return _several(value, key)
    if type(value) is not int:
        return value
    most = next((m for name, m in NUMBERS if re.fullmatch(name, key)), value)
    return min(value, most)


def _several(values, key):
    """Depths become 1; widths an eighth or so, in multiples of 8."""
    if re.search(r"(depths|num_blocks|layers)\Z", key):
        return [1] * len(values)
    if max(values) >= 64 and re.search(r"(sizes|embed_dims?|dims|channels|widths|dim)\Z", key):
        return [max(8, round(v * 8 / max(values)) * 8) for v in values]
    return list(values)


def architectures():
    """Names of all model types."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return list(MODEL_MAPPING_NAMES)


def of_transformers_type(kind):
    """A small model with a head, where there is one, and inputs.

    Raises
    ------
    Exception
        Of any kind: what the architecture's own code makes of what it does not expect.
    """
    import transformers
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    make = CONFIG_MAPPING[kind]
    given = {k: small(v, k) for k, v in make().to_dict().items() if not LEFT_OUT.match(k)}
    config = make(**given, experts_implementation="eager")  # no grouped products in float64
    tables = (getattr(modeling_auto, f"MODEL_FOR_{h}_MAPPING_NAMES", {}) for h in HEADS)
    name = next((table[kind] for table in tables if kind in table), None)
    name = name if isinstance(name, (str, type(None))) else name[0]
    torch.manual_seed(0)
    model = (
        transformers.AutoModel.from_config(config)
        if name is None
        else getattr(transformers, name)._from_config(config)
    )
    if sum(p.numel() for p in model.parameters()) > MOST:
        raise ValueError("too large")
    model = randomised(model, scale=0.5)
    model.config.use_cache = False
    return model, _runs(model, candidates(model))


def candidates(model):
    """Inputs to try in turn, by the names of what the model takes."""
    config, taken = model.config, inspect.signature(model.forward).parameters
    text, seen, heard = (
        getattr(config, f"{part}_config", None) or config for part in ("text", "vision", "audio")
    )
    words = torch.randint(2, min(60, getattr(text, "vocab_size", 60)), (2, TOKENS))
    size = getattr(seen, "image_size", PIXELS)
    size = size[0] if isinstance(size, (list, tuple)) else size or PIXELS
    channels = getattr(seen, "num_channels", 3) or 3
    bands = getattr(heard, "num_mel_bins", None) or getattr(heard, "feature_size", None) or 80
    image, large = (torch.randn(2, channels, s, s) for s in (size, 224))
    values = {
        "input_ids": [words],
        "pixel_values": [image, large],
        "input_values": [torch.randn(2, 1600), torch.randn(2, 1, 1600)],
        "input_features": [torch.randn(2, *s) for s in ((bands, 64), (64, bands), (bands, 256))],
    }
    main = [model.main_input_name] if model.main_input_name in taken else []
    for name in (*main, *values):
        for value in values.get(name, ()) if name in taken else ():
            yield {name: value}
            if "decoder_input_ids" in taken:
                yield {name: value, "decoder_input_ids": words[:, :8]}
            if name == "input_ids" and "pixel_values" in taken:
                yield {name: value, "pixel_values": image}


def _runs(model, examples):
    """The first inputs that the model takes, and on which it does the same twice."""
    problem = ValueError("takes none of the inputs that there are")
    for example in examples:
        try:
            with torch.no_grad():
                run(model.eval(), doubled(example))
        except Exception as error:  # noqa: BLE001  # whatever its own code raises
            problem = error
            continue
        found = [outputs(model, doubled(example), training=True) for _ in range(2)]
        if not all(map(torch.equal, *found)):
            raise ValueError("not the same twice")
        return doubled(example)
    raise problem
