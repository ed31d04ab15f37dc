"""Rules for every object that the chart renders, in every profile."""

from collections.abc import Iterator
from typing import Any

import pytest
from charts import PROFILES, containers, find, notes, pods, profile, profile_objects, render, settings

Objects = list[dict[str, Any]]
OURS = ("scorer", "sampler", "trainer")


@pytest.fixture(params=PROFILES)
def objects(request: pytest.FixtureRequest) -> Objects:
    return profile_objects(request.param)


def each_container(objects: Objects) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, pod in pods(objects).items():
        for container in containers(pod):
            yield f"{name}/{container['name']}", container


def test_pods_fit_the_restricted_profile(objects: Objects) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    for name, pod in pods(objects).items():
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", name
        allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected"}
        for volume in spec["volumes"]:
            assert set(volume) - {"name"} <= allowed | {"secret", "image"}, (name, volume)
    for name, container in each_container(objects):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert security["readOnlyRootFilesystem"] is True, name
        assert "privileged" not in security, name


def test_images_are_pinned_and_resources_bounded(objects: Objects) -> None:
    for name, container in each_container(objects):
        image = container["image"]
        assert "@sha256:" in image or image.rsplit(":", 1)[1] not in ("", "latest"), name
        assert "memory" in container["resources"]["limits"], name
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name


def test_every_mount_has_its_volume_and_every_volume_a_mount(objects: Objects) -> None:
    for name, pod in pods(objects).items():
        mounted = {mount["name"] for c in containers(pod) for mount in c["volumeMounts"]}
        claimed = {
            template["metadata"]["name"]
            for item in objects
            if item["kind"] == "StatefulSet" and name == f"StatefulSet/{item['metadata']['name']}"
            for template in item["spec"].get("volumeClaimTemplates", [])
        }
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]} | claimed, name
        for container in containers(pod):
            paths = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert len(paths) == len(set(paths)), (name, paths)


def test_no_environment_variable_comes_twice(objects: Objects) -> None:
    for name, container in each_container(objects):
        names = [entry["name"] for entry in container["env"]]
        assert len(names) == len(set(names)), name


def test_our_services_are_probed_by_grpc_on_the_health_port(objects: Objects) -> None:
    for name, pod in pods(objects).items():
        for container in pod["spec"]["containers"]:
            if container["name"] in OURS:
                assert {port["name"] for port in container["ports"]} == {"grpc", "health", "metrics"}, name
                port = next(p["containerPort"] for p in container["ports"] if p["name"] == "health")
                for kind in ("startup", "readiness", "liveness"):
                    probe = container[f"{kind}Probe"]
                    assert probe["grpc"] == {"port": port, "service": kind}, name
                assert container["lifecycle"]["preStop"]["sleep"]["seconds"] > 0, name
            elif container["name"] in ("triton", "vllm", "tgi"):
                for kind in ("startup", "readiness", "liveness"):
                    assert f"{kind}Probe" in container, (name, kind)


def test_a_pod_lives_longer_than_its_drain(objects: Objects) -> None:
    for component in OURS:
        found = [pod for name, pod in pods(objects).items() if name.endswith(f"-{component}") and "test" not in name]
        for pod in found:
            container = next(c for c in pod["spec"]["containers"] if c["name"] == component)
            drain = settings(objects, component)["server"]["drain_seconds"]
            sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert pod["spec"]["terminationGracePeriodSeconds"] > drain + sleep, component


def test_a_rollout_needs_no_second_gpu(objects: Objects) -> None:
    for item in objects:
        if item["kind"] == "Deployment":
            limits = [c["resources"]["limits"] for c in item["spec"]["template"]["spec"]["containers"]]
            if any(key.startswith("nvidia.com/") for limit in limits for key in limit):
                strategy = item["spec"]["strategy"]
                surge = 0 if strategy["type"] == "Recreate" else strategy["rollingUpdate"]["maxSurge"]
                assert surge == 0, item["metadata"]["name"]


def test_an_engine_never_has_two_pods_behind_its_address() -> None:
    """They would hold other policies and answer by turns. TGI has one pod, and each vLLM pod has its own address."""
    engines = [
        (item, name)
        for name in PROFILES
        for item in profile_objects(name)
        if item["kind"] in ("Deployment", "StatefulSet")
        and item["metadata"]["labels"]["app.kubernetes.io/component"] == "engine"
    ]
    assert {item["kind"] for item, _ in engines} == {"Deployment", "StatefulSet"}
    for item, name in engines:
        if item["kind"] == "Deployment":
            assert (item["spec"]["replicas"], item["spec"]["strategy"]) == (1, {"type": "Recreate"})
        else:
            vllm = settings(profile_objects(name), "sampler")["engine"]["vllm"]
            assert item["spec"]["replicas"] == len(vllm["replicas"]) == 2


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (
            {"server": {"replicas": 1}},
            {"url": "http://demo-sightline-engine-0.demo-sightline-engine-replicas.align.svc:8000"},
        ),
        ({"deploy": False, "url": "http://vllm:8000"}, {"url": "http://vllm:8000"}),
        ({"deploy": False, "urls": ["http://a:1", "http://b:1"]}, {"replicas": ["http://a:1", "http://b:1"]}),
    ],
)
def test_the_sampler_is_told_where_its_engines_are(values: dict[str, Any], shown: dict[str, Any]) -> None:
    own = profile("multi-node-vllm")
    engine = own["sampler"]["engine"]
    server = {**engine["server"], **values.pop("server", {})}
    own["sampler"]["engine"] = {**engine, **values, "server": server}
    vllm = settings(render(own), "sampler")["engine"]["vllm"]
    assert {key: vllm[key] for key in ("url", "replicas") if key in vllm} == shown


def test_a_vllm_that_sleeps_is_started_for_it() -> None:
    own = profile("multi-node-vllm")
    own["sampler"]["engine"]["server"]["sleep"] = True
    objects = render(own)
    (container,) = find(objects, "StatefulSet", "-engine")["spec"]["template"]["spec"]["containers"]
    assert "--enable-sleep-mode" in container["args"]
    assert {"name": "VLLM_SERVER_DEV_MODE", "value": "1"} in container["env"]
    assert settings(objects, "sampler")["engine"]["vllm"]["sleep"] is True


def test_selectors_match_their_pods_and_know_no_user_label() -> None:
    values = {**profile("multi-node-vllm"), "global": {"labels": {"team": "vision"}}}
    values["scorer"] = {**values["scorer"], "podLabels": {"tier": "front"}}
    changed, plain = render(values), profile_objects("multi-node-vllm")
    for before, after in zip(plain, changed, strict=True):
        if after["kind"] in ("Deployment", "StatefulSet"):
            selector = after["spec"]["selector"]["matchLabels"]
            assert selector == before["spec"]["selector"]["matchLabels"], "a label of the user's would break an upgrade"
            assert selector.items() <= after["spec"]["template"]["metadata"]["labels"].items()
            assert after["metadata"]["labels"]["team"] == "vision"
    scorer = find(changed, "Deployment", "-scorer")
    assert scorer["spec"]["template"]["metadata"]["labels"]["tier"] == "front"


def test_services_select_pods_that_have_their_ports(objects: Objects) -> None:
    templates = pods(objects)
    for service in (item for item in objects if item["kind"] == "Service"):
        selector = service["spec"]["selector"].items()
        chosen = [pod for pod in templates.values() if selector <= pod["metadata"].get("labels", {}).items()]
        assert len(chosen) == 1, service["metadata"]["name"]
        names = {port["name"] for c in chosen[0]["spec"]["containers"] for port in c.get("ports", [])}
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in names, (service["metadata"]["name"], port)


def test_grpc_services_are_headless(objects: Objects) -> None:
    for service in (item for item in objects if item["kind"] == "Service"):
        if any(port.get("appProtocol") == "grpc" for port in service["spec"]["ports"]):
            assert service["spec"]["clusterIP"] == "None", service["metadata"]["name"]


def test_monitors_scrape_ports_that_exist(objects: Objects) -> None:
    services = [item for item in objects if item["kind"] == "Service"]
    for monitor in (item for item in objects if item["kind"] == "ServiceMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"].items()
        chosen = [service for service in services if selector <= service["metadata"]["labels"].items()]
        assert len(chosen) == 1, monitor["metadata"]["name"]
        ports = {port["name"] for port in chosen[0]["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports


def edges(objects: Objects) -> set[tuple[str, str, int]]:
    """Who may call whom: (from, to, port), allowed at both ends."""

    def peers(rule: dict[str, Any], key: str) -> Iterator[tuple[str, int]]:
        for peer in rule.get(key, []):
            if "podSelector" in peer and "namespaceSelector" not in peer:
                component = peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
                yield from ((component, port["port"]) for port in rule.get("ports", [{"port": 0}]))

    incoming, outgoing = set(), set()
    for policy in (item for item in objects if item["kind"] == "NetworkPolicy"):
        own = policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        incoming |= {(peer, own, port) for rule in policy["spec"]["ingress"] for peer, port in peers(rule, "from")}
        outgoing |= {(own, peer, port) for rule in policy["spec"]["egress"] for peer, port in peers(rule, "to")}
    tests = {edge for edge in incoming if edge[0] == "test"}
    assert incoming - tests == outgoing, "an edge that is open at one end only"
    return outgoing


@pytest.mark.parametrize(
    ("name", "graph"),
    [
        ("laptop", set()),
        ("single-gpu", {("trainer", "scorer", 50051), ("trainer", "sampler", 50051)}),
        (
            "multi-node-vllm",
            {
                ("trainer", "scorer", 50051),
                ("trainer", "sampler", 50051),
                ("scorer", "triton", 8001),
                ("sampler", "engine", 8000),
            },
        ),
        (
            "multi-node-tgi",
            {
                ("trainer", "scorer", 50051),
                ("trainer", "sampler", 50051),
                ("scorer", "triton", 8001),
                ("sampler", "engine", 8080),
                ("update", "update", 0),  # any port: the processes of one update
            },
        ),
        ("scorer-only", set()),
    ],
)
def test_network_policies_are_the_call_graph(name: str, graph: set[tuple[str, str, int]]) -> None:
    assert edges(profile_objects(name)) == graph


def test_other_teams_reach_the_scorer_only_where_they_are_named() -> None:
    policy = find(profile_objects("scorer-only"), "NetworkPolicy", "-scorer")
    callers = [rule for rule in policy["spec"]["ingress"] if rule["ports"] == [{"port": 50051, "protocol": "TCP"}]]
    named = [peer for rule in callers for peer in rule["from"] if "namespaceSelector" in peer]
    assert [peer["namespaceSelector"]["matchLabels"] for peer in named] == [{"sightline/reward-caller": "true"}]


def test_pods_have_an_identity_of_their_own_and_no_token(objects: Objects) -> None:
    accounts = {item["metadata"]["name"] for item in objects if item["kind"] == "ServiceAccount"}
    for name, pod in pods(objects).items():
        if name.startswith(("Deployment/", "StatefulSet/")):
            assert pod["spec"]["serviceAccountName"] in accounts, name
        token = pod["spec"]["automountServiceAccountToken"]
        allowed = {item["subjects"][0]["name"] for item in objects if item["kind"] == "RoleBinding"}
        assert token is (pod["spec"].get("serviceAccountName") in allowed), name


def test_roles_name_what_they_may_touch() -> None:
    objects = profile_objects("multi-node-tgi")
    restart = find(objects, "Role", "restarts-engine")["rules"]
    assert restart == [
        {
            "apiGroups": ["apps"],
            "resources": ["deployments"],
            "resourceNames": ["demo-sightline-engine"],
            "verbs": ["get", "patch"],
        }
    ]
    jobs = find(objects, "Role", "runs-updates")["rules"]
    assert [(rule["apiGroups"], rule["resources"]) for rule in jobs] == [(["batch"], ["jobs"])]


@pytest.mark.parametrize("allowed", [0, 1, "50%"])
def test_a_disruption_budget_stays_what_was_asked_for(allowed: int | str) -> None:
    budget = find(render({"scorer": {"pdb": {"maxUnavailable": allowed}}}), "PodDisruptionBudget", "-scorer")
    assert budget["spec"]["maxUnavailable"] == allowed
    assert "minAvailable" not in budget["spec"]


def test_extra_environment_is_merged_by_name() -> None:
    values = {
        "global": {"extraEnv": {"OMP_WAIT_POLICY": "ACTIVE", "A": "1"}},
        "scorer": {"extraEnv": {"A": {"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}}},
    }
    container = find(render(values), "Deployment", "-scorer")["spec"]["template"]["spec"]["containers"][0]
    env = {entry["name"]: entry for entry in container["env"]}
    assert env["OMP_WAIT_POLICY"]["value"] == "ACTIVE"
    assert env["A"] == {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}


def test_an_autoscaled_deployment_sets_no_replicas() -> None:
    for kind in ("hpa", "keda"):
        scale = {"kind": kind, "prometheus": "http://prometheus:9090"}
        objects = render({"sampler": {"autoscaling": scale}})
        assert "replicas" not in find(objects, "StatefulSet", "-sampler")["spec"]
    scaled = find(objects, "ScaledObject", "-sampler")["spec"]["triggers"][0]["metadata"]
    assert "sightline_trainer_pending_sample_requests" in scaled["query"]
    assert scaled["ignoreNullValues"] == "false"


def test_a_scorer_is_scaled_on_its_own_queue_whatever_the_release_is_called() -> None:
    objects = render({"scorer": {"autoscaling": {"kind": "keda", "prometheus": "http://prometheus:9090"}}}, name="blue")
    query = find(objects, "ScaledObject", "-scorer")["spec"]["triggers"][0]["metadata"]["query"]
    assert query == 'sum(sightline_queue_depth{namespace="align",release="blue",component="scorer"})'


@pytest.mark.parametrize("name", PROFILES)
def test_all_images_may_have_to_be_named_by_digest(name: str) -> None:
    values = {
        **profile(name),
        "gateway": {"enabled": True, "token": {"existingSecret": "t"}, "tls": {"existingSecret": "t"}},
    }
    values["global"] = {**values.get("global", {}), "requireDigests": True}
    with pytest.raises(Exception, match=r"image\.digest of .* is required, because global\.requireDigests is true"):
        render(values)
    digest = "sha256:" + "0" * 64
    for keys in (("scorer",), ("scorer", "triton"), ("sampler",), ("sampler", "engine", "server"), ("trainer",)):
        at = values
        for key in keys:
            at = at.setdefault(key, {})
        at.setdefault("image", {})["digest"] = digest
    for shown, container in each_container(render(values)):
        assert container["image"].endswith(digest), shown


def test_an_image_goes_by_digest_where_there_is_one() -> None:
    digest = "sha256:" + "0" * 64
    objects = render({"scorer": {"image": {"digest": digest, "registry": "registry.example"}}})
    container = find(objects, "Deployment", "-scorer")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == f"registry.example/sightline/scorer@{digest}"


def test_an_operator_is_told_what_is_left_to_set() -> None:
    told = notes({})
    wanted = [
        "trainer.data.existingClaim",
        "trainer.recipes",
        "sampler.gpu.count",
        "scorer.triton.gpu.count",
        "tls.mode",
    ]
    assert all(key in told for key in wanted)
    assert "networkPolicy.callers.scorer" in told
    assert "networkPolicy.egress.sampler" in notes({"networkPolicy": {"downloads": False}})
    assert "networkPolicy.egress" not in told
    alone = notes({"sampler": {"enabled": False}, "networkPolicy": {"prometheus": []}})
    assert "networkPolicy.egress.trainer" in alone
    assert "networkPolicy.prometheus" in alone
    assert "sampler:" not in alone
    whole = notes(profile("multi-node-vllm") | {"networkPolicy": {"callers": {"scorer": [{"podSelector": {}}]}}})
    assert whole.count("\n  - ") == 1
    assert "no recipe can be started by name" in whole
    values = profile("multi-node-tgi")
    values["trainer"]["recipes"] = {"a": {"dpo": {"launch": ["x"]}}, "b": {}}
    told = notes(values)
    assert "only with dpo.launch" in told
    assert "(missing in b)" in told
    assert "no tokens are required: set auth.existingSecret" in told
    assert "--sampler" not in notes(profile("scorer-only"))


def test_rules_are_of_their_own_release() -> None:
    """Two releases must not alert twice; tests/unit/test_alerts.py checks the rules with promtool."""
    objects = render({"monitoring": {"rules": {"enabled": True}}}, name="blue")
    for item in objects:
        if item["kind"] == "PrometheusRule":
            one = "namespace" if item["metadata"]["name"].endswith("nodes-rules") else "namespace, release"
            for rule in (rule for group in item["spec"]["groups"] for rule in group["rules"]):
                expression, _, scope = rule["expr"].rpartition("\n) and on ")
                assert expression.startswith("(\n")
                assert scope.startswith(f"({one}) label_replace(")
                assert '"namespace", "align"' in scope
                assert ('"release", "blue"' in scope) == (one != "namespace")


def test_names_stay_within_their_bound() -> None:
    for item in render({}, name="a-release-with-a-name-that-is-as-long-as-helm-allows"):
        assert len(item["metadata"]["name"]) <= 63


def test_tls_reaches_servers_and_clients() -> None:
    objects = profile_objects("multi-node-vllm")
    for component in OURS:
        tls = settings(objects, component)["server"]["tls"]
        assert tls["mode"] == "mutual"
        assert tls["client_ca"].endswith("ca.crt")
        certificate = find(objects, "Certificate", f"-{component}")
        assert f"demo-sightline-{component}.align.svc" in certificate["spec"]["dnsNames"]
    connections = settings(objects, "trainer")["connections"]
    assert connections["scorer"]["address"] == "dns:///demo-sightline-scorer.align.svc:50051"
    assert set(connections["sampler"]["tls"]) == {"root", "certificate", "key"}
    assert "tls" not in settings(profile_objects("laptop"), "scorer")["server"]


def test_who_asks_for_tokens_gives_them_to_its_own_callers(objects: Objects) -> None:
    asked = [pod for name, pod in pods(objects).items() if "tokens" in {v["name"] for v in pod["spec"]["volumes"]}]
    for name, pod in pods(objects).items():
        if asked and (name.startswith("Pod/") or name.endswith("-trainer")):
            mounted = {mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
            assert "/etc/sightline-token" in mounted, name


def test_runs_have_the_access_mode_that_was_asked_for() -> None:
    trainer = find(render({"trainer": {"runs": {"accessMode": "ReadWriteMany"}}}), "StatefulSet", "-trainer")
    assert trainer["spec"]["volumeClaimTemplates"][0]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_engines_download_to_a_directory_that_can_be_written() -> None:
    """TGI's image sets HF_HOME=/data, and the root file system is read-only."""
    pod = find(profile_objects("multi-node-tgi"), "Deployment", "-engine")["spec"]["template"]
    assert {"name": "HF_HOME", "value": "/tmp/hf"} in pod["spec"]["containers"][0]["env"]


def test_no_secret_is_in_a_value(objects: Objects) -> None:
    assert not [item["metadata"]["name"] for item in objects if item["kind"] == "Secret"]


def test_the_settings_are_those_of_the_services(objects: Objects) -> None:
    """The services' own settings accept what the chart writes."""
    from pydantic import ValidationError
    from sightline_sampler.settings import SamplerSettings
    from sightline_scorer.settings import ScorerSettings
    from sightline_trainer.settings import TrainerSettings

    known = {"scorer": ScorerSettings, "sampler": SamplerSettings, "trainer": TrainerSettings}
    present = [c for c in OURS if any(i["metadata"]["name"] == f"demo-sightline-{c}" for i in objects)]
    assert present
    for component in present:
        try:
            known[component].model_validate(settings(objects, component))
        except ValidationError as error:
            pytest.fail(f"{component}: {error}")


@pytest.mark.parametrize("name", [name for name in PROFILES if profile(name).get("sampler", {}).get("enabled", True)])
def test_no_two_samplers_are_ever_on_one_volume_of_policies(name: str) -> None:
    objects = profile_objects(name)
    (sampler,) = (
        item
        for item in objects
        if item["kind"] in ("Deployment", "StatefulSet") and item["metadata"]["name"].endswith("-sampler")
    )
    own = [one["metadata"]["name"] for one in sampler["spec"].get("volumeClaimTemplates", [])]
    if sampler["kind"] == "StatefulSet":
        assert own == ["policies"]
    else:
        assert (sampler["spec"]["replicas"], sampler["spec"]["strategy"]) == (1, {"type": "Recreate"})
    trainer = pods(objects)[f"StatefulSet/{sampler['metadata']['name'].removesuffix('sampler')}trainer"]
    assert "policies" not in {volume["name"] for volume in trainer["spec"]["volumes"]}, "policies are pushed"


def test_two_samplers_on_one_volume_are_refused() -> None:
    values = profile("multi-node-vllm")
    values["sampler"] = {**values["sampler"], "replicas": 2}
    with pytest.raises(Exception, match="two samplers cannot write to one volume of policies"):
        render(values)


def test_one_gpu_is_enough_for_single_gpu() -> None:
    """Its three pods request slices of it."""
    limits = [c["resources"]["limits"] for _, c in each_container(profile_objects("single-gpu"))]
    assert sum("nvidia.com/gpu" in limit for limit in limits) == 0
    assert sum("nvidia.com/gpu.shared" in limit for limit in limits) == 3


def test_scratch_is_bounded_and_set_aside(objects: Objects) -> None:
    for name, pod in pods(objects).items():
        for volume in pod["spec"]["volumes"]:
            assert "emptyDir" not in volume or volume["emptyDir"].get("sizeLimit"), (name, volume)
    for name, container in each_container(objects):
        if "-test-" not in name:
            assert "ephemeral-storage" in container["resources"]["requests"], name


def test_what_is_downloaded_can_be_reached_and_nothing_else() -> None:
    def open_to_the_world(objects: Objects) -> set[str]:
        return {
            item["metadata"]["name"].rpartition("-")[2]
            for item in objects
            if item["kind"] == "NetworkPolicy"
            for rule in item["spec"]["egress"]
            for peer in rule.get("to", [])
            if "ipBlock" in peer
        }

    assert open_to_the_world(render({})) == {"scorer", "sampler", "trainer"}, "the defaults name models of a hub"
    assert open_to_the_world(render({"networkPolicy": {"downloads": False}})) == set()
    assert open_to_the_world(profile_objects("single-gpu")) == {"scorer"}
    assert open_to_the_world(profile_objects("multi-node-vllm")) == set()


def test_the_gateway_reaches_the_scorer_and_is_reached_by_whom_the_operator_names() -> None:
    peers = [{"namespaceSelector": {"matchLabels": {"team": "search"}}}]
    collector = {"ports": [{"port": 4318, "protocol": "TCP"}]}
    policy_values = {"callers": {"gateway": peers}, "egress": {"gateway": [collector]}}
    objects = render({"gateway": {"enabled": True}, "networkPolicy": policy_values})
    assert ("gateway", "scorer", 50051) in edges(objects)
    policy = find(objects, "NetworkPolicy", "-gateway")["spec"]
    assert policy["ingress"] == [{"from": peers, "ports": [{"port": 8080, "protocol": "TCP"}]}]
    assert policy["egress"][-1] == collector
    told = settings(objects, "gateway")
    assert told["scorer"]["target"] == "dns:///demo-sightline-scorer.align.svc:50051"
    assert told["http"]["port"] == 8080
    test_pods_fit_the_restricted_profile(objects)
    test_images_are_pinned_and_resources_bounded(objects)
    test_every_mount_has_its_volume_and_every_volume_a_mount(objects)
    with pytest.raises(Exception, match=r"gateway\.token\.existingSecret is required"):
        render(
            {
                "gateway": {"enabled": True},
                "auth": {"existingSecret": "t"},
                "tests": {"token": {"existingSecret": "t"}},
                "trainer": {"token": {"existingSecret": "t"}},
                "tls": {"mode": "server", "certManager": {"issuerRef": {"name": "ca"}}},
            }
        )


def test_the_gateways_settings_are_those_that_it_reads() -> None:
    from sightline_scorer.gateway.settings import GatewaySettings

    values = {
        **profile("multi-node-vllm"),
        "gateway": {
            "enabled": True,
            "token": {"existingSecret": "t"},
            "callerToken": {"existingSecret": "c"},
            "tls": {"existingSecret": "own"},
        },
    }
    GatewaySettings.model_validate(settings(render(values), "gateway"))
