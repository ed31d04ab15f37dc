"""From an error to a webhook: a service, the shipped rules, Debian's Prometheus and Alertmanager."""

import asyncio
from pathlib import Path

import pytest
from alert_path import Prometheus, hurried, missing
from chassis_probe import probing
from monitoring import ALERTS

pytestmark = pytest.mark.skipif(
    bool(missing()),
    reason=f"not installed: {', '.join(missing())} (Debian: apt-get install prometheus prometheus-alertmanager)",
)


def test_errors_of_a_service_arrive_at_the_webhook(tmp_path: Path) -> None:
    async def main() -> None:
        async with probing() as (_, client, at):
            labels = {"namespace": "ml", "release": "r", "component": "scorer", "pod": "scorer-0"}
            with Prometheus(tmp_path, {at.metrics: labels}, ALERTS) as prometheus:
                waiting = asyncio.ensure_future(
                    asyncio.to_thread(prometheus.alert, "SightlineGrpcHighErrorRate", seconds=60)
                )
                while not waiting.done():
                    await asyncio.gather(*(client.score("bug") for _ in range(5)), return_exceptions=True)
                    await asyncio.sleep(0.2)
                alert, _ = await waiting
                assert alert["labels"] == {
                    "alertname": "SightlineGrpcHighErrorRate",
                    "severity": "page",
                    "namespace": "ml",
                    "release": "r",
                    "component": "scorer",
                }
                assert "100% of the calls of the scorer of ml/r fail" in alert["annotations"]["summary"]
                assert alert["annotations"]["runbook_url"] == "docs/runbooks.md#sightlinegrpchigherrorrate"
                names = await asyncio.to_thread(prometheus.names)
                assert "sightline:grpc_server_errors:ratio_rate5m" in names
                firing = {one["labels"]["alertname"] for one in prometheus.webhook.alerts}
                # No other alert fires, except for back ends of services that other tests stopped in this process.
                # Metrics belong to the process: its other tests may have published policies that this sampler lacks.
                assert firing - {"SightlineBackendDown", "SightlinePolicyStale"} == {"SightlineGrpcHighErrorRate"}

    asyncio.run(main())


def test_only_times_are_shortened() -> None:
    for path in ALERTS:
        before, after = path.read_text().split(), hurried(path.read_text()).split()
        assert len(before) == len(after)
