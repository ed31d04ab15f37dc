"""Images of requests: the store of images that were sent before."""

import hashlib

import pytest
from sightline import InvalidInput, NotFound
from sightline.sampler.v1 import sampler_pb2 as pb
from sightline_chassis.sections import ImageLimits
from sightline_sampler.request_images import RequestImages


def test_the_store_forgets_what_was_used_longest_ago() -> None:
    store = RequestImages(25, ImageLimits(max_image_bytes=20))
    contents = [bytes([i]) * 10 for i in range(3)]
    digests = [hashlib.sha256(content).digest() for content in contents]
    for content in contents[:2]:
        assert store.resolve(pb.Image(content=content)).content == content
    assert store.resolve(pb.Image(sha256=digests[0])).digest == digests[0].hex()
    store.resolve(pb.Image(content=contents[2]))
    assert store.resolve(pb.Image(sha256=digests[0])).content == contents[0]
    with pytest.raises(NotFound, match=r"send image\.content"):
        store.resolve(pb.Image(sha256=digests[1]))
    with pytest.raises(InvalidInput, match="21 bytes, over the limit of 20"):
        store.resolve(pb.Image(content=bytes(21)))
    with pytest.raises(InvalidInput, match="0 bytes"):
        store.resolve(pb.Image(content=b""))
    with pytest.raises(InvalidInput, match="has no image"):
        store.resolve(pb.Image())
