"""Kubernetes' Pod Security Standard *restricted*, as its documentation lists it: what a pod does against it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: Kinds of volumes that *restricted* allows.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SECCOMP = {"RuntimeDefault", "Localhost"}
#: What the standard leaves alone and we do not.
OURS = "ours: "


def containers(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(kind, ())


def violations(spec: dict[str, Any]) -> list[str]:
    """Sentences; none is well. `spec` is a pod's."""
    return [*_of_the_pod(spec), *(wrong for one in containers(spec) for wrong in _of_a_container(spec, one))]


def _of_the_pod(spec: dict[str, Any]) -> Iterator[str]:
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield f"{name} is set"
    for volume in spec.get("volumes", ()):
        if kinds := volume.keys() - {"name"} - VOLUMES:
            yield f"the volume {volume['name']} is a {', '.join(kinds)}"
    given = spec.get("securityContext", {})
    if given.get("sysctls") or _is_odd(given.get("seLinuxOptions", {})) or given.get("windowsOptions", {}).get("hostProcess"):
        yield "the pod sets sysctls, SELinux options or a host process"
    if given.get("runAsUser") == 0:
        yield "the pod runs as root"
    if spec.get("automountServiceAccountToken") is not False:
        yield f"{OURS}the pod has a service account's token"
    if spec.get("enableServiceLinks") is not False:
        yield f"{OURS}the pod has other services' addresses in its environment"


def _of_a_container(spec: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
    name, of_pod, own = container["name"], spec.get("securityContext", {}), container.get("securityContext", {})
    if own.get("privileged"):
        yield f"{name} is privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{name} may escalate"
    if own.get("runAsNonRoot", of_pod.get("runAsNonRoot")) is not True:
        yield f"{name} may run as root"
    if own.get("runAsUser", of_pod.get("runAsUser")) == 0:
        yield f"{name} runs as root"
    if own.get("seccompProfile", of_pod.get("seccompProfile", {})).get("type") not in SECCOMP:
        yield f"{name} has no seccomp profile"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()):
        yield f"{name} keeps capabilities"
    if set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield f"{name} adds capabilities"
    if own.get("procMount", "Default") != "Default" or _is_odd(own.get("seLinuxOptions", {})):
        yield f"{name} changes /proc or SELinux"
    if any(port.get("hostPort") for port in container.get("ports", ())):
        yield f"{name} takes a port of its node"
    if own.get("readOnlyRootFilesystem") is not True:
        yield f"{OURS}{name} may write to its image"
    if "limits" not in container.get("resources", {}):
        yield f"{OURS}{name} may take all memory of its node"


def _is_odd(selinux: dict[str, Any]) -> bool:
    """A level may be chosen; a user or role not, and few types."""
    types = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
    return bool(selinux.get("user") or selinux.get("role") or selinux.get("type") not in types)
