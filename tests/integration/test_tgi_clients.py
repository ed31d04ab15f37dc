"""Public TGI clients use our TGI server: it answers in TGI's form, not only in the form that our engine reads."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_mind import Mind
from engine_server import serving_app
from engine_trainer import IMAGE, PROMPT, truth
from running import WEIGHTS
from tgi_server import TgiServer

pytestmark = pytest.mark.slow

INPUTS = f"USER: ![](data:image/png;base64,{base64.b64encode(IMAGE).decode()})\n{PROMPT} ASSISTANT:"

ASK = """
import json, sys
import huggingface_hub, text_generation
from text_generation.errors import ValidationError

url, inputs = json.loads(sys.stdin.read())
client = text_generation.Client(url, timeout=60)
drawn = [client.generate(inputs, do_sample=True, seed=7, max_new_tokens=8) for _ in range(2)]
best = client.generate(inputs, do_sample=True, best_of=2, max_new_tokens=8, decoder_input_details=True)
try:
    client.generate(inputs, do_sample=True, best_of=9, max_new_tokens=8)
    refusal = ""
except ValidationError as error:
    refusal = str(error)
hub = huggingface_hub.InferenceClient(url).text_generation(
    inputs, do_sample=True, seed=7, max_new_tokens=8, details=True
)
print(json.dumps({
    "hub": huggingface_hub.__version__,
    "texts": [one.generated_text for one in drawn],
    "tokens": [[[token.id, token.logprob] for token in one.details.tokens] for one in drawn],
    "prefill": len(best.details.prefill),
    "others": len(best.details.best_of_sequences),
    "refusal": refusal,
    "by_hub": [[token.id, token.logprob] for token in hub.details.tokens],
}))
"""

ASK_TODAY = """
import json, sys
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError

url, inputs = json.loads(sys.stdin.read())
client = InferenceClient(url)
drawn = client.text_generation(inputs, do_sample=True, seed=7, max_new_tokens=8, details=True)
try:
    client.text_generation(inputs, do_sample=True, best_of=9, max_new_tokens=8)
    refusal = ""
except ValidationError as error:
    refusal = str(error)
tokens = [[token.id, token.logprob] for token in drawn.details.tokens]
print(json.dumps({"tokens": tokens, "seed": drawn.details.seed, "refusal": refusal}))
"""


def asked(python: Path, script: str, url: str) -> dict[str, Any]:
    """What a script says of the server; the hub's clients call nobody in offline mode, not even this machine."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("OFFLINE")}
    done = subprocess.run(
        [python, "-c", script], input=json.dumps([url, INPUTS]), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, Mind]]:
    mind = Mind(WEIGHTS / "llava")
    with serving_app(TgiServer(mind, str(WEIGHTS / "llava")).app) as url:
        yield url, mind


def test_the_text_generation_client_and_the_hubs_of_its_time(served: tuple[str, Mind], tmp_path: Path) -> None:
    """In a separate environment: text-generation pins huggingface_hub < 1, which transformers 5 does not accept."""
    url, mind = served
    uv, venv = Path(sys.executable).with_name("uv"), tmp_path / "venv"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, venv], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", venv / "bin/python", "text-generation==0.7.0"]
    subprocess.run(install, check=True)
    said = asked(venv / "bin/python", ASK, url)
    assert said["hub"].startswith("0.")
    first, again = said["tokens"]
    assert first == again == said["by_hub"]
    assert said["texts"][0] == said["texts"][1]
    ids = [token for token, _ in first]
    assert [logprob for _, logprob in first] == pytest.approx(truth(mind, ids).tolist(), abs=5e-3)
    assert said["prefill"] == 18
    assert said["others"] == 1
    assert "`best_of` must be > 0 and <= 2" in said["refusal"]


def test_todays_client_of_the_hub(served: tuple[str, Mind]) -> None:
    url, mind = served
    said = asked(Path(sys.executable), ASK_TODAY, url)
    ids = [token for token, _ in said["tokens"]]
    assert [logprob for _, logprob in said["tokens"]] == pytest.approx(truth(mind, ids).tolist(), abs=5e-3)
    assert said["seed"] == 7
    assert "best_of" in said["refusal"]
