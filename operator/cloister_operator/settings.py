"""The administrator's settings: what jobs may ask for, and what the cluster gives them."""

from __future__ import annotations

from cloister_api.base import ApiModel, Duration, Name, Port, Quantity, ShortText, Url
from cloister_api.run import LicenseEvidence
from cloister_api.spec_cluster import Egress, LabelValue, ResourceList, Resources, Toleration
from cloister_api.status import Count

Labels = dict[str, LabelValue]


class Profile(ApiModel):
    """What a worker pod may use. Jobs choose a profile by name; nothing else can widen a pod."""

    node_selector: Labels = {}
    """Labels that the node must have."""
    tolerations: list[Toleration] = []
    """Taints that the worker tolerates."""
    runtime_class_name: Name | None = None
    """RuntimeClass of the worker. Absent: the cluster's default."""
    scheduler_name: Name | None = None
    """Scheduler of the worker. Absent: the cluster's default."""
    labels: Labels = {}
    """Labels of the worker pods."""
    annotations: dict[str, str] = {}
    """Annotations of the worker pods, for example of a second network."""
    extra_resources: ResourceList = {}
    """What the worker takes besides CPU, memory and GPUs, for example {rdma/hca: 1}."""
    env: dict[str, str] = {}
    """Environment of the worker, for example NCCL_IB_HCA."""
    gpu_resource: ShortText = "nvidia.com/gpu"
    """The resource that stands for one GPU."""
    gpu_memory: Quantity | None = None
    """Memory of one GPU, for the memory plan. Absent: only what the job says."""
    shared_memory: Quantity = "8Gi"
    """Size of /dev/shm, counted in the worker's memory."""
    resources: Resources | None = None
    """Requests and limits of a worker, where the job names none. Absent: none."""


class Images(ApiModel):
    """What the pods run."""

    trainer: ShortText
    """The trainer's image, with its digest."""
    pull_secrets: list[Name] = []
    """Secrets with registry credentials, in each job's namespace."""


class Limits(ApiModel):
    """The largest job."""

    workers: Count = 64
    """Most workers of one job."""
    gpus: Count = 512
    """Most GPUs of one job."""


class Allowed(ApiModel):
    """What a job may name. Only what is listed is allowed; `*` allows every name."""

    uri_prefixes: list[ShortText] = ["s3://", "pvc://"]
    """Prefixes of the URIs that a job may read and write; {namespace} stands for the job's own."""
    secret_names: list[ShortText] = ["cloister-storage"]
    """Secrets that a job may name."""
    claims: list[ShortText] = []
    """PersistentVolumeClaims that a job may name."""
    priority_classes: list[ShortText] = []
    """Priority classes that a job may name."""
    tolerations: list[Toleration] = []
    """Tolerations that a job may have, exactly as they stand here."""
    egress: list[Egress] = [Egress.RESTRICTED]
    """Egress modes."""
    licenses: list[ShortText] = []
    """Licence identifiers that may be trained on; empty allows all."""
    license_evidence: LicenseEvidence = LicenseEvidence.ANY
    """Found: a licence that is only stated in the job is refused."""


class Peer(ApiModel):
    """Where a flow may go to or come from."""

    cidr: ShortText | None = None
    """A block of addresses; or use labels."""
    namespace_labels: Labels | None = None
    """Labels of the peer's namespace. Absent with podLabels: the job's own."""
    pod_labels: Labels | None = None
    """Labels of the peer's pods. Absent: all pods of the namespace."""
    ports: list[Port] = []
    """Ports of the pods behind a Service, not the Service's own."""


class StorageSettings(ApiModel):
    """The object store."""

    endpoint: Url | None = None
    """URL of the S3 endpoint. Absent: AWS's own."""
    region: ShortText | None = None
    """Region. Absent: us-east-1."""
    ca: str | None = None
    """Certificates (PEM) of the authority that signs the endpoint's. Absent: the image's own authorities."""
    path_style: bool = True
    """Address buckets by path, not by host name."""
    run_uri: ShortText | None = "s3://cloister-runs/{namespace}"
    """Where run folders lie; {namespace} stands for the job's own."""
    peers: list[Peer] = []
    """Where the store listens, for the jobs' network policies."""


class NetworkSettings(ApiModel):
    """Flows of every job, and the proof that there are no others."""

    dns: list[Peer] = [
        Peer(
            namespace_labels={"kubernetes.io/metadata.name": "kube-system"},
            pod_labels={"k8s-app": "kube-dns"},
            ports=[53],
        )
    ]
    """Where names are resolved; the ports are opened for UDP and TCP."""
    operator: Peer = Peer(
        namespace_labels={"kubernetes.io/metadata.name": "cloister-system"},
        pod_labels={"app.kubernetes.io/name": "cloister-operator"},
        ports=[8444],
    )
    """The operator's pods and the port of its control listener."""
    kuberay: Peer = Peer(namespace_labels={}, pod_labels={"app.kubernetes.io/name": "kuberay-operator"})
    """KubeRay's operator, which asks the Ray dashboard for a run's state."""
    prometheus: Peer | None = None
    """Who may read Ray's metrics. Absent: nobody."""
    control_address: ShortText | None = None
    """host:port of the operator's control listener, as pods dial it."""
    canary_address: ShortText | None = None
    """host:port that no policy allows, as pods dial it."""
    require_enforced_egress: bool = True
    """Fail jobs where it is not shown that egress is restricted."""


class StepResources(ApiModel):
    """Requests and limits of the pods without GPUs, where a job names none."""

    prepare: Resources = Resources(requests={"cpu": 2, "memory": "8Gi"}, limits={"memory": "8Gi"})
    """The pod that checks and tokenises."""
    head: Resources = Resources(requests={"cpu": 1, "memory": "4Gi"}, limits={"memory": "4Gi"})
    """The Ray head, which drives the run."""
    submitter: Resources = Resources(requests={"cpu": "100m", "memory": "512Mi"}, limits={"memory": "512Mi"})
    """The pod that hands the run to Ray."""
    publish: Resources = Resources(requests={"cpu": 1, "memory": "4Gi"}, limits={"memory": "4Gi"})
    """The pod that verifies and publishes."""


class Patience(ApiModel):
    """How long a job waits for what may come right by itself."""

    storage: Duration = "24h"
    """For an object store that does not answer."""
    pods: Duration = "10m"
    """For an image, a Secret, a claim or the admission of a pod."""
    job_status: Duration = "10m"
    """For a word of Ray, once its head is ready."""
    control: Duration = "5m"
    """For the operator's control port, which every process of a job dials before it reads data."""


class LabelSettings(ApiModel):
    """Labels of the children."""

    pods: Labels = {}
    """Labels of every pod."""
    propagate: list[ShortText] = []
    """Labels that children take from their FineTuneJob."""


class Settings(ApiModel):
    """Everything that the administrator decides."""

    images: Images
    """What the pods run."""
    profiles: dict[str, Profile] = {"default": Profile()}
    """Worker profiles by name."""
    limits: Limits = Limits()
    """The largest job."""
    allowed: Allowed = Allowed()
    """What a job may name."""
    storage: StorageSettings = StorageSettings()
    """The object store."""
    network: NetworkSettings = NetworkSettings()
    """Flows of every job, and the proof that there are no others."""
    resources: StepResources = StepResources()
    """Resources of the pods without GPUs."""
    labels: LabelSettings = LabelSettings()
    """Labels of the children."""
    patience: Patience = Patience()
    """How long a job waits."""
    auxiliary_queue_name: Name | None = None
    """Kueue's queue for prepare and publish. Absent: they ask for no quota."""
