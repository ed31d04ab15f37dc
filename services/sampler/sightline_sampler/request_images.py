"""The images of requests: sent once, then named by their SHA-256."""

from __future__ import annotations

from sightline.errors import InvalidInput
from sightline.sampler.v1 import sampler_pb2 as pb
from sightline_chassis.gate import calling_limits, calling_team
from sightline_chassis.image_store import ImageStore
from sightline_chassis.images import check_size
from sightline_chassis.sections import ImageLimits, ImageStoreSettings

from sightline_sampler.engines.base import EncodedImage


class RequestImages:
    """Encoded images of past requests; the least recently used are dropped first. For the event loop's thread.

    Args:
        max_bytes: maximum of all stored images.
        limits: limits of one image.
    """

    def __init__(self, max_bytes: int, limits: ImageLimits) -> None:
        self._limits = limits
        self._store = ImageStore(ImageStoreSettings(max_bytes=max_bytes))

    def resolve(self, image: pb.Image) -> EncodedImage:
        """The image of a request, from its bytes or by the digest of an earlier one.

        Raises:
            InvalidInput: there is none, it is empty or too large, or the digest has the wrong size.
            NotFound: no image with that digest from the team is stored; send its bytes.
        """
        match image.WhichOneof("source"):
            case "content":
                check_size(len(image.content), self._limits)
                digest = self._store.keep(image.content, calling_team(), calling_limits().stored_image_bytes)
                return EncodedImage(image.content, digest.hex())
            case "sha256":
                return EncodedImage(self._store.get(image.sha256, calling_team())(), image.sha256.hex())
            case _:
                raise InvalidInput(
                    "the request has no image: set image.content or image.sha256", reason="IMAGE_MISSING"
                )
