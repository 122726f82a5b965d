"""Tiny models of every language model class of transformers, from their own configurations."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY, LENGTH, LAYERS = 64, 12, 4

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "embed_dim": 32, "word_embed_proj_dim": 32, "dim": 32,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "intermediate_size": 48, "ffn_dim": 48, "n_inner": 48, "ffn_hidden_size": 48, "d_ff": 48,
    "dense_intermediate_size": 48,
    "num_hidden_layers": LAYERS, "n_layer": LAYERS, "n_layers": LAYERS, "num_layers": LAYERS,
    "num_decoder_layers": 3, "encoder_layers": LAYERS, "decoder_layers": 3, "num_encoder_layers": LAYERS,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4, "d_kv": 8,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "rotary_dim": 4, "max_position_embeddings": 64, "n_positions": 64, "max_seq_len": 64,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "n_group": 1, "topk_group": 1, "num_expert_group": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "qk_head_dim": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "sliding_window": 6, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "state_size": 8, "expand": 2, "n_groups": 1, "chunk_size": 4, "mamba_d_state": 8,
    "mamba_n_heads": 8, "mamba_d_head": 8,
    "time_step_rank": 4, "mamba_expand": 2, "mamba_dt_rank": 4,
    "attention_dropout": 0.0, "hidden_dropout": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    "dropout": 0.0, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "activation_dropout": 0.0,
    "dropout_rate": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "moe_token_dropout": 0.0,
    "layerdrop": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0, "emb_dropout": 0.0, "embed_dropout": 0.0,
}  # fmt: skip
"""Field of a configuration -> its small value, wherever a class has the field."""

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_INDEXED = {"index_topk": 4, "index_head_dim": 16, "index_n_heads": 2}
_MODULE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6,
}  # fmt: skip
NEEDS: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "kimi_linear": {"linear_num_heads": 2, "linear_head_dim": 8, "num_experts_per_token": 2},
    "ministral": {"head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "llama4_text": {"intermediate_size_mlp": 48, "no_rope_layers": [1, 1, 1, 0], "attention_chunk_size": 8},
    "gemma3n_text": {
        "num_kv_shared_layers": LAYERS // 2,
        "activation_sparsity_pattern": [0.0] * LAYERS,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
    },
    "gemma4_text": {
        "per_layer_config": {},
        "num_kv_shared_layers": LAYERS // 2,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
    },
    "gemma4_unified_text": {"per_layer_config": {}, "num_kv_shared_layers": LAYERS // 2},
    "dots3_note_text": {
        "per_layer_config": {},
        "head_dim": 16,
        "index_topk": 4,
        "index_head_dim": 16,
        "index_n_heads": 2,
        "shared_experts_intermediate_size": 16,
    },
    "glm_moe_dsa": {"indexer_types": ["full", "shared"] * (LAYERS // 2), **_INDEXED},
    "hy_v4": {"indexer_types": ["full", "shared"] * (LAYERS // 2), **_INDEXED},
    "phi4_multimodal": {
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "crop_size": 28,
            "image_token_id": VOCABULARY - 1,
        },
        "audio_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_blocks": 2,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 16,
            "depthwise_separable_out_channel": 16,
            "nemo_conv_channels": 16,
            "audio_token_id": VOCABULARY - 2,
        },
    },
    "bigbird_pegasus": {"attention_type": "original_full"},
    "fsmt": {"langs": ["en", "de"], "src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY},
    "led": {
        "attention_window": 4,
        "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 64,
    },
    "longt5": {"local_radius": 3},
    "marian": {"decoder_vocab_size": VOCABULARY},
    "pegasus_x": {"block_size": 4, "num_global_tokens": 2},
    "switch_transformers": {
        "num_sparse_encoder_layers": 2,
        "num_sparse_decoder_layers": 1,
        "router_jitter_noise": 0.0,
        "router_dtype": "float32",
    },
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "t5gemma": {"encoder": _MODULE, "decoder": _MODULE},
}
"""Model type -> what it needs beyond the general rule."""


WITHOUT_PLAN = (
    "biogpt", "bitnet", "bloom", "codegen", "diffllama", "falcon", "falcon_mamba", "gpt2", "gpt_bigcode", "gpt_neo",
    "gpt_neox_japanese", "gptj", "granitemoe", "granitemoehybrid", "granitemoeshared", "jamba", "jetmoe", "lfm2",
    "llama4_text", "mamba", "mpt", "nemotron", "olmoe", "openai-gpt", "opt", "persimmon", "phimoe", "stablelm",
)  # fmt: skip
"""Decoders that declare no plan: their parts are found by following a forward."""


PAIRS = (
    "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "fsmt", "led", "longt5", "m2m_100", "marian", "mbart",
    "mt5", "mvp", "nllb-moe", "pegasus", "pegasus_x", "plbart", "prophetnet", "switch_transformers", "t5", "t5gemma",
    "umt5",
)  # fmt: skip
"""Encoder-decoders of text: all that take ids and give logits."""


def model_types(*, planned: bool) -> list[str]:
    """Returns the model types of causal language models that declare a pipeline plan, or those that do not."""
    return [
        name
        for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if bool(getattr(CONFIG_MAPPING[name], "base_model_pp_plan", None)) == planned
    ]


def _is_set(config: Any, name: str) -> bool:
    try:
        return getattr(config, name, None) is not None
    except (AttributeError, RuntimeError):  # one that differs between layers
        return True


def tiny(model_type: str, *, dtype: torch.dtype = torch.float64) -> Any:
    """Returns a tiny model of this type with random weights: a decoder, or one of `PAIRS`."""
    auto = AutoModelForSeq2SeqLM if model_type in PAIRS else AutoModelForCausalLM
    kind = CONFIG_MAPPING[model_type]
    plain = kind()
    names = set(plain.to_dict()) | set(getattr(kind, "attribute_map", {}))
    fields = {name: value for name, value in SMALL.items() if name in names and _is_set(plain, name)}
    types = getattr(plain, "layer_types", None)
    if types and not isinstance(getattr(kind, "layer_types", None), property):
        fields["layer_types"] = (list(dict.fromkeys(types)) * LAYERS)[:LAYERS]
    for name in ("mlp_layer_types", "layers_block_type"):
        if getattr(plain, name, None) and not isinstance(getattr(kind, name, None), property):
            fields[name] = (list(dict.fromkeys(getattr(plain, name))) * LAYERS)[:LAYERS]
    if "kv_lora_rank" in fields and "num_key_value_heads" in fields:
        fields["num_key_value_heads"] = fields["num_attention_heads"]  # multi-head latent attention has no groups
    if model_type in PAIRS:
        fields["decoder_start_token_id"] = 0
    config = kind(**(fields | NEEDS.get(model_type, {})))
    config.use_cache = False
    torch.manual_seed(0)
    experts = {"experts_implementation": "eager"}  # the only one that computes in fp64
    model = auto.from_config(config, attn_implementation="eager", **experts)
    return model.to(dtype).train()
