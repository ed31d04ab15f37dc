"""A sampler as a model for lmms-eval (EvolvingLMMs-Lab/lmms-eval, written against 0.7.3), for other benchmarks.

    pip install lmms-eval
    python -m sightline_trainer.evaluation.lmms_eval_model \\
        --model sightline --model_args address=127.0.0.1:50052,max_in_flight=32 --tasks mme,pope --batch_size 1

The module registers the model and passes the rest of the command line to lmms-eval. To use the command `lmms-eval`
itself, register `manifest` in its entry-point group `lmms_eval.models`.

A request has one turn about one or several images. A request without an image, with a video, with more images than the
sampler takes, with several rounds or for log-likelihoods is refused with the task's name, never answered in part.
lmms-eval's own POPE is not the metric of `sightline eval pope` (docs/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms  # type: ignore[import-not-found,import-untyped,unused-ignore]
from sightline.channel import Tls, Token
from sightline.errors import InvalidInput, Unsupported
from sightline.pictures import image_bytes
from sightline.sampler import SamplerClient, exact

from sightline_trainer.pools.asking import PLACEHOLDER, placed

NAME = "sightline"
CLASS = "sightline_trainer.evaluation.lmms_eval_model.SightlineSampler"


class SightlineSampler(lmms):  # type: ignore[misc,unused-ignore]
    """A running sampler. All answers come from the policy that was active when the evaluation began."""

    is_simple = True

    def __init__(
        self,
        address: str = "127.0.0.1:50052",
        max_in_flight: int | str = 32,
        seed: int | str = 0,
        max_tokens: int | str = 1024,
        timeout: float | str = 300.0,
        ca_file: str | None = None,
        certificate_file: str | None = None,
        key_file: str | None = None,
        token_file: str | None = None,
        **_: Any,
    ) -> None:
        """Connect.

        Args:
            address: gRPC target of the sampler.
            max_in_flight: number of concurrent requests.
            seed: seed of the samples, if a task asks for a temperature.
            max_tokens: maximum new tokens if the task does not set it.
            timeout: deadline of a request in seconds.
            ca_file, certificate_file, key_file: PEM files, if the sampler uses TLS and requires a certificate.
            token_file: file with the token to send.
            _: arguments that lmms-eval passes to every model (batch_size, device).
        """
        super().__init__()
        root, certificate, key = (Path(file) if file else None for file in (ca_file, certificate_file, key_file))
        tls = Tls(root, certificate, key) if root or certificate or key else None
        token = Token(file=Path(token_file)) if token_file else None
        self.client = SamplerClient(address, timeout=float(timeout), tls=tls, token=token)
        self.max_in_flight, self.seed, self.max_tokens = int(max_in_flight), int(seed), int(max_tokens)
        policy = self.client.policy()
        self.policy_version, self._policy = policy.version, exact(policy.version, policy.run_id)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One answer for each request, in order.

        Raises:
            Unsupported: a request is not for images and one text.
            SightlineError: the sampler fails.
        """
        with ThreadPoolExecutor(max_workers=self.max_in_flight) as pool:
            return list(pool.map(self._answer, requests))

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not supported: lmms-eval asks for the log-probability of texts, but the sampler scores token ids."""
        raise Unsupported(
            "the sampler gives no log-likelihoods of texts; choose tasks of type generate_until",
            reason="TASK_UNSUPPORTED",
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not supported: the sampler answers one turn."""
        raise Unsupported(
            "the sampler answers one turn; choose tasks of type generate_until", reason="TASK_UNSUPPORTED"
        )

    def _answer(self, request: Any) -> str:
        context, settings, doc_to_visual, doc_id, task, split = request.args
        where = f"task {task}, document {doc_id}"
        images = _images(doc_to_visual(self.task_dict[task][split][doc_id]), where)
        if int(settings.get("num_beams") or 1) != 1:
            raise Unsupported(
                f"{where} asks for beam search; set --gen_kwargs num_beams=1", reason="PARAMETER_UNSUPPORTED"
            )
        temperature = float(settings.get("temperature") or 0.0)
        text = str(context)
        if len(images) == 1 or text.count(PLACEHOLDER) != len(images):  # otherwise placeholders mark each image's place
            text = PLACEHOLDER * len(images) + text.replace(PLACEHOLDER, "").strip()
        samples = self.client.sample(
            images,
            [{"role": "user", "content": placed(text)}],
            1,
            seed=self.seed,
            temperature=temperature if settings.get("do_sample", temperature > 0) else 0.0,
            top_p=float(settings.get("top_p") or 1.0),
            max_tokens=int(settings.get("max_new_tokens") or self.max_tokens),
            policy=self._policy,
        )
        text = _until(samples.candidates[0].text, settings.get("until"))
        self.cache_hook.add_partial("generate_until", (context, settings), text)
        return text


def _images(visuals: Any, where: str) -> list[bytes | Path]:
    several = list(visuals) if isinstance(visuals, (list, tuple)) else [visuals]
    if not several:
        raise Unsupported(f"{where} has 0 images; it must have one or more", reason="IMAGE_COUNT")
    return [_image(visual, where) for visual in several]


def _image(visual: Any, where: str) -> bytes | Path:
    if isinstance(visual, str):
        path = Path(visual)
        if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp", ".gif"}:
            return path
        raise Unsupported(f"{where}: {visual} is not an image; the sampler takes no videos", reason="IMAGE_UNUSABLE")
    if isinstance(visual, bytes | bytearray):  # lmms-eval passes pictures and paths; bytes may be anything
        raise Unsupported(f"{where}: a {type(visual).__name__} is not an image", reason="IMAGE_UNUSABLE")
    try:
        return image_bytes(visual)
    except InvalidInput as error:
        raise Unsupported(f"{where}: {error.message}", reason=error.reason) from error


def _until(text: str, stops: str | Sequence[str] | None) -> str:
    for stop in [stops] if isinstance(stops, str) else stops or []:
        text = text.split(stop, 1)[0] if stop else text
    return text


def manifest() -> Any:
    """The entry for lmms-eval's model registry."""
    from lmms_eval.models.registry_v2 import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        ModelManifest,
    )

    return ModelManifest(model_id=NAME, simple_class_path=CLASS)


def main() -> None:
    """Register the model and run lmms-eval's own command line."""
    from lmms_eval.__main__ import cli_evaluate  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from lmms_eval.models import MODEL_REGISTRY_V2  # type: ignore[import-not-found,import-untyped,unused-ignore]

    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    cli_evaluate()


if __name__ == "__main__":
    main()
