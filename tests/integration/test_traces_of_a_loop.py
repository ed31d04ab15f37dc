"""One trace from a stage of the loop through sampler, scorer and Triton, over real services, to a receiver."""

import json
from pathlib import Path

import pytest
from otlp_receiver import receiving
from running import WEIGHTS, Services, small_recipe
from sightline_chassis import traces
from sightline_chassis.sections import TraceSettings
from sightline_cli.processes import Processes
from sightline_trainer.execute import execute
from sightline_trainer.recipe import Recipe
from sightline_trainer.runs import RunDirectory


@pytest.mark.slow
def test_a_stage_is_one_trace_through_all_services(playground: Path, tmp_path: Path) -> None:
    with receiving() as receiver, Processes(tmp_path / "services") as processes:
        told = [f"traces.endpoint={receiver.endpoint}", "log.level=debug"]
        processes.start("sampler", [f"engine.model={WEIGHTS / 'llava'}", "engine.threads=1", *told])
        processes.start("scorer", [f"models.clip.source=local-dir:{WEIGHTS / 'clip'}", *told])
        services = Services(processes.wait("scorer").grpc, processes.wait("sampler").grpc, {})
        recipe = Recipe.model_validate(small_recipe(services, playground, iterations=1, evaluation={"prompts": 8}))
        traces.begin(TraceSettings(endpoint=receiver.endpoint), "trainer")
        try:
            execute(recipe, RunDirectory(tmp_path / "run"), lambda event: None)
        finally:
            traces.end()
        processes.stop()
        known = {span.id: span for span in receiver.spans}
        (stage,) = (span for span in receiver.of("trainer") if span.name == "sample")
        assert stage.facts["sightline.run"] == "run"
        for service, name in (
            ("sampler", "sightline_sampler.v1.SamplerService/Sample"),
            ("scorer", "sightline_scorer.v1.ScorerService/Score"),
            ("scorer", "triton clip/text"),
            ("triton", ""),
        ):
            ours = [span for span in receiver.of(service) if span.trace == stage.trace and span.name.startswith(name)]
            assert ours, (service, name)
            for span in ours:
                above = span
                while above.parent:
                    above = known[above.parent]
                assert above == stage, "each is below the stage"
        assert {span.trace for span in receiver.of("triton")} <= {span.trace for span in receiver.of("trainer")}
        log = (tmp_path / "services/sampler.log").read_text().splitlines()
        logged = [json.loads(line) for line in log if "SamplerService/Sample OK" in line]
        assert stage.trace in {line["trace_id"] for line in logged}
