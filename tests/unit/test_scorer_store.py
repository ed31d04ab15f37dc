"""Uploaded images are bounded and verified; the least recently used leave first."""

import contextlib
import errno
import hashlib
from pathlib import Path

import pytest
from sightline.errors import DataCorrupted, InvalidInput, NotFound, Overloaded
from sightline_chassis.image_store import ImageStore, Upload
from sightline_chassis.sections import ImageStoreSettings
from sightline_chassis.spill import Spill
from sightline_scorer.settings import ScorerLimits


def digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def filled(*contents: bytes, max_bytes: int = 30, max_images: int = 100) -> ImageStore:
    store = ImageStore(ImageStoreSettings(max_bytes=max_bytes, max_images=max_images))
    for content in contents:
        store.put(digest(content), content)
    return store


A, B, C, D = (letter * 10 for letter in (b"a", b"b", b"c", b"d"))


def test_the_least_recently_used_leaves() -> None:
    store = filled(A, B, C)
    store.get(digest(A))
    store.put(digest(D), D)
    assert store.missing(map(digest, (A, B, C, D))) == [digest(B)]
    assert store.get(digest(A))() == A


def test_asking_for_an_image_keeps_it() -> None:
    store = filled(A, B, C)
    store.missing([digest(A)])
    store.put(digest(D), D)
    assert store.missing(map(digest, (A, B, C, D))) == [digest(B)]


def test_an_image_is_there_for_the_teams_that_sent_it() -> None:
    store = filled()
    store.put(digest(A), A, "red")
    assert store.get(digest(A), "red")() == A
    assert store.missing([digest(A)], "blue") == [digest(A)] == store.missing([digest(A)])
    with pytest.raises(NotFound):
        store.get(digest(A), "blue")
    store.keep(A, "blue")
    assert len(store) == 1, "and stored once"
    assert store.get(digest(A), "blue")() == A
    for other in (B, C, D):
        store.put(digest(other), other, "red")
    with pytest.raises(NotFound):
        store.get(digest(A), "red")
    store.put(digest(A), A, "red")
    assert store.missing([digest(A)], "blue") == [digest(A)], "what left and came back is of who brought it back"


def test_teams_share_images_where_the_operator_says_so() -> None:
    store = ImageStore(ImageStoreSettings(shared=True))
    store.put(digest(A), A, "red")
    assert store.get(digest(A), "blue")() == A


def test_a_team_over_its_bound_loses_its_own_images_and_no_other_s() -> None:
    store = filled(max_bytes=100)
    store.put(digest(D), D, "blue")
    for content in (A, B):
        store.put(digest(content), content, "red", 20)
    store.get(digest(A), "red")
    store.put(digest(C), C, "red", 20)
    assert store.missing(map(digest, (A, B, C)), "red") == [digest(B)], "the least recently used of its own"
    assert store.missing([digest(D)], "blue") == []
    assert len(store) == 3
    store.put(digest(D), D, "red", 10)
    assert store.missing(map(digest, (A, C, D)), "red") == [digest(A), digest(C)]
    store.put(digest(A), A, "red", 10)
    assert store.missing([digest(D)], "blue") == [], "of two teams, one has lost it"
    assert len(store) == 2
    with pytest.raises(Overloaded, match=r"may have 5 stored .* tokens file") as caught:
        store.put(digest(B), B, "red", 5)
    assert caught.value.retry_after is None, "waiting does not help"
    assert store.missing([store.keep(B, "red", 5)], "red") == [digest(B)], "what comes with a request is used, not kept"


def test_a_bound_holds_for_what_is_on_disk_too(tmp_path: Path) -> None:
    store = ImageStore(ImageStoreSettings(max_bytes=10, spill=tmp_path))
    for content in (A, B, C):
        store.put(digest(content), content, "red", 20)
    assert store.missing(map(digest, (A, B, C)), "red") == [digest(A)]
    assert store.get(digest(B), "red")() == B
    store.close()
    assert digest(A).hex() not in {path.name for path in tmp_path.iterdir()}


def test_the_number_of_images_is_bounded() -> None:
    assert len(filled(A, B, C, max_images=2)) == 2


def test_the_same_image_again_takes_no_more_room() -> None:
    store = filled(A, A, A, B, C)
    assert store.missing(map(digest, (A, B, C))) == []


def test_other_bytes_than_stated_are_refused() -> None:
    store = filled()
    with pytest.raises(DataCorrupted, match=r"not .* as stated"):
        store.put(digest(A), B)
    assert len(store) == 0


def test_an_image_larger_than_the_store_is_refused_and_pushes_nothing_out() -> None:
    store = filled(A, B, C)
    large = bytes(31)
    with pytest.raises(InvalidInput, match=r"image_store\.max_bytes"):
        store.put(digest(large), large)
    assert len(store) == 3


def test_an_image_that_is_not_there() -> None:
    with pytest.raises(NotFound, match="UploadImages"):
        filled().get(digest(A))
    with pytest.raises(InvalidInput, match="32 bytes, this one 64"):
        filled().get(digest(A).hex().encode())


def test_an_upload_in_pieces() -> None:
    store = filled()
    upload = Upload(digest(A), ScorerLimits())
    for piece in (A[:3], b"", A[3:]):
        upload.add(piece)
    upload.finish(store)
    assert upload.error is None
    assert store.get(digest(A))() == A


def test_an_upload_over_the_limit_is_not_kept_while_it_comes() -> None:
    upload = Upload(digest(A), ScorerLimits(max_image_bytes=15))
    for _ in range(5):
        upload.add(A)
    assert upload._pieces == []
    upload.finish(filled())
    assert upload.error is not None
    assert upload.error.reason == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize(("sha256", "reason"), [(b"short", "DIGEST_INVALID"), (digest(B), "DIGEST_MISMATCH")])
def test_an_upload_under_a_wrong_name(sha256: bytes, reason: str) -> None:
    upload = Upload(sha256, ScorerLimits())
    upload.add(A)
    upload.finish(filled())
    assert upload.error is not None
    assert upload.error.reason == reason


def test_an_empty_upload() -> None:
    upload = Upload(digest(b""), ScorerLimits())
    upload.finish(filled())
    assert upload.error is not None
    assert upload.error.reason == "IMAGE_EMPTY"


def spilling(directory: Path, **values: int) -> ImageStore:
    return ImageStore(ImageStoreSettings(max_bytes=20, spill=directory, **values))


def drained(store: ImageStore) -> None:
    store.close()


def test_what_leaves_memory_is_spilled_and_found_again(tmp_path: Path) -> None:
    store = spilling(tmp_path)
    for content in (A, B, C, D):
        store.put(digest(content), content)
    assert store.missing(map(digest, (A, B, C, D))) == []
    assert [store.get(digest(content))() for content in (A, B, C, D)] == [A, B, C, D]
    drained(store)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([digest(A).hex(), digest(B).hex()])
    again = spilling(tmp_path)
    assert again.get(digest(A))() == A, "a service that starts again finds it"
    assert again.missing([digest(C)]) == [digest(C)]


def test_the_spill_is_bounded(tmp_path: Path) -> None:
    store = spilling(tmp_path, spill_max_bytes=25)
    for number in range(10):
        content = b"%010d" % number
        store.put(digest(content), content)
    drained(store)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 25
    assert digest(b"%010d" % 7).hex() in {path.name for path in tmp_path.iterdir()}, "the newest of those that left"


def test_a_spilled_file_that_changed_is_not_used(tmp_path: Path) -> None:
    store = spilling(tmp_path)
    for content in (A, B, C):
        store.put(digest(content), content)
    drained(store)
    (tmp_path / digest(A).hex()).write_bytes(b"x" * 10)
    read = store.get(digest(A))
    with pytest.raises(DataCorrupted, match="has changed"):
        read()
    assert store.missing([digest(A)]) == [digest(A)]


def test_a_spilled_file_that_is_gone_is_not_found(tmp_path: Path) -> None:
    store = spilling(tmp_path)
    for content in (A, B, C):
        store.put(digest(content), content)
    drained(store)
    (tmp_path / digest(A).hex()).unlink()
    read = store.get(digest(A))
    with pytest.raises(NotFound):
        read()
    assert store.missing([digest(A)]) == [digest(A)], "or nobody would ever upload it again"


def test_an_image_that_comes_again_while_its_broken_file_goes_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spill = Spill(tmp_path, 1000)
    spill.put(digest(A), A)
    spill._pool.submit(lambda: None).result()
    (tmp_path / digest(A).hex()).write_bytes(b"x" * 10)
    unlink = Path.unlink

    def slow(path: Path, missing_ok: bool = False) -> None:
        spill.put(digest(A), A)
        with contextlib.suppress(TimeoutError):
            spill._pool.submit(lambda: None).result(0.3)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", slow)
    with pytest.raises(DataCorrupted):
        spill.read(digest(A))
    monkeypatch.undo()
    spill.close()
    assert (digest(A) in spill) == (tmp_path / digest(A).hex()).exists()
    assert spill.read(digest(A)) == A


def test_a_full_disk_is_not_filled_with_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    store = spilling(tmp_path)
    for content in (A, B, C):
        store.put(digest(content), content)
    drained(store)
    assert list(tmp_path.iterdir()) == []
