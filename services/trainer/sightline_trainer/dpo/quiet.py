"""Quiet: what libraries would tell a user in an update, who can do nothing about it. Nothing else is silenced.

- transformers renamed what switches activation checkpointing; PEFT and TRL (1.16) still call the old names, and each
  call is a FutureWarning.
- transformers' trainer puts the tokenizer's special tokens into the configs of the model that it trains, and says so.
  A policy is saved with those that it came with (`saving.py`).
"""

from __future__ import annotations

import logging
import warnings

_RENAMED = r"`(is_gradient_checkpointing|gradient_checkpointing_(enable|disable))` is deprecated"
_ALIGNED = "The tokenizer has new PAD/BOS/EOS tokens"


def quiet() -> None:
    """For this process; may be called again."""
    warnings.filterwarnings("ignore", _RENAMED, FutureWarning, r"transformers\.modeling_utils$")
    logging.getLogger("transformers.trainer_utils").addFilter(_told)


def _told(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_ALIGNED)
