"""The chart's pods, run without a cluster by tools/chart_run, which lists the differences from a kubelet."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT

sys.path.insert(0, str(ROOT / "tools/chart_run"))


def namespaces() -> bool:
    """Whether this machine allows mount and network namespaces with rules, and the pods' user can read us."""
    if os.geteuid() or not all(map(shutil.which, ("unshare", "nsenter", "ip", "nft", "setpriv"))):
        return False
    if not all(one.stat().st_mode & 0o001 for one in (ROOT, *ROOT.parents) if one != Path("/root")):
        return False
    command = ["unshare", "-m", "-n", "nft", "add", "table", "inet", "probe"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


SLOW = ("single-gpu", "multi-node-vllm", "multi-node-tgi")


@pytest.mark.parametrize("profile", ["laptop", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_profile_closes_a_loop_of_two_iterations(profile: str, tmp_path: Path) -> None:
    pytest.importorskip("helm_python")
    if not namespaces():
        pytest.skip("no root, or no namespaces and nftables")
    run = [sys.executable, str(ROOT / "tools/chart_run/run.py"), profile, "--keep", str(tmp_path / "run")]
    command = ["timeout", "--signal=TERM", "1200", *run]  # by SIGTERM, which ends its pods
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    for said in ("policy 2 of run first-", "active, off by", "helm test: demo-sightline-test-sampler ended with 0"):
        assert said in done.stdout
    assert ("HTTP gateway: scored" in done.stdout) == (profile == "multi-node-vllm"), "the profile with tokens and TLS"


def test_policies_of_the_network_are_rules_of_nftables() -> None:
    from network import rules

    def policy(name: str, callers: list[str]) -> dict[str, object]:
        peers = [{"podSelector": {"matchLabels": {"app": caller}}} for caller in callers]
        ingress = [{"from": peers, "ports": [{"port": 80, "protocol": "TCP"}]}]
        selector = {"matchLabels": {"app": name}}
        return {"spec": {"podSelector": selector, "policyTypes": ["Ingress"], "ingress": ingress}}

    pods = [("10.0.0.1", {"app": "web"}), ("10.0.0.2", {"app": "caller"}), ("10.0.0.3", {"app": "other"})]
    text = rules([policy("web", ["caller"])], pods)
    assert "chain ingress0 {\nip saddr 10.0.0.2 tcp dport 80 return\ndrop\n}" in text
    assert "ip daddr 10.0.0.1 jump ingress0" in text
    assert "jump" not in text.replace("ip daddr 10.0.0.1 jump ingress0", ""), "nobody else is closed"
