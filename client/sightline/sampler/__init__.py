"""The sampler's clients: K on-policy candidates for each image and prompt; policies swap while it serves.

    from sightline.sampler import SamplerClient

Light: gRPC, protobuf, NumPy. The service is `sightline serve sampler`; see services/sampler/README.md.
"""

from sightline.many import Progress
from sightline.sampler.aio import AsyncSamplerClient
from sightline.sampler.client import SamplerClient
from sightline.sampler.manifest import (
    ManifestError,
    PolicyManifest,
    manifest_digest,
    model_digest,
    policy_dirname,
    read_manifest,
    verify,
    write_manifest,
)
from sightline.sampler.many import Outcome, Pair, PairOptions
from sightline.sampler.streams import AsyncSampleStream, SampleOptions, SampleStream
from sightline.sampler.turns import Asked, Images, Message, Role, Turn
from sightline.sampler.types import (
    ActiveOf,
    AdapterPlace,
    Arrival,
    AtLeast,
    Beams,
    Blank,
    Blur,
    Candidate,
    Capabilities,
    Contrast,
    Crop,
    DiffusionNoise,
    Exact,
    ImageFree,
    PauseMode,
    PixelNoise,
    Policies,
    PolicyInfo,
    PolicySelector,
    Probe,
    Prompted,
    Samples,
    Summary,
    TokenScores,
    active_of,
    at_least,
    exact,
)

__all__ = [
    "ActiveOf",
    "AdapterPlace",
    "Arrival",
    "Asked",
    "AsyncSampleStream",
    "AsyncSamplerClient",
    "AtLeast",
    "Beams",
    "Blank",
    "Blur",
    "Candidate",
    "Capabilities",
    "Contrast",
    "Crop",
    "DiffusionNoise",
    "Exact",
    "ImageFree",
    "Images",
    "ManifestError",
    "Message",
    "Outcome",
    "Pair",
    "PairOptions",
    "PauseMode",
    "PixelNoise",
    "Policies",
    "PolicyInfo",
    "PolicyManifest",
    "PolicySelector",
    "Probe",
    "Progress",
    "Prompted",
    "Role",
    "SampleOptions",
    "SampleStream",
    "SamplerClient",
    "Samples",
    "Summary",
    "TokenScores",
    "Turn",
    "active_of",
    "at_least",
    "exact",
    "manifest_digest",
    "model_digest",
    "policy_dirname",
    "read_manifest",
    "verify",
    "write_manifest",
]
