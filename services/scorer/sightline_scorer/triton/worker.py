"""`triton.mode: worker`: serves a model repository like Triton, with the parts of its protocol that we use.

    python -m sightline_scorer.triton.worker --repository DIR --address 127.0.0.1:PORT

For machines on which the wheel's tritonserver does not run. The towers are the same files (worker_tower.py). Each copy
has its own process, so that one that dies does not affect others; the next request restarts it. There is no dynamic
batching: the service makes the batches (tower.py).
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from sightline_scorer.triton import worker_tower
from sightline_scorer.triton.card import PARAMETER

_TYPES = {"UINT8": np.uint8, "INT32": np.int32}
_SPAWN = multiprocessing.get_context("spawn")


class TowerFailed(RuntimeError):
    """A tower's process returned an error, or has died."""


class TowerProcess:
    """One copy of a tower, in its own process."""

    def __init__(self, directory: Path, facts: str) -> None:
        self._directory = directory
        self._facts = facts
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def start(self) -> None:
        """Return when it is loaded. Raises TowerFailed that says why it cannot be."""
        ours, theirs = _SPAWN.Pipe()
        arguments = (theirs, str(self._directory), self._facts)
        self._process = _SPAWN.Process(target=worker_tower.run, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._pipe = ours
        self._answer("ready")

    def run(self, *values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Rows [B, D] of a batch, from the model's inputs in order. Raises TowerFailed."""
        if self._process is None or not self._process.is_alive():
            self.stop()
            self.start()
        assert self._pipe is not None
        try:
            self._pipe.send(values)
        except OSError as error:
            raise TowerFailed(f"the process of {self._directory.name} is not healthy: it has died") from error
        rows: npt.NDArray[np.float32] = self._answer("rows")
        return rows

    def stop(self) -> None:
        """End it."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None

    def _answer(self, expected: str) -> Any:
        assert self._pipe is not None
        try:
            kind, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise TowerFailed(f"the process of {self._directory.name} is not healthy: it has died") from error
        if kind != expected:
            raise TowerFailed(str(value))
        return value


class WorkerModel:
    """A model of the repository: its configuration, and its copies."""

    def __init__(self, directory: Path) -> None:
        self.config = text_format.Parse((directory / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        facts = self.config.parameters[PARAMETER].string_value
        count = max(1, self.config.instance_group[0].count)
        self._copies = [TowerProcess(directory, facts) for _ in range(count)]
        self._free: asyncio.Queue[TowerProcess] = asyncio.Queue()

    async def load(self) -> None:
        """Start the copies and warm them. Raises TowerFailed."""
        for copy in self._copies:
            await asyncio.to_thread(copy.start)
            for warmup in self.config.model_warmup:
                entries = [warmup.inputs[entry.name] for entry in self.config.input]
                kinds = [_TYPES[model_config_pb2.DataType.Name(entry.data_type)[len("TYPE_") :]] for entry in entries]
                zeros = [
                    np.zeros((warmup.batch_size, *entry.dims), kind) for entry, kind in zip(entries, kinds, strict=True)
                ]
                await asyncio.to_thread(copy.run, *zeros)
            self._free.put_nowait(copy)

    async def run(self, *values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Rows [B, D]. A caller that leaves while waiting frees its place; a started batch is finished."""
        copy = await self._free.get()
        work = asyncio.ensure_future(asyncio.to_thread(copy.run, *values))

        def ended(done: asyncio.Future[npt.NDArray[np.float32]]) -> None:
            if not done.cancelled():
                done.exception()  # no caller may be left to read it
            self._free.put_nowait(copy)

        work.add_done_callback(ended)
        return await asyncio.shield(work)

    def stop(self) -> None:
        """End the copies."""
        for copy in self._copies:
            copy.stop()


class Worker(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The Triton RPCs that `backend.py` calls; others return UNIMPLEMENTED."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._models: dict[str, WorkerModel] = {}

    async def load(self, name: str) -> None:
        """Load a model of the repository. Raises TowerFailed and OSError."""
        model = WorkerModel(self._repository / name)
        try:
            await model.load()
        except BaseException:
            model.stop()
            raise
        self._models[name] = model

    async def load_all(self) -> None:
        """Load all models of the repository in parallel. Raises TowerFailed that names the model."""

        async def one(name: str) -> None:
            try:
                await self.load(name)
            except (TowerFailed, OSError) as error:
                raise TowerFailed(f"failed to load '{name}': {error}") from error

        await asyncio.gather(*(one(path.parent.name) for path in sorted(self._repository.glob("*/config.pbtxt"))))

    def stop(self) -> None:
        """End all towers."""
        for model in self._models.values():
            model.stop()

    async def ServerReady(self, request: Any, context: Any) -> Any:
        """Always ready: it serves only after all models are loaded."""
        return service_pb2.ServerReadyResponse(ready=True)

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        """The configuration, with the model's card."""
        return service_pb2.ModelConfigResponse(config=(await self._find(request.name, context)).config)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        """Load a model, and answer when it is warm."""
        try:
            await self.load(request.model_name)
        except (TowerFailed, OSError) as error:
            await context.abort(grpc.StatusCode.INTERNAL, str(error))
        return service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        """Unload a model."""
        model = self._models.pop(request.model_name, None)
        if model is not None:
            await asyncio.to_thread(model.stop)
        return service_pb2.RepositoryModelUnloadResponse()

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """One batch."""
        model = await self._find(request.model_name, context)
        given = {
            entry.name: np.frombuffer(content, _TYPES[entry.datatype]).reshape(tuple(entry.shape))
            for entry, content in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        try:
            rows = await model.run(*(given[entry.name] for entry in model.config.input))
        except TowerFailed as error:
            await context.abort(grpc.StatusCode.INTERNAL, str(error))
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        response.outputs.add(name=model.config.output[0].name, datatype="FP32", shape=rows.shape)
        response.raw_output_contents.append(np.ascontiguousarray(rows, "<f4").tobytes())
        return response

    async def _find(self, name: str, context: Any) -> WorkerModel:
        model = self._models.get(name)
        if model is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model: '{name}' is not loaded")
        assert model is not None
        return model


async def serve(repository: Path, address: str) -> int:
    """Serve until SIGTERM; returns 1 if a model cannot be loaded or the port is taken."""
    worker = Worker(repository)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)])
    try:
        await worker.load_all()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(worker, server)
        server.add_insecure_port(address)
        await server.start()
        await stop.wait()
    except (TowerFailed, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        await server.stop(0)
        worker.stop()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve a repository from the command line."""
    parser = argparse.ArgumentParser(prog="python -m sightline_scorer.triton.worker", description=main.__doc__)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--address", required=True, help="host:port, on loopback")
    options = parser.parse_args(arguments)
    return asyncio.run(serve(options.repository, options.address))


if __name__ == "__main__":
    raise SystemExit(main())
