"""Which credentials the trainer sends, and to whom."""

from pathlib import Path

import pytest
from sightline.channel import Tls, Token
from sightline_chassis.settings import SettingsError, load_settings
from sightline_trainer.connections import Connections
from sightline_trainer.recipe import Recipe, load_recipe
from sightline_trainer.settings import TrainerSettings

ROOT = Path(__file__).parents[2]
CONNECTIONS = Connections.model_validate(
    {
        "scorer": {"address": "scorer:1", "tls": {"root": "ca.crt"}, "token_file": "/auth/token"},
        "sampler": {"address": "sampler:1"},
    }
)


def _recipe(**sections: dict[str, str]) -> Recipe:
    return Recipe.model_validate({"name": "r", "model": "m", "data": {"train": "a", "test": "b"}, **sections})


def test_a_recipe_without_addresses_gets_those_of_the_trainer() -> None:
    recipe = CONNECTIONS.complete(_recipe())
    assert (recipe.sampling.address, recipe.reward.address) == ("sampler:1", "scorer:1")
    named = CONNECTIONS.complete(_recipe(sampling={"address": "other:1"}))
    assert (named.sampling.address, named.reward.address) == ("other:1", "scorer:1")


def test_credentials_go_to_the_trainer_s_own_addresses_only() -> None:
    assert CONNECTIONS.credentials("scorer:1") == {
        "tls": Tls(Path("ca.crt")),
        "token": Token(file=Path("/auth/token")),
    }
    assert CONNECTIONS.credentials("sampler:1") == {"tls": None, "token": None}
    for foreign in ("evil.example:1", "scorer:2", "dns:///scorer:1", "", None):
        assert CONNECTIONS.credentials(foreign) == {}


def test_a_recipe_can_name_no_token_file() -> None:
    with pytest.raises(ValueError, match="token_file"):
        _recipe(reward={"address": "evil.example:1", "token_file": "/etc/passwd"})


def test_connections_are_settings_of_the_trainer() -> None:
    settings = load_settings(
        TrainerSettings, service="trainer", overrides=['connections.scorer={address: "a:1", token_file: /t}']
    )
    assert settings.connections.scorer is not None
    assert settings.connections.scorer.token_file == Path("/t")
    with pytest.raises(SettingsError, match=r"connections\.scorer\.address"):
        load_settings(TrainerSettings, service="trainer", overrides=["connections.scorer.token_file=/t"])


@pytest.mark.parametrize("address", ["http://scorer:50051", "scorer:50051/", ":50051", "scorer", ""])
def test_a_malformed_address_is_refused_where_it_is_written(address: str) -> None:
    with pytest.raises(SettingsError, match=r"(?s)connections\.scorer\.address.*host:port"):
        load_settings(TrainerSettings, service="trainer", overrides=[f"connections.scorer.address={address!r}"])
    with pytest.raises(SettingsError, match=r"(?s)reward\.address.*host:port"):
        load_recipe(ROOT / "recipes/clip_dpo.yaml", [f"reward.address={address!r}"])
