"""A scorer or a sampler that reads pictures by another rule: real servers that tell another one, or none as those of
Sightline 0.1.0, whose messages lack the field."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Services, small_recipe
from sampler_models import make_llava, running
from scorer_running import shared
from sightline import SamplerClient, ScorerClient
from sightline.errors import PreconditionFailed
from sightline_trainer.evaluation.asking import Asker
from sightline_trainer.events import Event
from sightline_trainer.execute import execute
from sightline_trainer.recipe import Recipe
from sightline_trainer.runs import RunDirectory

RULES = [("", r"no named rule, as Sightline 0\.1\.0 does"), ("7", "rule 7")]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Both in this process, so that a test can make them report another rule than the trainer's."""
    with running(make_llava(tmp_path_factory.mktemp("llava"))) as sampler:
        yield Services(shared()[0].at.grpc, sampler.address, {})


@pytest.fixture(params=["scorer", "sampler"])
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def tell(monkeypatch: pytest.MonkeyPatch, service: str, rule: str) -> None:
    monkeypatch.setattr(f"sightline_{service}.servicer.PICTURE_RULE", rule)


def rule_of(service: str, at: Services) -> str:
    if service == "scorer":
        with ScorerClient(at.scorer) as scorer:
            return scorer.list_models().picture_rule
    with SamplerClient(at.sampler) as sampler:
        return sampler.policies().capabilities.picture_rule


@pytest.mark.parametrize(("rule", "says"), RULES)
def test_a_run_is_refused_before_anything_is_sampled(
    services: Services,
    playground: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    service: str,
    rule: str,
    says: str,
) -> None:
    tell(monkeypatch, service, rule)
    assert rule_of(service, services) == rule
    run, events = RunDirectory(tmp_path / "run"), list[Event]()
    address = getattr(services, service)
    refused = f"the {service} at {address} reads pictures by {says}, and this trainer by rule 1; run the same release"
    with pytest.raises(PreconditionFailed, match=refused) as e:
        execute(Recipe.model_validate(small_recipe(services, playground)), run, events.append)
    assert e.value.reason == "PICTURE_RULE_DIFFERS"
    assert (run.state()["state"], run.state()["reason"]) == ("failed", "PICTURE_RULE_DIFFERS")
    assert {event.stage for event in events} == {"start"}
    assert not list(run.root.rglob("*.parquet"))


@pytest.mark.parametrize(("rule", "says"), RULES)
def test_an_evaluation_is_refused_before_anything_is_asked(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str, rule: str, says: str
) -> None:
    tell(monkeypatch, service, rule)
    asker = Asker(services.sampler, services.scorer)
    with pytest.raises(PreconditionFailed, match=f"the {service} at .* reads pictures by {says}") as e:
        asyncio.run(asker.ask([], tmp_path / "answers.jsonl", {}, lambda done, total: None))
    assert e.value.reason == "PICTURE_RULE_DIFFERS"


def test_the_same_rule_is_let_in(services: Services) -> None:
    answers, version = asyncio.run(Asker(services.sampler, services.scorer).ask([], None, {}, lambda done, total: None))
    assert (answers, version) == ({}, 0)
