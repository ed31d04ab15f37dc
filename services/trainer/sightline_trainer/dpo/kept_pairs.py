"""The rows of a pairs file that pass the gate, whoever wrote the file.

A pairs.parquet is kept across attempts, so a row that the model or processor cannot take would fail each of them. Such
a row is left out, named in `dropped/update.json` beside the file, and counted.
"""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from sightline.errors import PreconditionFailed

from sightline_trainer.dropped import DroppedRows
from sightline_trainer.files import damaged
from sightline_trainer.pairs.build import to_train_on
from sightline_trainer.records.refusal import Refusal
from sightline_trainer.row_gate import RowGate

_ROWS = 64


def kept_pairs(path: Path, gate: RowGate) -> tuple[Dataset, dict[str, float]]:
    """The pairs of a pairs.parquet that can be trained on.

    Returns:
        The pairs, and if some were left out, `pairs_left_out` and `left_out_<reason>` for the update's metrics.

    Raises:
        DataCorrupted: the file is damaged.
        PreconditionFailed: NO_PAIRS: none is left; the message says why.
    """
    pairs = to_train_on(path)
    dropped, kept = DroppedRows(), []
    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(_ROWS):
            for at in range(len(batch)):
                fault = _fault(batch.slice(at, 1), gate)
                if fault is None:
                    kept.append(number)
                else:
                    dropped.add(_name(batch.slice(at, 1), number), fault)
                number += 1
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, error) from error
    if int(os.environ.get("RANK", "0")) == 0:
        dropped.write(left_out_file(path))
    if not kept:
        raise PreconditionFailed(
            f"none of {number} pairs in {path} can be trained on: {dropped.summary}", reason="NO_PAIRS"
        )
    if not dropped:
        return pairs, {}
    counts = {f"left_out_{reason.lower()}": float(count) for reason, count in dropped.counts.items()}
    return pairs.select(kept), {"pairs_left_out": float(len(dropped)), **counts}


def left_out_file(pairs: Path) -> Path:
    """The file that lists the rows left out of a pairs.parquet."""
    return pairs.parent / "dropped" / "update.json"


def _fault(row: pa.RecordBatch, gate: RowGate) -> Refusal | None:
    try:
        return gate.pair(row.to_pylist()[0])
    except ValueError as error:  # bytes that are not UTF-8
        return Refusal("PAIR_NO_UTF8", f"a text is not UTF-8 ({error})")


def _name(row: pa.RecordBatch, number: int) -> str:
    try:
        return f"pair {number + 1} (prompt {row.column('prompt_id')[0].as_py()})"
    except ValueError:
        return f"pair {number + 1}"
