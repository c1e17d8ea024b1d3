"""What `kubectl kustomize` makes of infra/kubernetes: the features that are used there, and an error for any other."""

import copy
from pathlib import Path

import yaml

KNOWN = {
    "apiVersion",
    "kind",
    "resources",
    "components",
    "namespace",
    "images",
    "patches",
    "configMapGenerator",
    "generatorOptions",
}


def render(folder, found=()):
    """The manifests of an overlay; or, of a component, what it makes of the manifests `found`."""
    folder = Path(folder)
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert content["kind"] == ("Component" if found else "Kustomization"), f"{folder}: {content['kind']}"
    unknown = content.keys() - KNOWN
    assert not unknown, f"{folder}: {unknown} are not understood here"
    found = list(found)
    for name in content.get("resources", []):
        path = folder / name
        found += render(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for name in content.get("components", []):
        found = render(folder / name, found)
    for one in content.get("configMapGenerator", []):
        assert one.keys() == {"name", "envs"} and content["generatorOptions"] == {"disableNameSuffixHash": True}
        lines = [line for env in one["envs"] for line in (folder / env).read_text().splitlines() if line]
        data = dict(line.split("=", 1) for line in lines)
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": one["name"]}, "data": data})
    found = [copy.deepcopy(item) for item in found]  # YAML's aliases are one object
    if "namespace" in content:
        for item in found:
            if item["kind"] != "Namespace":
                item["metadata"]["namespace"] = content["namespace"]
    for patch in content.get("patches", []):
        assert patch["target"].keys() == {"kind"}
        targets = [item for item in found if item["kind"] == patch["target"]["kind"]]
        assert targets, f"{folder}: no {patch['target']['kind']} to patch"
        for item in targets:
            for operation in yaml.safe_load(patch["patch"].strip()):  # kustomize strips it too
                apply(item, **operation)
    for image in content.get("images", []):
        for item in found:
            set_images(item, image)
    return found


def apply(item, op, path, value):
    """A JSON patch's operation (RFC 6902)."""
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in path.strip("/").split("/")]
    for part in way:
        item = item[int(part)] if isinstance(item, list) else item[part]
    assert op in ("add", "replace") and (op == "add" or last in item), f"{op} {path}"
    item[last] = value


def set_images(item, image):
    """A new name and tag wherever there are containers, in custom resources too, as kustomize does."""
    if isinstance(item, dict):
        for container in item.get("containers", []):
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
        for value in item.values():
            set_images(value, image)
    elif isinstance(item, list):
        for value in item:
            set_images(value, image)
