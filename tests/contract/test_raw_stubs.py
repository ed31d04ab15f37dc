"""A foreign client: stubs made from the protos alone, without this project, against real servers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT, Services
from scorer_models import encoded, picture
from sightline_cli.processes import Processes

SCRIPT = """
import json, sys
import grpc
from sightline_sampler.v1 import sampler_pb2, sampler_pb2_grpc
from sightline_scorer.v1 import scorer_pb2, scorer_pb2_grpc
from sightline_trainer.v1 import trainer_pb2, trainer_pb2_grpc

scorer, sampler, trainer, image = sys.argv[1:]
image = open(image, "rb").read()
score = scorer_pb2_grpc.ScorerServiceStub(grpc.insecure_channel(scorer)).Score(
    scorer_pb2.ScoreRequest(image=scorer_pb2.Image(content=image), texts=["There is a red circle."])
)
sampled = [
    event.candidate.text
    for event in sampler_pb2_grpc.SamplerServiceStub(grpc.insecure_channel(sampler)).Sample(
        sampler_pb2.SampleRequest(
            image=sampler_pb2.Image(content=image), prompt="describe the picture .", num_candidates=2, seed=1
        )
    )
    if event.HasField("candidate")
]
runs = trainer_pb2_grpc.RunServiceStub(grpc.insecure_channel(trainer)).ListRuns(trainer_pb2.ListRunsRequest())
print(json.dumps({"score": score.scores[0].clip_score, "sampled": sampled, "runs": len(runs.runs)}))
"""


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The protos' Python stubs, by grpcio-tools as a caller would make them; `generate.sh` made its environment."""
    out = tmp_path_factory.mktemp("stubs")
    subprocess.run(
        [ROOT / "protos/generate.sh", tmp_path_factory.mktemp("ours")],
        check=True,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
    )
    protos = [f"protos/sightline_{name}/v1/{name}.proto" for name in ("scorer", "sampler", "trainer")]
    command = [ROOT / ".venv/protos/bin/python", "-m", "grpc_tools.protoc", "-Iprotos", f"--python_out={out}"]
    subprocess.run([*command, f"--grpc_python_out={out}", *protos], check=True, cwd=ROOT)
    return out


def test_stubs_made_from_the_protos_alone_call_all_three_services(
    stubs: Path, services: Services, tmp_path: Path
) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(encoded(picture(48, 48, 0)))
    with Processes(tmp_path / "trainer") as processes:
        processes.start("trainer", [f"runs={tmp_path / 'runs'}", f"recipes={ROOT / 'recipes'}"])
        trainer = processes.wait("trainer").grpc
        done = subprocess.run(
            [ROOT / ".venv/protos/bin/python", "-c", SCRIPT, services.scorer, services.sampler, trainer, image],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PYTHONPATH": str(stubs)},
        )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert 0 <= answer["score"] <= 100
    assert len(answer["sampled"]) == 2
    assert answer["runs"] == 0
