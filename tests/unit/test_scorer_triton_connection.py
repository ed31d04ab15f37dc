"""The scorer's connection to Triton, if a name has several addresses."""

import asyncio
from collections import Counter
from typing import Any

import grpc
from sightline_scorer.triton.connection import connect
from tritonclient.grpc import service_pb2, service_pb2_grpc


class Ready(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Reports that it is ready, and counts the calls."""

    def __init__(self, name: str, asked: Counter[str]) -> None:
        self.name, self.asked = name, asked

    async def ServerReady(self, request: Any, context: Any) -> Any:
        self.asked[self.name] += 1
        return service_pb2.ServerReadyResponse(ready=True)


def test_all_tritons_behind_a_name_are_asked() -> None:
    async def run() -> None:
        asked: Counter[str] = Counter()
        servers, ports = [], []
        for name in ("one", "two"):
            server = grpc.aio.server()
            service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Ready(name, asked), server)
            ports.append(server.add_insecure_port("127.0.0.1:0"))
            await server.start()
            servers.append(server)
        async with connect("ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)) as client:
            for _ in range(200):
                assert await client.is_server_ready(client_timeout=5)
                if len(asked) == 2:
                    break
            assert set(asked) == {"one", "two"}
            await servers.pop().stop(None)
            for _ in range(5):
                assert await client.is_server_ready(client_timeout=5)
        await servers.pop().stop(None)

    asyncio.run(run())
