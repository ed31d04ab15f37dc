"""The engine's part of a request: which candidates, with which seeds, and only supported parameters."""

from __future__ import annotations

import dataclasses

from sightline.errors import InvalidInput
from sightline.sampler.params import SamplingParams
from sightline.sampler.v1 import sampler_pb2 as pb

from sightline_sampler.engines.base import Engine, SampleWork


def choose(request: pb.SampleRequest, work: SampleWork, engine: Engine) -> tuple[SampleWork, dict[int, int]]:
    """The work with its seeds, for the requested candidates.

    Returns:
        The work, and for each of its requested candidates the index in the request.

    Raises:
        InvalidInput: a duplicate index, or one not below num_candidates.
    """
    count = request.num_candidates
    seeds = list(request.seeds) or engine.derive_seeds(request.seed, count)
    work = dataclasses.replace(work, seeds=seeds, free_seeds=not request.seeds)
    if not request.indices:
        return work, {index: index for index in range(count)}
    wanted = sorted(set(request.indices))
    if len(wanted) != len(request.indices) or wanted[-1] >= count:
        raise InvalidInput(f"indices must differ and be below num_candidates, {count}", reason="BAD_INDICES")
    if work.params.beams is not None:  # beams depend on each other: all are searched, the requested ones are sent
        return work, {index: index for index in wanted}
    work = dataclasses.replace(work, seeds=[seeds[index] for index in wanted])
    return work, dict(enumerate(wanted))


def refuse_unsupported(params: SamplingParams, engine: Engine) -> None:
    """Refuse parameters that the engine does not support, rather than ignore them.

    Raises:
        InvalidInput: unsupported parameters; the message names the engine and the parameters.
    """
    capabilities = engine.capabilities()
    missing = sorted(params.options() - capabilities.params)
    if missing:
        can = ", ".join(sorted(capabilities.params)) or "none"
        raise InvalidInput(
            f"the engine {capabilities.engine} does not support {', '.join(missing)}; of the optional parameters it "
            f"supports: {can}",
            reason="PARAMETER_UNSUPPORTED",
            metadata={"engine": capabilities.engine, "parameters": ",".join(missing)},
        )
