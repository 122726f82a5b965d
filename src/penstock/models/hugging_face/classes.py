"""What single classes need beyond the rules by which models are cut: data, by model type."""

from __future__ import annotations

CANNOT = {
    "hrm_text": "it runs two stacks of layers several times in turn",
    "prophetnet": "its tables of positions give two values, of which no stand-in knows the second",
}
"""Model type -> the feature for which a model cannot be cut, where its structure does not show it."""

BEFORE_NORM = {"deepseek_v4": ("hc_head",), "hy_v4": ("hc_head",)}
"""Model type -> parts that its plan leaves out: they run after the layers and before the norm."""

COMPUTED = {
    "gemma3n_text": ("project_per_layer_inputs",),
    "gemma4_text": ("project_per_layer_inputs",),
    "gemma4_unified_text": ("project_per_layer_inputs",),
}
"""Model type -> methods of its inner model whose results the layers read, computed once, beside the embedding."""

EMBEDDED = {
    "phi4_multimodal": (
        "image_pixel_values", "image_sizes", "image_attention_mask", "audio_input_features", "audio_embed_sizes",
        "audio_attention_mask",
    ),
}  # fmt: skip
"""Model type -> arguments that only what runs before the layers reads; they do not travel."""
