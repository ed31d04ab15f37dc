"""Quiet: silences two library messages in an update about which users can do nothing, and no others.

- transformers renamed its switches of activation checkpointing. PEFT and TRL (1.16) still use the old names, and each
  call gives a FutureWarning.
- transformers' trainer writes the tokenizer's special tokens into the configs of the trained model, and logs it. A
  policy is saved with its original ones (`saving.py`).
"""

from __future__ import annotations

import logging
import warnings

_RENAMED = r"`(is_gradient_checkpointing|gradient_checkpointing_(enable|disable))` is deprecated"
_ALIGNED = "The tokenizer has new PAD/BOS/EOS tokens"


def quiet() -> None:
    """Silence them in this process; may be called again."""
    warnings.filterwarnings("ignore", _RENAMED, FutureWarning, r"transformers\.modeling_utils$")
    logging.getLogger("transformers.trainer_utils").addFilter(_told)


def _told(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_ALIGNED)
