"""The queue before a tower: cached items, items requested twice, shared batches, and callers that leave."""

import asyncio
import gc
import hashlib
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY
from sightline.errors import DeadlineExceeded, InternalError, Overloaded, Unavailable
from sightline_scorer.cache import ENTRY_BYTES, EmbeddingTable
from sightline_scorer.embedder import Embedder, ImageSource
from sightline_scorer.tower import Embeddings, Tower, TowerItem, Wait

SIZE = 4


def key(name: object) -> bytes:
    return hashlib.sha256(str(name).encode()).digest()


def embedding(payload: Any) -> np.ndarray:
    """A unit vector that depends on the payload."""
    row = np.random.default_rng(abs(hash(payload)) % 2**32).normal(size=SIZE).astype(np.float32)
    return row / np.linalg.norm(row)


class Engine:
    """Embeds payloads when the test lets it."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.cancelled: list[list[Any]] = []
        self.go = asyncio.Event()
        self.answer: Callable[[list[Any]], Embeddings] = lambda payloads: np.stack([embedding(p) for p in payloads])

    async def run(self, payloads: list[Any]) -> Embeddings:
        self.batches.append(payloads)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.append(payloads)
            raise
        return self.answer(payloads)


def tower(engine: Engine, **options: Any) -> Tower:
    table = EmbeddingTable(SIZE, options.pop("max_bytes", 100_000), "m", "text")
    options = {"batch": 4, "tokens": 0, "in_flight": 1, "max_waiting": 100, **options}
    return Tower(table, engine.run, ("m", "text"), **options)


def ask(to: Tower, *names: object, lengths: dict[object, int] | None = None) -> Wait:
    keys = [key(name) for name in names]
    wait, new = to.ask(keys)
    for position in new:
        item = to.begin(wait, position, keys[position], note=position + 1)
        if item is not None:
            to.ready(item, names[position], (lengths or {}).get(names[position], 1))
    return wait


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))  # type: ignore[arg-type]


def test_who_leaves_before_a_batch_takes_its_first_step_does_not_keep_the_towers_place() -> None:
    async def test() -> None:
        engine = Engine()
        engine.go.set()
        to = tower(engine)
        for turn in range(4):
            wait = ask(to, turn)
            await asyncio.sleep(0)  # the batch is made, and its task has not begun
            assert to.busy_since is not None
            to.leave(wait)
            await settled()
            assert to.busy_since is None
        assert engine.batches == []
        await ask(to, "next").done(1)

    run(test)


def test_what_was_computed_is_known() -> None:
    async def test() -> None:
        engine = Engine()
        engine.go.set()
        to = tower(engine)
        first = ask(to, "a", "b")
        await first.done(1)
        again = ask(to, "b", "a", "c")
        await again.done(1)
        assert engine.batches == [["a", "b"], ["c"]]
        np.testing.assert_array_equal(again.rows, [embedding(name) for name in "bac"])
        assert (first.known, again.known) == (0, 2)
        assert again.notes.tolist() == [2, 1, 3]

    run(test)


def test_equal_work_of_several_requests_is_done_once() -> None:
    async def test() -> None:
        engine = Engine()
        to = tower(engine, in_flight=4)
        waits = [ask(to, "a", "a", f"own {number}") for number in range(5)]
        await settled()
        engine.go.set()
        await asyncio.gather(*(wait.done(1) for wait in waits))
        payloads = [payload for batch in engine.batches for payload in batch]
        assert sorted(payloads) == ["a", *(f"own {number}" for number in range(5))]
        for number, wait in enumerate(waits):
            np.testing.assert_array_equal(wait.rows, [embedding(n) for n in ("a", "a", f"own {number}")])

    run(test)


@pytest.mark.parametrize("in_flight", [False, True])
def test_a_first_caller_that_leaves_takes_nothing_from_the_others(in_flight: bool) -> None:
    async def test() -> None:
        engine = Engine()
        to = tower(engine)
        first, second = ask(to, "a"), ask(to, "a")
        if in_flight:
            await settled()
        to.leave(first)
        engine.go.set()
        await second.done(1)
        np.testing.assert_array_equal(second.rows[0], embedding("a"))
        assert engine.cancelled == []

    run(test)


def test_what_nobody_waits_for_is_dropped_from_the_queue_and_cancelled_in_flight() -> None:
    async def test() -> None:
        engine = Engine()
        to = tower(engine, batch=1)
        assert to.busy_since is None
        running, queued = ask(to, "a"), ask(to, "b")
        await settled()
        assert to.busy_since is not None
        to.leave(queued)
        to.leave(running)
        await settled()
        assert engine.cancelled == [["a"]]
        assert engine.batches == [["a"]], "b was never sent"
        engine.go.set()
        third = ask(to, "a")
        await third.done(1)
        np.testing.assert_array_equal(third.rows[0], embedding("a"))

    run(test)


def test_a_batch_lives_as_long_as_somebody_waits_for_one_of_it() -> None:
    async def test() -> None:
        engine = Engine()
        to = tower(engine)
        one, other = ask(to, "a"), ask(to, "b")
        await settled()
        assert engine.batches == [["a", "b"]]
        to.leave(one)
        late = ask(to, "a")  # joins an item without waiting requests
        to.leave(other)
        await settled()
        assert engine.cancelled == []
        to.leave(late)
        await settled()
        assert engine.cancelled == [["a", "b"]]

    run(test)


def test_what_waits_shares_a_batch_with_those_of_like_length() -> None:
    async def test() -> None:
        engine = Engine()
        to = tower(engine, batch=3)
        lengths: dict[object, int] = {f"t{n}": length for n, length in enumerate([50, 5, 48, 6, 49, 7, 8])}
        ask(to, "first")
        await settled()
        waits = [ask(to, name, lengths=lengths) for name in lengths]
        engine.go.set()
        await asyncio.gather(*(wait.done(1) for wait in waits))
        assert engine.batches[0] == ["first"]
        batches = [sorted(lengths[payload] for payload in batch) for batch in engine.batches[1:]]
        assert batches[0] == [48, 49, 50], "the oldest and its like"
        assert sorted(length for batch in batches for length in batch) == [5, 6, 7, 8, 48, 49, 50]

    run(test)


def test_a_batch_is_bounded_in_tokens() -> None:
    async def test() -> None:
        engine = Engine()
        engine.go.set()
        to = tower(engine, batch=64, tokens=100)
        lengths: dict[object, int] = {f"t{n}": 10 + n for n in range(30)}
        waits = [ask(to, name, lengths=lengths) for name in lengths]
        await asyncio.gather(*(wait.done(1) for wait in waits))
        assert sum(map(len, engine.batches)) == 30
        for batch in engine.batches:
            assert len(batch) * max(lengths[name] for name in batch) <= 100
        assert len(engine.batches) < 15
        long = ask(to, "long", lengths={"long": 500})
        await long.done(1)
        assert engine.batches[-1] == ["long"], "one that is over the bound alone goes alone"

    run(test)


def test_too_much_waiting_is_overload() -> None:
    async def test() -> None:
        engine = Engine()
        to = tower(engine, max_waiting=3)
        wait = ask(to, "a", "b", "c")
        with pytest.raises(Overloaded) as caught:
            ask(to, "d")
        assert (caught.value.reason, caught.value.retry_after) == ("BACKEND_QUEUE_FULL", 1)
        same = ask(to, "a")  # costs nothing more
        engine.go.set()
        await wait.done(1)
        await same.done(1)
        await ask(to, "d").done(1)

    run(test)


def test_a_row_that_is_not_finite_fails_its_own_request_only() -> None:
    async def test() -> None:
        engine = Engine()
        engine.go.set()

        def poisoned(payloads: list[Any]) -> Embeddings:
            rows = np.stack([embedding(p) for p in payloads])
            rows[payloads.index("nan")] = np.nan
            rows[payloads.index("zero")] = 0
            return rows

        engine.answer = poisoned
        to = tower(engine)
        waits = {name: ask(to, name) for name in ("good", "nan", "zero")}
        await waits["good"].done(1)
        for name in ("nan", "zero"):
            with pytest.raises(InternalError, match="not finite") as caught:
                await waits[name].done(1)
            assert caught.value.reason == "NONFINITE_EMBEDDING"
        assert len(to.table) == 1, "what is wrong is not kept"

    run(test)


def test_a_failure_reaches_all_who_wait_and_is_forgotten() -> None:
    async def test() -> None:
        engine = Engine()
        engine.go.set()

        def away(payloads: list[Any]) -> Embeddings:
            raise Unavailable("gone", retry_after=1)

        working, engine.answer = engine.answer, away
        to = tower(engine)
        waits = [ask(to, "a"), ask(to, "a", "b")]
        for wait in waits:
            with pytest.raises(Unavailable, match="gone"):
                await wait.done(1)
        engine.answer = working
        await ask(to, "a", "b").done(1)

    run(test)


def test_a_deadline_bounds_the_wait() -> None:
    async def test() -> None:
        engine = Engine()
        to = tower(engine)
        wait = ask(to, "a")
        with pytest.raises(DeadlineExceeded):
            await wait.done(0.05)
        to.leave(wait)
        await settled()
        assert engine.cancelled == [["a"]]

    run(test)


def test_an_item_whose_preparation_fails_fails_its_requests() -> None:
    async def test() -> None:
        to = tower(Engine())
        wait, new = to.ask([key("a")])
        item = to.begin(wait, 0, key("a"))
        assert new == [0]
        assert isinstance(item, TowerItem)
        dropped: list[bool] = []
        item.drop = lambda: dropped.append(True)
        other, none_new = to.ask([key("a")])
        assert none_new == []
        to.leave(other)
        assert not dropped
        to.fail(item, InternalError("no pixels"))
        with pytest.raises(InternalError, match="no pixels"):
            await wait.done(1)
        third, new = to.ask([key("a")])
        item = to.begin(third, 0, key("a"))
        assert item is not None
        item.drop = lambda: dropped.append(True)
        to.leave(third)
        assert dropped == [True], "nobody waits: its preparation is stopped"

    run(test)


def test_an_image_that_a_bug_breaks_off_keeps_nobody_waiting_for_it() -> None:
    async def test() -> None:
        def broken() -> Any:
            raise RuntimeError("a bug")

        model: Any = SimpleNamespace(image=tower(Engine()))
        unused: Any = None
        with pytest.raises(RuntimeError, match="a bug"):
            Embedder(unused, unused, unused).ask_image(model, ImageSource(key("a"), 1, broken))
        assert model.image.unknown([key("a")]) == [0]

    run(test)


@pytest.mark.parametrize(("shared", "known"), [(False, [0]), (True, [])])
def test_what_one_team_asked_for_is_new_to_another(shared: bool, known: list[int], monkeypatch: Any) -> None:
    async def test() -> None:
        calling = [""]
        monkeypatch.setattr("sightline_scorer.embedder.calling_team", lambda: calling[0])
        unused: Any = None
        embedder = Embedder(unused, unused, unused, shared=shared)
        model: Any = SimpleNamespace(text=tower(Engine()), card=SimpleNamespace(trim_padding=True))
        row = SimpleNamespace(ids=np.zeros(3, np.int32), length=3)
        plan: Any = SimpleNamespace(keys=[key("a")], tokens={0: row}, rows=["a"])
        calling[0] = "red"
        assert embedder.unknown_texts(model)([key("a")]) == [0]
        wait = embedder.ask_texts(model, plan)
        assert embedder.unknown_texts(model)([key("a")]) == []
        for team in ("blue", ""):
            calling[0] = team
            assert embedder.unknown_texts(model)([key("a")]) == known
        model.text.leave(wait)

    run(test)


def test_a_tower_that_is_closed_lets_nobody_wait() -> None:
    async def test() -> None:
        to = tower(Engine(), batch=1)
        waits = [ask(to, "a"), ask(to, "b")]
        await settled()
        await to.close()
        for wait in waits:
            with pytest.raises(Unavailable, match="was unloaded") as caught:
                await wait.done(1)
            assert caught.value.retry_after

    run(test)


def begun(to: Tower, name: object) -> tuple[Wait, TowerItem]:
    """An image that is being decoded."""
    wait, _ = to.ask([key(name)])
    item = to.begin(wait, 0, key(name))
    assert item is not None
    return wait, item


def test_what_is_ready_shares_a_batch_with_what_is_still_being_made() -> None:
    async def test() -> None:
        engine = Engine()
        engine.go.set()
        to = tower(engine, gather=1000.0)
        (_, second), (gone, _), (_, broken) = begun(to, "b"), begun(to, "gone"), begun(to, "broken")
        first = ask(to, "a")
        await settled()
        assert engine.batches == []
        to.leave(gone)
        to.fail(broken, InternalError("no picture"))
        await settled()
        assert engine.batches == []
        to.ready(second, "b")
        await first.done(1)
        assert engine.batches == [["a", "b"]]

    run(test)


def test_a_full_batch_waits_for_nobody_and_others_not_for_long() -> None:
    async def test() -> None:
        engine = Engine()
        engine.go.set()
        to = tower(engine, gather=1000.0)
        begun(to, "slow")
        await ask(to, *"abcd").done(1)
        assert engine.batches == [[*"abcd"]]
        for bound in (0.0, 0.01):
            to = tower(engine, gather=bound)
            begun(to, "never")
            await ask(to, bound).done(5)

    run(test)


def test_a_batch_that_those_on_their_way_would_fill_waits_twice_as_long() -> None:
    async def test() -> None:
        engine = Engine()
        to = tower(engine, gather=10.0)  # a batch has four
        texts = tower(engine, gather=10.0, beside=to, batch=64)
        for name in "bc":
            begun(to, name)
        ask(to, "a")
        ask(texts, "a text")
        assert all(9 < each._gathering() <= 10 for each in (to, texts))
        begun(to, "d")
        assert 19 < to._gathering() <= 20
        assert 9 < texts._gathering() <= 10  # one of the pictures may be its own
        begun(to, "e")
        assert 19 < texts._gathering() <= 20

    run(test)


def test_metrics_tell_what_waits_what_is_kept_and_how_it_was_found() -> None:
    def told(name: str, **labels: str) -> float:
        labels = {"model": "told", "tower": "text", **labels}
        return REGISTRY.get_sample_value(f"sightline_scorer_{name}", labels) or 0.0

    def made(engine: Engine) -> Tower:
        table = EmbeddingTable(SIZE, 100_000, "told", "text")
        return Tower(table, engine.run, ("told", "text"), batch=4, tokens=0, in_flight=1, max_waiting=100)

    async def test() -> None:
        engine = Engine()
        to = made(engine)
        failed = made(Engine())  # a new version, which is given up
        wait = ask(to, "a", "b", "a")
        assert told("queue_items") == 2
        del failed
        gc.collect()
        other = ask(to, "b", "c")
        assert told("queue_items") == 3
        engine.go.set()
        for each in (wait, other):
            await each.done(1)
        await ask(to, "c").done(1)
        assert [told("embeddings_total", outcome=each) for each in ("hit", "miss", "coalesced")] == [1, 3, 2]
        used = 3 * (4 * SIZE + ENTRY_BYTES)
        assert (told("queue_items"), told("cache_bytes"), to.table.used_bytes) == (0, used, used)
        new = made(engine)  # while both versions live, both count
        await ask(new, "d").done(1)
        assert told("cache_bytes") == used + new.table.used_bytes

    run(test)


def test_texts_wait_for_pictures_of_others_and_not_for_their_own() -> None:
    async def test() -> None:
        engine = Engine()
        engine.go.set()
        images = tower(engine)
        to = tower(engine, gather=1000.0, beside=images, tokens=40)
        begun(images, "own")
        await ask(to, "a caller alone").done(1)
        _, other = begun(images, "another's")
        texts = [ask(to, "a"), ask(to, "b")]
        await settled()
        assert len(engine.batches) == 1
        images.ready(other, "another's")
        await asyncio.gather(*(wait.done(1) for wait in texts))
        assert ["a", "b"] in engine.batches
        begun(images, "a third")
        await ask(to, "c", "d", lengths={"c": 20, "d": 20}).done(1)  # as many tokens as a batch has

    run(test)


def test_who_gathers_when_the_tower_is_closed_is_let_go() -> None:
    async def test() -> None:
        engine = Engine()
        to = tower(engine, gather=0.2)
        begun(to, "never")
        wait = ask(to, "a")
        await settled()
        await to.close()
        with pytest.raises(Unavailable):
            await wait.done(1)
        await asyncio.sleep(0.3)
        assert engine.batches == []

    run(test)


def table(entries: int) -> EmbeddingTable:
    return EmbeddingTable(SIZE, entries * (SIZE * 4 + ENTRY_BYTES) + 5, "m", "image")


def known(within: EmbeddingTable, *names: object) -> tuple[np.ndarray, list[int]]:
    rows, notes = np.zeros((len(names), SIZE), np.float32), np.zeros(len(names), np.int32)
    return rows, within.lookup([key(name) for name in names], rows, notes)


def test_a_table_is_bounded_and_the_least_recently_used_leaves() -> None:
    within = table(3)
    for name in "abc":
        within.put(key(name), embedding(name), 1)
    assert known(within, "a")[1] == []
    within.put(key("d"), embedding("d"), 1)
    rows, missing = known(within, "a", "b", "c", "d")
    assert missing == [1]
    np.testing.assert_array_equal(rows[[0, 2, 3]], [embedding(name) for name in "acd"])
    for number in range(1000):
        within.put(key(number), embedding(number), 1)
    assert len(within) == 3
    assert within.used_bytes <= 3 * (SIZE * 4 + ENTRY_BYTES)
    np.testing.assert_array_equal(known(within, 999, 998)[0], [embedding(999), embedding(998)])


def test_a_table_of_no_bytes_keeps_nothing() -> None:
    within = EmbeddingTable(SIZE, 0, "m", "image")
    within.put(key("a"), embedding("a"), 1)
    assert known(within, "a")[1] == [0]


def test_what_was_read_stays_when_the_place_is_used_again() -> None:
    within = table(1)
    within.put(key("a"), embedding("a"), 1)
    rows, _ = known(within, "a")
    within.put(key("b"), embedding("b"), 1)
    np.testing.assert_array_equal(rows[0], embedding("a"))
