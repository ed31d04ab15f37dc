"""Models that the shared prefix supports. All others use plain rows."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel
from transformers.utils import is_peft_available

if is_peft_available():
    from peft import PeftModel

# Tested equal to TRL's rows, losses and gradients: these models pass unknown arguments on to the attention, and their
# tokens see what comes before them, or the image that they are in.
FAMILIES = (
    "llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "smolvlm",
    "gemma3", "mobilevlm_v2",
)  # fmt: skip
TEXT_MODELS = (
    "llama", "mistral", "qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "gemma3_text",
)  # fmt: skip
_SEEN = {"full_attention", "sliding_attention"}


def base_of(model: Any) -> PreTrainedModel:
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def window_of(text: Any) -> int | None:
    """How many tokens back the decoder's layers of sliding attention see; None if all see everything."""
    kinds = getattr(text, "layer_types", None)
    slides = kinds is None or "sliding_attention" in kinds
    window: int | None = getattr(text, "sliding_window", None) if slides else None
    return window


def obstacle(model: Any) -> str | None:
    """Why responses can't share their prefix in `model`, in words for a log; None if they can."""
    base = base_of(model)
    config = base.config
    text = config.get_text_config()
    if config.model_type not in FAMILIES:
        return f"the model family {config.model_type!r} is not one of {', '.join(FAMILIES)}"
    if text.model_type not in TEXT_MODELS:
        return f"the language model {text.model_type!r} is not one of {', '.join(TEXT_MODELS)}"
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"]) - _SEEN
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds))}, whose rule for what a token sees is not the packed one"
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()) and window_of(text) is None:
        return "it has layers of sliding_attention, and its config does not say how far they see"
    if getattr(text, "use_bidirectional_attention", False) is True:
        return "its tokens see those after them"
    if text._attn_implementation not in ("sdpa", "sightline_shared_prefix"):
        return (
            f"its attention is {text._attn_implementation!r}, which can't keep the branches of a prefix apart; "
            "set dpo.attn_implementation to sdpa"
        )
    if isinstance(model, PeftModel):
        prompting = [name for name, setting in model.peft_config.items() if setting.is_prompt_learning]
        if prompting:
            return f"the adapter {prompting[0]!r} puts virtual tokens before the prompt"
    return None
