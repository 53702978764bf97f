"""Validates manifests against the schemas of Kubernetes, strictly, and pods against the restricted standard for pod security,
and the secrets that each role gets.

validate.py FILE: exits with 1 and a line for each problem.
"""

import sys

import kubernetes_validate
import yaml

VERSION = "1.32"
# The keys of the secret that a process reads, by its role.
SECRETS = {
    "all": {"mongodb-uri", "queue", "admin-token", "m2m-client-secret"},
    "api": {"mongodb-uri", "queue", "admin-token", "m2m-client-secret"},
    "ingest": {"queue"},
    "project": {"mongodb-uri", "queue"},
    "reconcile": {"mongodb-uri", "queue", "m2m-client-secret"},
}


def restricted(kind, pod):
    """Yields what the standard `restricted` forbids."""
    security = pod.get("securityContext", {})
    if not security.get("runAsNonRoot"):
        yield "runAsNonRoot is not set"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccompProfile"
    for container in pod["containers"]:
        security = container.get("securityContext", {})
        if security.get("allowPrivilegeEscalation") is not False:
            yield "allowPrivilegeEscalation is not false"
        if security.get("capabilities", {}).get("drop") != ["ALL"]:
            yield "capabilities are not dropped"
        if not security.get("readOnlyRootFilesystem"):
            yield "the root file system can be written"
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"]:
            if probe not in container:
                yield f"no {probe}"
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"] for volume in pod["volumes"]}
        if kind == "StatefulSet":
            volumes.add("data")
        if mounts != volumes:
            yield f"mounts {mounts} of the volumes {volumes}"


def secrets(pod):
    """Yields secrets that a pod has and its role does not use, and the reverse."""
    settings = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    role = settings["KINSYNC_ROLE"]
    volumes = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    mounted = {item["path"] for volume in volumes for item in volume.get("items", [{"path": "everything"}])}
    read = {value.rsplit("/", 1)[-1] for name, value in settings.items() if name.endswith("_FILE")}
    for what, found in [("mounts", mounted), ("reads", read)]:
        if found != SECRETS[role]:
            yield f"the role {role} {what} the secrets {sorted(found)}"


def selected(documents):
    """Yields selectors that match no pod."""
    pods = [d["spec"]["template"]["metadata"]["labels"] for d in documents if "template" in d.get("spec", {})]
    for document in documents:
        spec = document.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector")
        if selector:
            labels = selector.get("matchLabels", selector)
            if not any(labels.items() <= pod.items() for pod in pods):
                yield f"{document['kind']} {document['metadata']['name']} selects no pod"


def problems(documents):
    for document in documents:
        name = f"{document['kind']} {document['metadata']['name']}"
        try:
            kubernetes_validate.validate(document, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{name}: {error}"
        if "template" in document.get("spec", {}):
            pod = document["spec"]["template"]["spec"]
            for problem in [*restricted(document["kind"], pod), *secrets(pod)]:
                yield f"{name}: {problem}"
    yield from selected(documents)


with open(sys.argv[1], encoding="utf-8") as file:
    found = list(problems([document for document in yaml.safe_load_all(file) if document]))
print("\n".join(found))
sys.exit(1 if found else 0)
