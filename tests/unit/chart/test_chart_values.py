"""What the chart says to values and clusters that cannot work, and that lint finds nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ruamel.yaml import YAML

from support.chart import CHART, REGISTRY, SERVED, HelmError, cases, helm, render

CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"
FREE = ("/settings", "/readiness/job", "/monitoring/prometheus")
"""Values that are empty until somebody fills them in."""


def refusal(*changes: str, served: tuple[str, ...] = SERVED) -> str:
    with pytest.raises(HelmError) as refused:
        render("--set", ",".join([REGISTRY, *changes]), served=served)
    return str(refused.value)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_lint_finds_nothing(case: object) -> None:
    said = helm("lint", str(CHART), "--strict", "--values", f"{case}/values.yaml")
    assert "0 chart(s) failed" in said
    assert "WARNING" not in said


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("imges.registry=x", "additional properties 'imges' not allowed"),
        ("images.trainer.digest=abc", "at '/images/trainer/digest': 'abc' does not match pattern"),
        ("operator.namespaces={Legal}", "at '/operator/namespaces/0': 'Legal' does not match pattern"),
        ("operator.namespaces=legal", "at '/operator/namespaces': got string, want array"),
        ("monitoring.scrape=yes", "at '/monitoring/scrape': value must be one of 'None', 'PodMonitor'"),
        ("settings.profiles.default.gpuMem=80Gi", "at '/settings/profiles/default': additional properties 'gpuMem'"),
        ("settings.limits.workers=many", "at '/settings/limits/workers': got string, want integer"),
        ("settings.network.dns[0].port=53", "at '/settings/network/dns/0': additional properties 'port' not allowed"),
        ("settings.allowed.egress={Closed}", "at '/settings/allowed/egress/0': value must be one of"),
        ("settings.storage.endpoint=s3.internal:9000", "at '/settings/storage/endpoint': 's3.internal:9000' does not"),
        ("store.buckets={My_Models}", "at '/store/buckets/0': 'My_Models' does not match pattern"),
        ("store.tenants[0].read={models}", "at '/store/tenants/0': missing property 'namespace'"),
        (
            "store.tenants[0].namespace=legal,store.tenants[0].read={models/a}",
            "at '/store/tenants/0/read/0': 'models/a'",
        ),
        ("readiness.uri=/models", "at '/readiness/uri': '/models' does not match pattern"),
        (
            "monitoring.prometheus.cidr=10.0.0.0/8,monitoring.prometheus.podLabels.app=prometheus",
            "at '/monitoring/prometheus/podLabels': 'not' failed",
        ),
        (
            "settings.storage.peers[0].cidr=10.0.0.0/8,settings.storage.peers[0].namespaceLabels.app=s3",
            "at '/settings/storage/peers/0/namespaceLabels': 'not' failed",
        ),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_with_its_place(change: str, sentence: str) -> None:
    assert sentence in refusal(change)


def test_a_store_without_buckets_is_refused() -> None:
    with pytest.raises(HelmError, match=r"at '/store/buckets': minItems: got 0, want 1"):
        render("--set", REGISTRY, "--set-json", "store.buckets=[]")


def test_no_port_of_the_api_server_is_refused() -> None:
    """A rule without ports opens them all."""
    with pytest.raises(HelmError, match=r"at '/networkPolicy/apiServer/ports': minItems: got 0, want 1"):
        render("--set", REGISTRY, "--set-json", "networkPolicy.apiServer.ports=[]")


def test_a_missing_registry_is_asked_for() -> None:
    with pytest.raises(HelmError, match=r"images\.registry is missing: name the registry that holds the images"):
        render()


def test_what_the_cluster_lacks_is_named_with_what_to_do() -> None:
    assert "KubeRay is not in this cluster: there is no ray.io/v1 RayJob. Install KubeRay 1.6" in refusal(served=())
    without_kueue = ("ray.io/v1/RayJob",)
    for change in ("prerequisites.kueue=true", "settings.auxiliaryQueueName=cpu"):
        assert "Kueue is not in this cluster" in refusal(change, served=without_kueue)
    for change in ("monitoring.scrape=PodMonitor", "monitoring.scrape=Annotations,monitoring.rules.enabled=true"):
        assert "The Prometheus Operator is not in this cluster" in refusal(change, served=without_kueue)
    assert render("--set", f"{REGISTRY},prerequisites.check=false,monitoring.scrape=PodMonitor", served=())


def test_values_that_contradict_each_other_are_refused() -> None:
    assert "choose one of them" in refusal("store.enabled=true", "settings.storage.endpoint=http://s3.internal")
    assert "choose one of operator.namespaces (legal, hr)" in refusal(
        "operator.namespaces={legal,hr}", "readiness.namespace=sales"
    )
    assert "CloisterOperatorDown would always fire" in refusal("monitoring.rules.enabled=true")
    assert "store.tenants needs keys that the chart makes" in refusal(
        "store.enabled=true", "store.existingSecret=mine", "store.tenants[0].namespace=legal"
    )


def test_a_tenant_is_named_once() -> None:
    assert "store.tenants names the namespace legal twice" in refusal(
        "store.enabled=true", "store.tenants[0].namespace=legal", "store.tenants[1].namespace=legal"
    )


def test_helm_test_has_the_secret_that_the_store_makes_for_its_namespace() -> None:
    tenant = ("store.enabled=true", "store.tenants[0].namespace=legal", "readiness.namespace=legal")
    assert "the namespace legal of helm test is one of store.tenants" in refusal(*tenant, "readiness.secretName=own")
    assert "the Secret with the store's own keys" in refusal(
        "store.enabled=true", "readiness.secretName=cloister-store"
    )
    assert render("--set", f"{REGISTRY},store.enabled=true,readiness.namespace=legal,readiness.secretName=own")
    assert render("--set", f"{REGISTRY},store.enabled=true,store.existingSecret=own,readiness.secretName=own")


def test_secrets_may_be_named_as_kubernetes_lets_them() -> None:
    found = render("--set", f"{REGISTRY},images.pullSecrets={{registry.internal}},readiness.secretName=trial.keys")
    assert found.count("- name: registry.internal\n") >= 2
    assert '"name": "trial.keys"' in found


def test_what_a_tenant_may_is_a_bucket_or_a_part_of_one() -> None:
    places = ["models", "models/*", "adapters/legal/v1.2/*"]
    tenant = json.dumps({"namespace": "legal", "read": places, "write": places})
    assert render("--set", f"{REGISTRY},store.enabled=true", "--set-json", f"store.tenants=[{tenant}]")


@pytest.mark.parametrize("value", ["caBundle", "settings.storage.ca"])
def test_an_authority_is_certificates_and_no_private_key(value: str) -> None:
    """Everybody who may read the release or a job's pod would have the key; the refusal does not repeat it."""
    for nothing in ("ca.crt", "\n"):
        assert f"{value} must be certificates in PEM form" in refusal(f"{value}={nothing}")
    for before in ("", f"{CERTIFICATE}\n"):
        said = refusal(f"{value}={before}-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE")
        assert f"{value} holds a private key" in said
        assert "MHcCAQEE" not in said
    assert render("--set", f"{REGISTRY},{value}={CERTIFICATE}")


def test_the_schema_knows_every_value_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = YAML(typ="safe").load(CHART / "values.yaml")
    assert set(schema["properties"]) - {"global"} == set(values)
    assert _known(values, schema, schema["definitions"]) == []


def _known(value: Any, schema: dict[str, Any], definitions: dict[str, Any], path: str = "") -> list[str]:
    """Paths at which values.yaml and the schema name different things; the settings and free maps are left out."""
    schema = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    if not isinstance(value, dict) or "properties" not in schema or path in FREE:
        return []
    optional = set() if path else {"global"}
    if path.endswith("/resources"):
        return []
    differences = [f"{path}/{name}" for name in set(value) ^ (set(schema["properties"]) - optional)]
    for name, part in value.items():
        differences += _known(part, schema["properties"].get(name, {}), definitions, f"{path}/{name}")
    return differences
