"""Policies pushed to a sampler that cannot see the trainer's files, and two runs that share one sampler."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sampler_models import PROMPT, Running, make_adapter, make_llava, png, running
from sightline import (
    AlreadyExists,
    DataCorrupted,
    InvalidInput,
    NotFound,
    Overloaded,
    PermissionDenied,
    PreconditionFailed,
)
from sightline.sampler import AsyncSamplerClient, SamplerClient, active_of, exact, manifest_digest
from sightline.sampler.pushing import Parcel
from sightline.sampler.v1 import sampler_pb2 as pb
from sightline.sampler.v1 import sampler_pb2_grpc as pb_grpc
from sightline_sampler.policies.pushers import Pusher
from sightline_sampler.policies.received import ReceivedPolicies
from sightline_sampler.settings import PolicySettings

IMAGE = png(0)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory, llava: Path) -> Path:
    """red/v000001, red/v000002 and blue/v000001: policies of two runs, all with different weights."""
    root = tmp_path_factory.mktemp("policies")
    make_adapter(root / "red", llava, 1, run_id="red")
    make_adapter(root / "red", llava, 2, run_id="red")
    make_adapter(root / "blue", llava, 1, seed=7, run_id="blue")
    return root


@pytest.fixture(scope="module")
def shared(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A sampler that can read a directory without any of our policies."""
    root = tmp_path_factory.mktemp("its-own")
    with running(llava, policies={"max_loaded": 4, "root": str(root), "state_dir": str(root)}) as at:
        yield at


def ids(client: SamplerClient, **options: Any) -> list[list[int]]:
    samples = client.sample(IMAGE, PROMPT, 4, seed=4, max_tokens=12, **options)
    return [candidate.token_ids.tolist() for candidate in samples.candidates]


def push(address: str, *messages: pb.PushPolicyRequest) -> pb.PushPolicyResponse:
    with grpc.insecure_channel(address) as channel:
        return pb_grpc.SamplerServiceStub(channel).PushPolicy(iter(messages), timeout=30)


def refused(address: str, *messages: pb.PushPolicyRequest) -> str:
    from sightline.errors import from_rpc_error

    with pytest.raises(grpc.RpcError) as caught:
        push(address, *messages)
    return from_rpc_error(caught.value).reason


def test_two_runs_share_a_sampler_and_neither_meets_the_other(shared: Running, policies: Path) -> None:
    with (
        SamplerClient(shared.address, timeout=60, run_id="red") as red,
        SamplerClient(shared.address, timeout=60, run_id="blue") as blue,
        SamplerClient(shared.address, timeout=60) as other,
    ):
        base = ids(other)
        red.deliver(policies / "red/v000001", 1)
        blue.deliver(policies / "blue/v000001", 1)
        red.activate(1)
        blue.activate(1)
        of_red, of_blue = ids(red, policy=exact(1)), ids(blue, policy=exact(1))
        assert base != of_red != of_blue
        assert ids(red) == of_red, "the active one of its run"
        assert ids(other) == of_blue, "the one activated last"
        assert ids(other, policy=active_of("red")) == of_red
        red.deliver(policies / "red/v000002", 2)
        red.activate(2)
        assert blue.policy().version == 1
        assert ids(blue, policy=exact(1)) == of_blue
        assert red.policies().highest_version == 2
        assert blue.policies().highest_version == 1
        assert [info.version for info in blue.policies().policies] == [0, 1]
        assert ids(red, policy=exact(0)) == base
        sample = red.sample(IMAGE, PROMPT, 1, policy=exact(2))
        assert (sample.policy_version, sample.run_id) == (2, "red")
        assert (sample.candidates[0].policy_version, sample.candidates[0].run_id) == (2, "red")
        with pytest.raises(PreconditionFailed, match=r"runs blue, red each have a policy 1") as caught:
            other.sample(IMAGE, PROMPT, 1, policy=exact(1))
        assert caught.value.reason == "POLICY_AMBIGUOUS"
        with pytest.raises(PreconditionFailed, match="no policy of run green is active"):
            other.sample(IMAGE, PROMPT, 1, policy=active_of("green"))
        red.activate(0)
        assert ids(red) == base
        assert blue.policy().version == 1
        for client, version in ((red, 1), (red, 2)):
            client.retire(version)
        assert ids(blue, policy=exact(1)) == of_blue


def test_a_run_that_asks_for_little_does_not_wait_for_one_that_asks_for_much(llava: Path) -> None:
    """Two trainers share a sampler with room for two prompts at a time."""

    async def main(address: str) -> None:
        done: list[str] = []

        async def ask(client: AsyncSamplerClient, run: str, seed: int) -> None:
            await client.sample(IMAGE, PROMPT, 4, seed=seed, max_tokens=24, policy=exact(0))
            done.append(run)

        async with (
            AsyncSamplerClient(address, timeout=120, run_id="red") as red,
            AsyncSamplerClient(address, timeout=120, run_id="blue") as blue,
        ):
            await red.policies()
            await blue.policies()
            asked = [ask(red, "red", seed) for seed in range(40)] + [ask(blue, "blue", seed) for seed in range(4)]
            await asyncio.gather(*asked)
        last = max(at for at, run in enumerate(done) if run == "blue")
        assert done[:last].count("red") <= 20, done

    with running(llava, engine={"max_rows": 8}) as at:
        asyncio.run(main(at.address))


def test_what_a_sampler_holds_is_not_sent_again_and_what_was_cut_off_goes_on(
    shared: Running, policies: Path, tmp_path: Path
) -> None:
    directory = policies / "red/v000002"
    parcel = Parcel(directory)
    head = next(parcel.messages(()))
    missing = push(shared.address, head).missing
    names = json.loads((directory / "manifest.json").read_text())["files"]
    assert {item.sha256.hex() for item in missing} <= set(names.values())
    pieces = list(parcel.messages(missing))
    first = pieces[1].chunk
    half = pb.PushPolicyRequest(
        chunk=pb.PushedChunk(sha256=first.sha256, offset=first.offset, data=first.data[: len(first.data) // 2])
    )
    after = {item.sha256: item.offset for item in push(shared.address, head, half).missing}
    assert after[first.sha256] == len(first.data) // 2
    answer = push(shared.address, *pieces)  # the first half comes twice
    assert answer.uri == f"pushed://{manifest_digest(directory)}"
    assert push(shared.address, head).uri == answer.uri
    with SamplerClient(shared.address, run_id="red") as client:
        assert client.stage(answer.uri, 2).digest == manifest_digest(directory)
        client.retire(2)
        with pytest.raises(NotFound, match="push it again"):
            client.stage(answer.uri, 2)


def test_what_may_not_be_named_is_pushed_and_what_is_known_is_not_read_again(
    llava: Path, policies: Path, tmp_path: Path
) -> None:
    """A sampler that accepts no paths gets the files; a policy that is already loaded is refused by its manifest."""
    own = {"state_dir": str(tmp_path), "schemes": ["s3"]}
    with running(llava, policies=own) as at, SamplerClient(at.address, run_id="red") as client:
        with pytest.raises(PermissionDenied) as refusal:
            client.stage(policies / "red/v000001", 1)
        assert refusal.value.reason == "SCHEME_NOT_ALLOWED"
        staged = client.deliver(policies / "red/v000001", 1)
        assert staged.uri.startswith("pushed://")
        (weights,) = (tmp_path / "downloads").glob("v000001-*/adapter_model.safetensors")
        weights.chmod(0o644)
        weights.write_bytes(b"")
        with pytest.raises(AlreadyExists):
            client.stage(staged.uri, 1)


def test_a_kill_between_the_last_piece_and_its_check_does_not_stop_the_push(policies: Path, tmp_path: Path) -> None:
    directory = policies / "red/v000001"
    head = next(Parcel(directory).messages(()))
    pushed = tmp_path / "downloads/.pushed"
    pushed.mkdir(parents=True)
    for name, sha256 in json.loads((directory / "manifest.json").read_text())["files"].items():
        (pushed / f"{sha256}.part").write_bytes((directory / name).read_bytes())

    async def announce() -> pb.PushPolicyResponse:
        async def only() -> AsyncIterator[pb.PushPolicyRequest]:
            yield head

        return await ReceivedPolicies(PolicySettings(state_dir=tmp_path), lambda path: False).receive(only(), Pusher())

    assert asyncio.run(announce()).uri == f"pushed://{manifest_digest(directory)}"


def announced(directory: Path, **changes: Any) -> pb.PushPolicyRequest:
    """The announcement of a policy whose manifest has other content."""
    tree = json.loads((directory / "manifest.json").read_text()) | changes
    sizes = dict.fromkeys(tree["files"], 3)
    return pb.PushPolicyRequest(policy=pb.PushedPolicy(manifest=json.dumps(tree).encode(), sizes=sizes))


def test_names_that_leave_the_directory_and_pieces_that_fit_nowhere_are_refused(
    shared: Running, policies: Path
) -> None:
    at, directory, sha = shared.address, policies / "blue/v000001", hashlib.sha256(b"abc").hexdigest()
    for name in ("../x", "/etc/x", "a/../../x", "."):
        assert refused(at, announced(directory, files={name: sha})) == "POLICY_BAD_MANIFEST"
    for name in ("manifest.json", "arrival.json", ".hidden", "a\0b", "x" * 300, "/".join("x" * 20)):
        assert refused(at, announced(directory, files={name: sha})) == "POLICY_UNSAFE_NAME"
    assert refused(at, announced(directory, files={"a": sha, "a/b": sha})) == "POLICY_UNSAFE_NAME"
    head = announced(directory, files={"a": sha})
    nothing = pb.PushPolicyRequest(policy=pb.PushedPolicy(manifest=head.policy.manifest))
    assert refused(at, nothing) == "POLICY_SIZES"
    assert refused(at) == "POLICY_MISSING"
    assert refused(at, head, head) == "POLICY_TWICE"

    def piece(data: bytes, offset: int = 0, digest: str = sha) -> pb.PushPolicyRequest:
        return pb.PushPolicyRequest(chunk=pb.PushedChunk(sha256=bytes.fromhex(digest), offset=offset, data=data))

    assert refused(at, piece(b"abc")) == "POLICY_MISSING"
    assert refused(at, head, piece(b"abc", digest="00" * 32)) == "CHUNK_OF_NO_FILE"
    assert refused(at, head, piece(b"c", offset=2)) == "CHUNK_NOT_NEXT"
    assert refused(at, head, piece(b"abcd")) == "CHUNK_TOO_LONG"
    assert refused(at, head, piece(b"abx")) == "PUSHED_FILE_CHANGED"
    assert push(at, head, piece(b"ab"), piece(b"c", offset=2)).uri
    with SamplerClient(at) as client:
        for uri in ("pushed://../../etc", "pushed://" + "0" * 63, "pushed://"):
            with pytest.raises(InvalidInput):
                client.stage(uri, 1)


@pytest.mark.parametrize(("bound", "error"), [("max_download_gib", PreconditionFailed), ("max_stored_gib", Overloaded)])
def test_what_is_pushed_is_bounded(bound: str, error: type[Exception], policies: Path, tmp_path: Path) -> None:
    settings = PolicySettings.model_validate({"download_dir": tmp_path, bound: 1e-9})

    async def push() -> None:
        async def requests() -> AsyncIterator[pb.PushPolicyRequest]:
            for message in Parcel(policies / "red/v000001").messages(()):
                yield message

        await ReceivedPolicies(settings, lambda path: False).receive(requests(), Pusher())

    with pytest.raises(error, match=bound):
        asyncio.run(push())


def test_a_file_that_changes_on_its_way_is_never_staged(shared: Running, policies: Path, tmp_path: Path) -> None:
    import shutil

    directory = Path(shutil.copytree(policies / "blue/v000001", tmp_path / "v000001"))
    weights = directory / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with SamplerClient(shared.address, run_id="blue") as client:
        held = any(info.version == 1 for info in client.policies().policies)
        if held:
            client.activate(0)
            client.retire(1)
        with pytest.raises(DataCorrupted):
            client.push(directory, timeout=5)
