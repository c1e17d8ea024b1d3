"""infra/ by the schemas of those who read it: Ray's own, KubeRay's and Kubernetes', hadolint, MLflow's and ours.

The folder NVG_KUBERAY_CRDS holds KubeRay's resource definitions (ray-operator/config/crd/bases of its repository).
"""

import copy
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml

from nvg import config as configuration
from nvg.errors import ConfigError
from tests.support import kustomize

ROOT = Path(__file__).parents[1]
INFRA = ROOT / "infra"
OVERLAYS = ("cpu", "gpu")
HISTORY = "components: [../../components/history]"  # the line that docs/guides/infrastructure.md has an operator add
CRDS = os.environ.get("NVG_KUBERAY_CRDS")
RAY_KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}


# ---- the image ----


def lint(path):
    program = Path(sys.executable).with_name("hadolint")
    return subprocess.run([program, "--no-color", path], capture_output=True, text=True)


def test_the_dockerfile_has_no_faults_for_hadolint(tmp_path):
    done = lint(INFRA / "Dockerfile")
    assert done.returncode == 0, done.stdout
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN apt-get install curl\n")
    assert "DL3006" in lint(tmp_path / "Dockerfile").stdout


def test_the_image_holds_what_it_says_and_ray_s_own_python():
    text = (INFRA / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in line.split()), line
    pyproject = (ROOT / "pyproject.toml").read_text()
    torch = subprocess.run(
        ["sed", "-n", re.search(r"sed -n '(.*?)'", text).group(1), ROOT / "pyproject.toml"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert torch.strip() in pyproject and torch.startswith("torch==")
    for extra in re.search(r"'\.\[(.*?)\]'", text).group(1).split(","):
        assert re.search(rf"^{extra} = \[", pyproject, re.MULTILINE), extra


# ---- ray up ----


def prepared(content):
    """As `ray up` reads it: with the provider's defaults, by its schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(content))
    validate_config(config)
    return config


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_up_takes_the_cluster_files(cloud):
    content = yaml.safe_load((INFRA / "ray" / f"{cloud}.yaml").read_text())
    config = prepared(content)
    types = config["available_node_types"]
    assert {name: (kind["min_workers"], kind["max_workers"] > 0) for name, kind in types.items() if name != "head"} == {
        "readers": (0, True),
        "gpus": (0, True),
    }
    assert config["docker"]["image"] and config["head_node_type"] == "head"
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        starts = [command for command in commands if "ray start" in command]
        assert starts and all("RAY_AUTH_MODE=token" in command for command in starts)
        assert any("auth_token" in path for path in config["file_mounts"])
    for fault in ({"max_worker": 3}, {"upscaling_speed": "fast"}, {"head_node_type": "tail"}):
        with pytest.raises((jsonschema.ValidationError, ValueError)):
            prepared({**content, **fault})


# ---- Kubernetes ----


def with_history(overlay, folder):
    """An overlay in whose kustomization.yaml somebody has added the line of docs/guides/infrastructure.md."""
    shutil.copytree(INFRA / "kubernetes", folder, dirs_exist_ok=True)
    with (folder / "overlays" / overlay / "kustomization.yaml").open("a") as file:
        file.write(HISTORY + "\n")
    return folder / "overlays" / overlay


@pytest.fixture(params=[*OVERLAYS, *(f"{overlay} with history" for overlay in OVERLAYS)])
def overlay(request, tmp_path):
    """The folder of an overlay, as it is or with the component history."""
    name, *history = request.param.split(" with ")
    return with_history(name, tmp_path) if history else INFRA / "kubernetes" / "overlays" / name


@pytest.fixture
def manifests(overlay):
    return kustomize.render(overlay)


@pytest.fixture(params=OVERLAYS)
def kept(request, tmp_path):
    """The manifests with the component history."""
    return kustomize.render(with_history(request.param, tmp_path))


def one(manifests, kind, name=None):
    """The one manifest of a kind, or of a kind and name."""
    (found,) = [item for item in manifests if item["kind"] == kind and name in (None, item["metadata"]["name"])]
    return found


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
def test_kubectl_renders_the_overlays_as_the_tests_reader_does(overlay, manifests):
    done = subprocess.run(["kubectl", "kustomize", overlay], capture_output=True, text=True, check=True)
    theirs = {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(done.stdout)}
    assert theirs == {(item["kind"], item["metadata"]["name"]): item for item in manifests}


def strict(schema):
    """A custom resource's schema as the API server's strict validation takes it: unknown fields are errors."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
        result["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    closed = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if closed and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


@functools.cache
def definition(kind, version):
    """What checks a custom resource of a kind."""
    text = (Path(CRDS) / f"ray.io_{RAY_KINDS[kind]}.yaml").read_text()
    versions = yaml.load(text, yaml.CSafeLoader)["spec"]["versions"]  # 1.4 MB: the plain loader takes a minute
    (schema,) = [strict(one["schema"]["openAPIV3Schema"]) for one in versions if version == f"ray.io/{one['name']}"]
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft7Validator(schema)


def custom(item):
    """Check a custom resource. Raises jsonschema.ValidationError."""
    definition(item["kind"], item["apiVersion"]).validate(item)


@pytest.mark.skipif(CRDS is None, reason="NVG_KUBERAY_CRDS names no folder with KubeRay's definitions")
def test_kuberay_takes_the_cluster_the_job_and_the_service(manifests):
    ours = [item for item in manifests if item["kind"] in RAY_KINDS]
    assert {item["kind"] for item in ours} == RAY_KINDS.keys()
    for item in ours:
        custom(item)
        for fault in ({"rayVersions": "1"}, {"suspend": "no"}):
            with pytest.raises(jsonschema.ValidationError):
                custom({**item, "spec": {**item["spec"], **fault}})


@pytest.mark.skipif(CRDS is None, reason="NVG_KUBERAY_CRDS names no folder with KubeRay's definitions")
@pytest.mark.parametrize(
    "path, value",
    [
        ("deletionStrategy/deletionRules/0/policy", "DeleteAll"),
        ("deletionStrategy/deletionRules/0/condition/jobStatus", "STOPPED"),
        ("deletionStrategy/deletionRules/1/condition/jobDeploymentStatus", "Complete"),
        ("deletionStrategy/deletionRules/1/condition/ttlSeconds", -1),
        ("rayClusterSpec/historyServerOptions/collectorOptions/envFrom", []),
        ("rayClusterSpec/historyServerOptions/server", {}),
    ],
)
def test_kuberay_refuses_other_rules_of_deletion_and_other_options_of_the_collector(kept, path, value):
    job = one(kept, "RayJob")
    custom(job)
    kustomize.apply(job, "add", f"/spec/{path}", value)
    with pytest.raises(jsonschema.ValidationError):
        custom(job)


def test_kubernetes_takes_the_other_manifests(manifests):
    others = [item for item in manifests if item["kind"] not in RAY_KINDS]
    kinds = {item["kind"] for item in others}
    history = {"ServiceAccount", "Role", "RoleBinding"}
    assert kinds - history == {"Namespace", "ConfigMap", "Deployment", "Service", "StatefulSet"}
    assert kinds & history in (set(), history)
    for item in others:
        kubernetes_validate.validate(item, "1.33", strict=True)
    wrong = copy.deepcopy(next(item for item in others if item["kind"] == "Deployment"))
    wrong["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.33", strict=True)


def clusters(manifests):
    paths = {"RayCluster": [], "RayJob": ["rayClusterSpec"], "RayService": ["rayClusterConfig"]}
    for item in manifests:
        if item["kind"] in paths:
            spec = item["spec"]
            for part in paths[item["kind"]]:
                spec = spec[part]
            yield item["kind"], spec


def test_clusters_scale_ask_for_a_token_and_run_this_ray(manifests):
    for kind, spec in clusters(manifests):
        assert spec["rayVersion"] == ray.__version__, kind
        assert spec["authOptions"] == {"mode": "token"} and spec["enableInTreeAutoscaling"] is True
        (workers,) = spec["workerGroupSpecs"]
        assert workers["minReplicas"] <= workers["replicas"] < workers["maxReplicas"]


def test_only_the_gpu_overlay_asks_for_gpus():
    for name, gpus in (("cpu", None), ("gpu", "1")):
        rendered = kustomize.render(INFRA / "kubernetes" / "overlays" / name)
        for _, spec in clusters(rendered):
            pod = spec["workerGroupSpecs"][0]["template"]["spec"]
            assert pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") == gpus
            assert ("tolerations" in pod) == (gpus is not None)


def test_every_image_is_ours_or_pinned_and_every_secret_comes_from_outside(manifests):
    text = yaml.dump(manifests)
    history = {f"quay.io/kuberay/{name}:v1.7.1" for name in ("collector", "historyserver")}
    images = {"REGISTRY/nvg:cpu", "REGISTRY/nvg:cuda", "postgres:15.18"} | history
    assert set(re.findall(r"image: (\S+)", text)) <= images
    assert "Secret" not in {item["kind"] for item in manifests}
    assert set(re.findall(r"secretRef:\s+name: (\S+)", text)) == {"nvg-store", "nvg-postgres", "nvg-keys"}
    assert {reference["name"] for reference in references(manifests, "secretKeyRef")} <= {"nvg-store"}
    (values,) = [item["data"] for item in manifests if item["kind"] == "ConfigMap"]
    for reference in references(manifests, "configMapKeyRef"):
        assert reference["name"] == "nvg" and reference["key"] in values


def references(content, kind):
    """The values of every key of this name, at any depth."""
    if isinstance(content, list):
        return [found for value in content for found in references(value, kind)]
    if not isinstance(content, dict):
        return []
    return [found for key, value in content.items() for found in ([value] if key == kind else references(value, kind))]


def test_the_job_and_the_service_are_ones_that_our_code_takes(manifests):
    (job,) = [item for item in manifests if item["kind"] == "RayJob"]
    (values,) = [item["data"] for item in manifests if item["kind"] == "ConfigMap"]
    words = shlex.split(re.sub(r"\$(\w+)", lambda match: values[match.group(1)], job["spec"]["entrypoint"]))
    assert words[:2] == ["python", "pipelines/run.py"] and words[2] == "--config"
    config = configuration.load(ROOT / words[3], words[4:])
    assert config.cluster.min_workers < config.cluster.num_workers and config.output.startswith("s3://")
    (service,) = [item for item in manifests if item["kind"] == "RayService"]
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert application["import_path"] == "pipelines.serve:build"
    served = configuration.serve_config(application["args"])
    assert served.max_replicas > served.min_replicas and served.model == "models:/nvg@champion"
    with pytest.raises(ConfigError):
        configuration.serve_config({**application["args"], "replicas": 3})


def refused_deletion(spec):
    """Why the operator refuses a RayJob's deletion rules, beyond what the schema says; None if it does not."""
    rules = spec["deletionStrategy"]["deletionRules"]
    if spec.get("shutdownAfterJobFinishes") or spec.get("ttlSecondsAfterFinished"):
        return "rules beside shutdownAfterJobFinishes"
    if spec["rayClusterSpec"]["enableInTreeAutoscaling"] and any(rule["policy"] == "DeleteWorkers" for rule in rules):
        return "workers deleted beside the autoscaler"
    conditions = [rule["condition"] for rule in rules]
    if any(("jobStatus" in condition) == ("jobDeploymentStatus" in condition) for condition in conditions):
        return "not one status"
    states = [(rule["policy"], rule["condition"].keys() - {"ttlSeconds"}) for rule in rules]
    return "twice the same" if any(states.count(state) > 1 for state in states) else None


def test_the_job_s_cluster_goes_after_success_and_stays_a_while_after_a_failure(manifests):
    spec = one(manifests, "RayJob")["spec"]
    assert refused_deletion(spec) is None
    seconds = {}
    for rule in spec["deletionStrategy"]["deletionRules"]:
        condition = dict(rule["condition"])
        delay = condition.pop("ttlSeconds")
        ((_, state),) = condition.items()
        seconds[rule["policy"], state] = delay
    assert seconds.keys() == {("DeleteCluster", "SUCCEEDED"), ("DeleteCluster", "Failed")}
    assert 60 <= seconds["DeleteCluster", "SUCCEEDED"] < seconds["DeleteCluster", "Failed"]
    rules = spec["deletionStrategy"]["deletionRules"]
    assert refused_deletion({**spec, "shutdownAfterJobFinishes": True})
    for fault in (
        {**rules[0], "policy": "DeleteWorkers"},
        {**rules[0], "condition": {"ttlSeconds": 60}},
        {**rules[0], "condition": {**rules[0]["condition"], **rules[1]["condition"]}},
        rules[0],
    ):
        assert refused_deletion({**spec, "deletionStrategy": {"deletionRules": [*rules, fault]}}), fault


# ---- KubeRay's History Server ----

OPERATOR_S_OWN = {  # the operator sets these variables of a collector and refuses them from us
    "POD_IP",
    "FQ_RAY_IP",
    "RAY_CLUSTER_NAME",
    "RAY_CLUSTER_NAMESPACE",
    "RAY_ROLE",
    "OWNER_KIND",
    "OWNER_NAME",
    "EVENTS_PORT",
}


def test_collectors_write_where_the_history_server_reads(kept):
    spec = one(kept, "RayJob")["spec"]["rayClusterSpec"]
    collector = spec["historyServerOptions"]["collectorOptions"]
    (server,) = one(kept, "Deployment", "historyserver")["spec"]["template"]["spec"]["containers"]
    assert collector["env"] == server["env"]
    assert collector["image"].rpartition(":")[2] == server["image"].rpartition(":")[2]
    names = [variable["name"] for variable in server["env"]]
    assert len(names) == len(set(names)) and not set(names) & OPERATOR_S_OWN
    assert server["env"][0] == {"name": "STORAGE_BACKEND", "value": "s3"} and {"S3_BUCKET", "S3_REGION"} <= set(names)
    assert "historyServerOptions" not in str([item for item in kept if item["kind"] in ("RayCluster", "RayService")])
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):  # the time to upload logs
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= 120


def test_the_history_server_sees_the_clusters_of_its_namespace_and_no_secret(kept):
    pod = one(kept, "Deployment", "historyserver")["spec"]["template"]
    account, role, binding = one(kept, "ServiceAccount"), one(kept, "Role"), one(kept, "RoleBinding")
    assert pod["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert {item["metadata"]["namespace"] for item in (account, role, binding)} == {"nvg"}
    assert binding["subjects"] == [{"kind": "ServiceAccount", **account["metadata"]}]
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("Role", role["metadata"]["name"])
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "list"]}]
    service = one(kept, "Service", "historyserver")["spec"]
    assert service["selector"].items() <= pod["metadata"]["labels"].items() and "type" not in service  # not open
    (port,) = service["ports"]
    (container,) = pod["spec"]["containers"]
    assert {port["targetPort"]} == {each["containerPort"] for each in container["ports"]}


def test_the_page_and_the_component_name_the_line_that_adds_it():
    for path in ("docs/guides/infrastructure.md", "infra/kubernetes/components/history/kustomization.yaml"):
        assert HISTORY in (ROOT / path).read_text(), path


# ---- MLflow ----


def server_command(text):
    """Options of the `mlflow server` in a text, checked by MLflow's own command line; variables are filled in."""
    from mlflow.cli import server

    words = shlex.split(re.sub(r"\$\{?(\w+)[^}\s\"]*?\}|\$(\w+)", "x", text))
    at = words.index("server")
    return server.make_context("server", words[at + 1 :]).params


@pytest.mark.slow
def test_both_mlflow_servers_use_options_that_it_has(manifests):
    compose = yaml.safe_load((INFRA / "mlflow" / "compose.yaml").read_text())
    command = re.sub(r"\$\{[^}]*\}", "x", compose["services"]["mlflow"]["command"])
    deployment = one(manifests, "Deployment", "mlflow")
    for text in (command, deployment["spec"]["template"]["spec"]["containers"][0]["args"][0]):
        options = server_command(text)
        assert options["backend_store_uri"].startswith("postgresql://mlflow:x@postgres/") and options["port"] == 5000
    with pytest.raises(Exception, match="No such option"):
        server_command(command + " --artifact-destination x")


def test_the_compose_file_has_no_secret_and_none_by_default():
    content = yaml.safe_load((INFRA / "mlflow" / "compose.yaml").read_text())
    assert content.keys() == {"services", "volumes"} and content["services"].keys() == {"postgres", "mlflow"}
    for service in content["services"].values():
        for name, value in service["environment"].items():
            if "PASSWORD" in name or "KEY" in name:
                assert value.startswith("${") and ":?" in value, name
    assert content["services"]["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]  # not open to the world


# ---- Grafana ----


def test_the_dashboard_shows_every_figure_that_is_exported_and_no_other():
    source = (ROOT / "nvg" / "serving" / "metrics.py").read_text()
    exported = set()
    for kind, name in re.findall(r"(Counter|Gauge|Histogram)\(\s*\"(\w+)\"", source):
        suffixes = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"]}[kind]
        exported |= {f"ray_{name}{suffix}" for suffix in suffixes}
    dashboard = json.loads((INFRA / "grafana" / "nvg.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = set(re.findall(r"ray_\w+", " ".join(queries)))
    assert asked <= exported and len(exported) == 11

    def base(names):
        return {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in names}

    assert base(asked) == base(exported)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
