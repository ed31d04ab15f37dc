"""Injected errors: by rules, by a text LLM behind a sampler, by an OpenAI-compatible endpoint."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sightline.errors import InvalidInput, PreconditionFailed
from sightline_trainer.candidates.injected import Injected
from sightline_trainer.injection.kinds import Kind
from sightline_trainer.injection.language_model import LanguageModelWriter, cleaned, instruction, speaking
from sightline_trainer.injection.rules import RuleWriter
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.speaker.endpoint import Endpoint

OBJECTS = ["red star", "green star", "blue ring", "orange ring", "red cross"]
TEXT = "there is a red star on the left and a blue ring on the right ."
PROMPT = Prompt("p", (Path("x"),), "look", reference=TEXT, objects=("red star", "blue ring"))


def writer(*kinds: Kind, errors: int = 1, **words: Any) -> RuleWriter:
    words = {
        "attributes": [["red", "green", "blue", "orange"]],
        "relations": [["on the left", "on the right", "in the middle"]],
        **words,
    }
    return RuleWriter(OBJECTS, kinds, errors, **words)


def rewritten(rules: RuleWriter, seed: int, text: str = TEXT, prompt: Prompt = PROMPT) -> str | None:
    return asyncio.run(rules(prompt, "look", text, seed))


def all_of(rules: RuleWriter, **values: Any) -> set[str | None]:
    return {rewritten(rules, seed, **values) for seed in range(60)}


def test_an_object_is_added_behind_one_that_is_there_and_is_neither_there_nor_mentioned() -> None:
    texts = all_of(writer("add_object"))
    assert texts == {
        f"there is a red star on the left{one} and a blue ring on the right{other} ."
        for name in ("a green star", "an orange ring", "a red cross")
        for one, other in ((f" and {name}", ""), ("", f" and {name}"))
    }


def test_the_companion_is_the_first_choice() -> None:
    rules = writer("add_object", companions={"red star": "orange ring", "blue ring": "red star"})
    text = "there is a red star on the left ."
    assert all_of(rules, text=text) == {"there is a red star on the left and an orange ring ."}


def test_objects_attributes_and_relations_change_places() -> None:
    swapped = all_of(writer("swap_object"))
    assert "there is an orange ring on the left and a blue ring on the right ." in swapped
    assert not any("red star" in str(text) and "blue ring" in str(text) for text in swapped)
    coloured = all_of(writer("swap_attribute"))
    assert "there is an orange star on the left and a blue ring on the right ." in coloured
    assert "there is a red star on the left and an orange ring on the right ." in coloured
    moved = all_of(writer("swap_relation"))
    assert "there is a red star in the middle and a blue ring on the right ." in moved
    assert len(moved) == 4
    assert all_of(writer("remove_object")) == {
        "there is a red star on the left .",
        "there is a blue ring on the right .",
    }


def test_a_changed_colour_names_nothing_that_is_there() -> None:
    prompt = Prompt("p", (Path("x"),), "look", objects=("red star", "green star"))
    texts = all_of(writer("swap_attribute"), text="a red star .", prompt=prompt)
    assert texts == {"a blue star .", "an orange star ."}


def test_several_errors_the_same_seed_and_texts_without_a_place_for_one() -> None:
    rules = writer("add_object", "swap_relation", errors=3)
    assert rewritten(rules, 1) == rewritten(rules, 1)
    assert len(all_of(rules)) > 10
    assert rewritten(writer("swap_relation"), 0, text="a red star .") is None
    assert rewritten(writer("remove_object"), 0, text="a red star .") is None
    assert rewritten(writer("swap_attribute", attributes=[]), 0) is None
    assert rewritten(writer("swap_relation", relations=[]), 0) is None


def test_the_words_come_from_the_datasets_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"candidates\.injected\.writer"):
        RuleWriter.load(tmp_path / "vocabulary.json", ["add_object"], 1)
    (tmp_path / "vocabulary.json").write_text(json.dumps({"objects": OBJECTS, "synonyms": {}}))
    rules = RuleWriter.load(tmp_path / "vocabulary.json", ["swap_relation", "swap_object"], 1)
    assert rewritten(rules, 3) not in (None, TEXT)


def test_a_language_model_is_told_what_to_change_and_its_answer_is_cleaned() -> None:
    settings = Injected(kinds=["swap_attribute"], errors=2)
    asked = instruction(settings, "What is it?", "A red bus.")
    assert "2 mistakes" in asked
    assert "colour" in asked
    assert "often stands beside" not in asked
    assert "A red bus." in asked
    assert cleaned(' New answer: "A blue bus." ') == "A blue bus."
    assert cleaned("  ") is None
    with pytest.raises(ValidationError, match="needs a model"):
        Injected(writer="openai")
    with pytest.raises(ValidationError, match="needs a sampler"):
        Injected(writer="sampler")


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OpenAI-compatible endpoint that is overloaded once; (base URL, what it was asked)."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            status, answer = (503, b"busy") if len(asked) == 1 else (200, b"")
            if body["model"] == "unknown":
                status, answer = 404, b"no such model"
            if status == 200:
                answer = json.dumps({"choices": [{"message": {"content": '"A blue bus."'}}]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()


def asked_of(settings: Injected) -> str | None:
    async def ask() -> str | None:
        endpoint = Endpoint(speaking(settings))
        try:
            return await LanguageModelWriter(settings, endpoint)(PROMPT, "What is it?", "A red bus.", 2**40 + 5)
        finally:
            await endpoint.close()

    return asyncio.run(ask())


def test_an_openai_endpoint_writes_and_is_waited_for(
    endpoint: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = endpoint
    settings = Injected(writer="openai", model="m")
    with pytest.raises(PreconditionFailed, match="SIGHTLINE_LLM_URL"):
        Endpoint(speaking(settings))
    monkeypatch.setenv("SIGHTLINE_LLM_URL", url)
    monkeypatch.setenv("SIGHTLINE_LLM_KEY", "secret")
    text = asked_of(settings)
    assert text == "A blue bus."
    assert len(asked) == 2  # once more after 503
    assert asked[1]["path"] == "/v1/chat/completions"
    assert (asked[1]["model"], asked[1]["temperature"], asked[1]["top_p"]) == ("m", 0.8, 0.95)
    assert asked[1]["key"] == "Bearer secret"
    assert 0 <= asked[1]["seed"] < 2**31
    with pytest.raises(PreconditionFailed, match="404: no such model"):
        asked_of(Injected(writer="openai", model="unknown"))
    monkeypatch.setenv("SIGHTLINE_LLM_URL", "http://elsewhere/v1")
    asked_of(Injected(writer="openai", url=url, model="m"))
    assert asked[-1]["key"] is None  # the key is for the environment's address alone
