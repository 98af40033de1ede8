"""Names of what the chart makes: as long as Kubernetes takes them, and no two alike, in a release and beside others."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from support.chart import NAMESPACE, REGISTRY, HelmError, Object, cases, objects, render, rendered

LONGEST_RELEASE = "a-release-with-the-longest-name-that-helm-will-accept"
LONG = "a-namespace-of-the-legal-department-in-a-very-big-organisation"
TENANTS = (f"{LONG}1", f"{LONG}2", f"{LONG}3")
CLUSTER_WIDE = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
LONGEST = {"FineTuneJob": 40, "StatefulSet": 52}
"""Kubernetes' and our own limits; 63 for every other kind."""


def made(*arguments: str, release: str = "cloister", namespace: str = NAMESPACE) -> list[Object]:
    """All objects, and those that `helm test` makes."""
    found = objects(render("--set", REGISTRY, *arguments, release=release, namespace=namespace))
    (plan,) = [json.loads(each["data"]["plan.json"]) for each in found if "plan.json" in each.get("data", {})]
    return [*found, plan["inputs"], plan["job"]]


def places(found: list[Object], namespace: str = NAMESPACE) -> Counter[tuple[str, str, str]]:
    """How often each kind, namespace and name occurs."""

    def place(each: Object) -> tuple[str, str, str]:
        metadata = each["metadata"]
        home = "" if each["kind"] in CLUSTER_WIDE else metadata.get("namespace", namespace)
        return each["kind"], home, metadata["name"]

    return Counter(place(each) for each in found)


def everything_of(tenants: tuple[str, ...]) -> list[str]:
    """Values that make each kind of object, with an operator and the store's keys for each tenant."""
    values = {
        "operator.namespaces": list(tenants),
        "store.tenants": [{"namespace": each, "write": [f"adapters/{each[-1]}/*"]} for each in tenants],
    }
    words = ["--set", "store.enabled=true,monitoring.scrape=ServiceMonitor,monitoring.rules.enabled=true"]
    return words + [word for name, value in values.items() for word in ("--set-json", f"{name}={json.dumps(value)}")]


def test_the_longest_names_are_short_enough_and_all_different() -> None:
    assert (len(LONGEST_RELEASE), {len(each) for each in TENANTS}) == (53, {63})
    found = made(*everything_of(TENANTS), release=LONGEST_RELEASE)
    assert [place for place, count in places(found).items() if count > 1] == []
    for kind, _, name in places(found):
        if kind != "CustomResourceDefinition":
            assert len(name) <= LONGEST.get(kind, 63), f"{kind} {name}"
    operators = [each for each in found if each["kind"] == "Deployment"]
    assert len({each["metadata"]["name"] for each in operators}) == len(TENANTS)


def test_every_binding_names_a_role_and_an_account_that_are_made() -> None:
    found = made(*everything_of(TENANTS), release=LONGEST_RELEASE)
    known = set(places(found))
    bindings = [each for each in found if each["kind"] in ("RoleBinding", "ClusterRoleBinding")]
    assert len(bindings) >= 2 * len(TENANTS) + 2
    for each in bindings:
        role, (subject,) = each["roleRef"], each["subjects"]
        home = each["metadata"]["namespace"] if role["kind"] == "Role" else ""
        assert (role["kind"], home, role["name"]) in known
        assert ("ServiceAccount", subject["namespace"], subject["name"]) in known
    for each in found:
        template: dict[str, Any] = each if each["kind"] == "Pod" else each.get("spec", {}).get("template", {})
        if account := template.get("spec", {}).get("serviceAccountName"):
            assert ("ServiceAccount", NAMESPACE, account) in known


def test_each_operator_has_the_rights_of_its_own_namespace_alone() -> None:
    found = made(*everything_of(TENANTS), release=LONGEST_RELEASE)
    watched = {}
    for each in found:
        if each["kind"] == "Deployment":
            pod = each["spec"]["template"]["spec"]
            (namespace,) = [one["value"] for one in pod["containers"][0]["env"] if one["name"] == "CLOISTER_NAMESPACE"]
            watched[pod["serviceAccountName"]] = {namespace}
    granted: dict[str, set[str]] = {}
    for each in found:
        if each["kind"] == "RoleBinding" and "annotations" not in each["metadata"]:  # no hook's
            granted.setdefault(each["subjects"][0]["name"], set()).add(each["metadata"]["namespace"])
    assert granted == watched
    assert len(watched) == len(TENANTS)


@pytest.mark.parametrize("ends", [("one", "two"), ("1", "2")])
def test_long_releases_that_begin_alike_share_nothing_but_the_crd(ends: tuple[str, str]) -> None:
    begin = LONGEST_RELEASE[: 53 - len(ends[0])]
    first, second = (places(made(*everything_of(("legal",)), release=f"{begin}{end}")) for end in ends)
    assert {name for _, _, name in first & second} == {"finetunejobs.cloister.dev"}


def test_hooks_of_a_release_of_the_same_name_in_another_namespace_are_not_those_of_this_one() -> None:
    """Helm refuses to install what another release has, but a hook it deletes and makes anew."""

    def hooks_elsewhere(home: str) -> Counter[tuple[str, str, str]]:
        hooks = [
            each
            for each in made(*everything_of(("legal",)), namespace=home)
            if "helm.sh/hook" in each["metadata"].get("annotations", {})
        ]
        return Counter({place: count for place, count in places(hooks, home).items() if place[1] != home})

    first, second = (hooks_elsewhere(home) for home in ("cloister-system", "trial"))
    assert len(first) == len(second) >= 6
    assert not first & second


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_no_object_is_rendered_twice(case: Any) -> None:
    assert [place for place, count in places(objects(rendered(case))).items() if count > 1] == []


@pytest.mark.parametrize("release", ["1cloister", "a.cloister"])
def test_a_release_whose_services_could_not_be_named_is_refused(release: str) -> None:
    with pytest.raises(HelmError, match=f"The release cannot be named {release}"):
        render("--set", REGISTRY, release=release)
