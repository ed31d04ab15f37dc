"""Scorer scripted: a real gRPC server that answers as a test orders, to test the clients."""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from scripted_server import abort, listening
from sightline.errors import InvalidInput, NotFound, Overloaded, SightlineError, Unavailable
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline.scorer.v1 import scorer_pb2_grpc

NAME = "sightline_scorer.v1.ScorerService"


class Scripted(scorer_pb2_grpc.ScorerServiceServicer):
    """A text is an order: "ok N" scores N; "away N" is away N times, "busy N" is busy N times, then scores; "refuse";
    "sleep SECONDS"."""

    def __init__(self) -> None:
        self.store: dict[bytes, bytes] = {}
        self.tries: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.image_bytes = 0
        self.running = self.most_running = self.cancelled = 0
        self.forgetful = False
        self.refused: Callable[[str], bool] = lambda text: text == "refuse"
        self.retry_after = 0.01
        self._lock = threading.Lock()

    def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[pb.ModelInfo(name="m", is_default=True)])

    def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            return self._score(request, context)
        except SightlineError as error:
            abort(context, error)
        finally:
            with self._lock:
                self.running -= 1

    def _score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        with self._lock:
            self.tries[request.texts[0]] += 1
            tries = self.tries[request.texts[0]]
            self.image_bytes += len(request.image.content)
            self.seen[str(request.image.WhichOneof("source"))] += 1
            self.seen.update(str(value) for key, value in context.invocation_metadata() if key == "authorization")
        order, _, argument = request.texts[0].partition(" ")
        if request.image.sha256 and request.image.sha256 not in self.store:
            raise NotFound("no such image", reason="IMAGE_NOT_FOUND")
        if order == "away" and tries <= int(argument):
            raise Unavailable("away", retry_after=self.retry_after)
        if order == "busy" and tries <= int(argument):
            raise Overloaded("busy", retry_after=self.retry_after)
        if order == "full":
            raise Overloaded("for good")
        if self.refused(request.texts[0]):
            raise InvalidInput("refused", reason="TEXT_TOO_LONG")
        if order == "sleep":
            for _ in range(int(float(argument) * 100)):
                if not context.is_active():
                    with self._lock:
                        self.cancelled += 1
                    break
                time.sleep(0.01)
        value = float(argument) if order == "ok" else 1.0
        content = request.image.content or self.store.get(request.image.sha256, b"")
        return pb.ScoreResponse(
            scores=[pb.TextScore(value=value, clip_score=value) for _ in request.texts],
            kind=request.kind or pb.SCORE_KIND_CLIP_SCORE,
            image_sha256=hashlib.sha256(content).digest(),
        )

    def FindMissingImages(self, request: pb.FindMissingImagesRequest, context: Any) -> pb.FindMissingImagesResponse:
        self.seen["find"] += 1
        return pb.FindMissingImagesResponse(sha256=[one for one in request.sha256 if one not in self.store])

    def UploadImages(self, request_iterator: Iterator[pb.UploadImagesRequest], context: Any) -> pb.UploadImagesResponse:
        answer, content = pb.UploadImagesResponse(), b""
        for piece in request_iterator:
            content += piece.chunk
            self.image_bytes += len(piece.chunk)
            if piece.last:
                digest = hashlib.sha256(content).digest()
                self.seen["upload"] += 1
                if not self.forgetful:
                    self.store[digest] = content
                answer.outcomes.add(sha256=digest)
                content = b""
        return answer

    def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        """Each image's first byte and each text's length, as vectors [2]; an image "bad" fails alone."""
        self.seen["embed"] += 1
        dtype = "<f2" if request.format == pb.EMBEDDING_FORMAT_FLOAT16 else "<f4"
        answer = pb.EmbedResponse(format=request.format, model=pb.ModelInfo(embedding_size=2))
        for image in request.images:
            if image.content == b"bad":
                answer.images.add(error=pb.ItemError(code=3, reason="IMAGE_UNREADABLE", message="no image"))
            else:
                values = np.array([image.content[0], 0.1], dtype).tobytes()
                answer.images.add(embedding=pb.Embedding(values=values))
        for text in request.texts:
            answer.texts.add(embedding=pb.Embedding(values=np.array([len(text), 0.1], dtype).tobytes()))
        return answer


@contextmanager
def scripted(
    credentials: grpc.ServerCredentials | None = None, *, servicer: Scripted | None = None
) -> Iterator[tuple[Scripted, str]]:
    """A scripted scorer and its address; encrypted with credentials."""
    servicer = servicer or Scripted()
    with listening(scorer_pb2_grpc.add_ScorerServiceServicer_to_server, servicer, NAME, credentials) as address:
        yield servicer, address
