"""Small random models and policies for the sampler's tests, and the service in a thread."""

import asyncio
import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from PIL import Image
from sightline.sampler import PolicyManifest, model_digest, policy_dirname, write_manifest
from sightline_chassis.process import Addresses, serving
from sightline_sampler.service import SamplerService
from sightline_sampler.settings import SamplerSettings
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

_TEXT = """
describe the picture . there is a an and red blue green yellow star circle square triangle what in this yes no
one two three user assistant : ? left right of above below
"""
WORDS = _TEXT.split()
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
    "{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)
PROMPT = "describe the picture ."


def make_llava(directory: Path, *, seed: int = 0, heads: int = 4, kv_heads: int = 2) -> Path:
    """A LLaVA of 0.1 M parameters with 16 image tokens; its answers depend on the picture and are uncertain."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<image>": 3, "<unk>": 4}
    for word in WORDS:
        vocabulary.setdefault(word, len(vocabulary))
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    text = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        # Three ids more than the tokenizer has words for, as real checkpoints have.
        vocab_size=len(vocabulary) + 3,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=3, vision_feature_layer=-1, image_seq_length=16
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parameter.data.mul_(4.0 if "vision" in name or "projector" in name else 3.0)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def png(seed: int, size: int | tuple[int, int] = 40) -> bytes:
    """A picture of noise; `size` is width and height, or both."""
    width, height = (size, size) if isinstance(size, int) else size
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def make_adapter(
    root: Path,
    base: Path,
    version: int,
    *,
    scale: float = 0.3,
    seed: int = 0,
    targets: str | list[str] = r".*language_model.*\.(q_proj|v_proj|up_proj)",
    **manifest: Any,
) -> Path:
    """A LoRA policy in PEFT's format; every B is `scale` times noise."""
    model = LlavaForConditionalGeneration.from_pretrained(base)
    torch.manual_seed(1000 * version + seed)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.3, target_modules=targets))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=scale) if scale else parameter.zero_()
    directory = root / policy_dirname(version)
    tuned.save_pretrained(directory)
    seal(directory, base, version, "lora", **manifest)
    return directory


def make_full(root: Path, base: Path, version: int, *, noise: float = 0.05, kind: Any = "full") -> Path:
    """A whole checkpoint: the base model with noise on every weight."""
    model = LlavaForConditionalGeneration.from_pretrained(base)
    torch.manual_seed(version)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=noise)
    directory = root / policy_dirname(version)
    model.save_pretrained(directory)
    seal(directory, base, version, kind)
    return directory


def seal(directory: Path, base: Path, version: int, kind: Any, **fields: Any) -> None:
    """Write the manifest."""
    values = {"parent_version": 0, "base_digest": model_digest(base), "run_id": "test", "iteration": 1, **fields}
    write_manifest(directory, PolicyManifest(version=version, kind=kind, **values))


@dataclass
class Running:
    """A running sampler, and its parts."""

    address: str
    service: SamplerService
    addresses: Addresses
    stop: Callable[[], None]
    """Asks it to stop, and returns when it has."""


@contextlib.contextmanager
def running(model: Path, **sections: Any) -> Iterator[Running]:
    """Run the service on loopback in its own thread. Policies need no probes unless a test says so."""
    engine = {"model": str(model), "threads": 1, **sections.pop("engine", {})}
    server = {"drain_seconds": 2, "notice_seconds": 0, **sections.pop("server", {})}
    policies = {"gate": {"required": False}, **sections.pop("policies", {})}
    settings = SamplerSettings.model_validate({"server": server, "engine": engine, "policies": policies, **sections})
    service, ready, failed = SamplerService(settings), threading.Event(), list[BaseException]()
    found: list[Addresses] = []
    loop = asyncio.new_event_loop()
    done = asyncio.Event()

    async def serve() -> None:
        try:
            async with serving(service, settings) as addresses:
                found.append(addresses)
                ready.set()
                await done.wait()
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait(60)
    try:
        if failed:
            raise failed[0]

        def stop() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)
                thread.join(30)

        yield Running(found[0].grpc, service, found[0], stop)
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(30)
        loop.close()
        if failed and found:
            raise failed[0]
