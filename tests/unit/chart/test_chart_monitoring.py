"""Alerts, the dashboard and who may read metrics: their names are those that the operator and the store really have."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import REGISTRY as METRICS

import cloister_operator.metrics
from cluster.control_plane.access import wait_until
from support.chart import FOLDER, REGISTRY, Object, named, objects, render, rendered, settings_of
from support.seaweedfs import free_ports, weed_binary

NAME_LABEL = "app.kubernetes.io/name"
ALERTS = {
    "CloisterOperatorDown",
    "CloisterReconcileErrors",
    "CloisterJobNoProgress",
    "CloisterJobFailed",
    "CloisterQueueHeld",
    "CloisterStoreNearlyFull",
}
MONITORED = f"{REGISTRY},monitoring.scrape=PodMonitor,monitoring.rules.enabled=true"


def rules(found: list[Object]) -> dict[str, str]:
    """Expressions by the names of the alerts."""
    (group,) = named(found, "PrometheusRule", "cloister")["spec"]["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


def panels(found: list[Object]) -> list[str]:
    """The dashboard's expressions."""
    dashboard = json.loads(named(found, "ConfigMap", "cloister-dashboard")["data"]["cloister.json"])
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def used(prefix: str) -> set[str]:
    """Names of metrics in all expressions."""
    found = objects(rendered(FOLDER / "monitoring"))
    return {name for text in (*rules(found).values(), *panels(found)) for name in re.findall(rf"\b{prefix}_\w+", text)}


def test_there_are_the_alerts_that_the_pages_name() -> None:
    assert set(rules(objects(rendered(FOLDER / "monitoring")))) == ALERTS


def test_the_operator_has_every_metric_that_is_used() -> None:
    known = {sample for family in METRICS.collect() for sample in (family.name, f"{family.name}_total")}
    known |= {f"{name}_bucket" for name in known}
    assert len(used("cloister")) >= 7
    assert used("cloister") <= known


def test_labels_in_expressions_are_those_of_the_operators_metrics() -> None:
    """What Prometheus adds itself (`pod`, and `namespace` where a metric has none) is left out."""
    labels = {family.name: set(_labels(family.name)) for family in METRICS.collect()}
    found = objects(rendered(FOLDER / "monitoring"))
    by_name = re.compile(r"sum by \(([a-z, ]+)\) \((?:rate|increase)?\(?(cloister_\w+?)(?:_total|_bucket)?\b")
    seen = 0
    for text in (*rules(found).values(), *panels(found)):
        for names, metric in by_name.findall(text):
            assert set(names.split(", ")) - {"le"} <= labels[metric], text
            seen += 1
    assert seen >= 8


def _labels(metric: str) -> tuple[str, ...]:
    """Labels that the operator gives the metric."""
    own = vars(cloister_operator.metrics).values()
    (labels,) = [each._labelnames for each in own if getattr(each, "_name", None) == metric] or [()]
    return tuple(labels)


@pytest.fixture(scope="module")
def metrics_of_the_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What a store that is started with the chart's flags answers on its metrics port."""
    folder = tmp_path_factory.mktemp("weed")
    (folder / "identities.json").write_text('{"identities": []}')
    found = objects(render("--set", f"{REGISTRY},store.enabled=true,monitoring.scrape=PodMonitor"))
    (container,) = named(found, "StatefulSet", "cloister-store")["spec"]["template"]["spec"]["containers"]
    services = [f"{name}{kind}" for name in ("master", "volume", "filer") for kind in (".port", ".port.grpc")]
    metrics, s3, s3_grpc, *ports = free_ports(3 + len(services))
    here = {
        "-dir": folder,
        "-filer.localSocket": folder / "filer.sock",
        "-s3.localSocket": folder / "s3.sock",
        "-s3.config": folder / "identities.json",
        "-s3.ip.bind": "127.0.0.1",
        "-s3.port": s3,
        "-s3.port.grpc": s3_grpc,
        "-metricsPort": metrics,
        "-metricsIp": "127.0.0.1",
        **{f"-{name}": port for name, port in zip(services, ports, strict=True)},
    }
    kept = [flag for flag in container["args"] if flag.partition("=")[0] not in here]
    command = [weed_binary(), *kept, *(f"{flag}={value}" for flag, value in here.items())]

    def answer() -> str | None:
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics") as response:
            text: str = response.read().decode()
        return text if "SeaweedFS_volumeServer_resource{" in text else None

    with (
        (folder / "weed.log").open("w") as log,
        subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process,
    ):
        try:
            yield wait_until(answer, "the store's metrics")
        finally:
            process.kill()


def test_the_store_has_every_metric_that_is_used(metrics_of_the_store: str) -> None:
    (name,) = used("SeaweedFS")
    samples = re.findall(rf'^{name}{{name="[^"]+",type="(\w+)"}} (\S+)$', metrics_of_the_store, re.MULTILINE)
    sizes = {kind: float(value) for kind, value in samples}
    found = objects(rendered(FOLDER / "monitoring"))
    asked = {kind for text in (*rules(found).values(), *panels(found)) for kind in re.findall(r'type="(\w+)"', text)}
    assert asked == {"all", "avail", "used"}
    assert asked <= set(sizes)
    assert 0 < sizes["avail"] < sizes["all"]


@pytest.mark.parametrize(("namespaces", "operators"), [([], 1), (["legal", "hr", "sales"], 3)])
def test_the_alert_of_an_operator_that_is_down_counts_them_all(namespaces: list[str], operators: int) -> None:
    """absent() would be content with one of them."""
    found = objects(render("--set", MONITORED, "--set-json", f"operator.namespaces={json.dumps(namespaces)}"))
    own = '{namespace="cloister-system",pod=~"cloister-operator-.*"}'
    assert rules(found)["CloisterOperatorDown"] == f"(count(cloister_queue_depth{own}) or vector(0)) < {operators}"
    assert f"cloister_queue_depth{own} offset 15m" in rules(found)["CloisterJobFailed"]
    for each in [each for each in found if each["kind"] == "Deployment"]:
        assert re.fullmatch("cloister-operator-.*", f"{each['metadata']['name']}-5d8f-x")


@pytest.mark.parametrize("labels", ["null", '{"grafana_dashboard": null, "team": "platform"}'])
def test_the_dashboards_labels_are_the_administrators(labels: str) -> None:
    values = ["--set", f"{REGISTRY},monitoring.dashboard.enabled=true"]
    found = objects(render(*values, "--set-json", f"monitoring.dashboard.labels={labels}"))
    own = named(found, "ConfigMap", "cloister-dashboard")["metadata"]["labels"]
    assert own.get("team") == ("platform" if "team" in labels else None)
    assert "grafana_dashboard" not in own


def test_without_a_monitor_nobody_knows_which_pod_a_sample_is_of() -> None:
    annotated = MONITORED.replace("PodMonitor", "Annotations")
    expressions = rules(objects(render("--set", f"{annotated},store.enabled=true")))
    assert set(expressions) == ALERTS
    assert not [text for text in expressions.values() if "pod=" in text]


@pytest.mark.parametrize(
    "peer",
    [
        {"namespaceLabels": {"kubernetes.io/metadata.name": "monitoring"}, "podLabels": {NAME_LABEL: "prometheus"}},
        {"cidr": "10.30.0.0/24"},
        {"namespaceLabels": {"team": "platform"}, "podLabels": {"app": "prometheus"}},
    ],
    ids=["default", "cidr", "labels"],
)
def test_prometheus_is_let_in_from_one_place_everywhere(peer: dict[str, Any]) -> None:
    value = {} if NAME_LABEL in peer.get("podLabels", {}) else peer
    changes = ["--set", f"{REGISTRY},store.enabled=true,monitoring.scrape=Annotations"]
    found = objects(render(*changes, "--set-json", f"monitoring.prometheus={json.dumps(value)}"))
    let_in = settings_of(found).network.prometheus
    assert let_in is not None
    assert let_in.to_api() == {**peer, "ports": []}
    for name, port in (("cloister-operator", 9090), ("cloister-store", 9327)):
        rules = named(found, "NetworkPolicy", name)["spec"]["ingress"]
        (rule,) = [each for each in rules if each["ports"] == [{"port": port}]]
        assert rule["from"] == [written(peer)]


def written(peer: dict[str, Any]) -> dict[str, Any]:
    """As a NetworkPolicy writes a peer of the settings."""
    if "cidr" in peer:
        return {"ipBlock": {"cidr": peer["cidr"]}}
    selectors = {"namespaceSelector": "namespaceLabels", "podSelector": "podLabels"}
    return {selector: {"matchLabels": peer[labels]} for selector, labels in selectors.items()}
