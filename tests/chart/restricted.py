"""The `restricted` pod security profile as a predicate, so that a pod which it would reject is found
without a cluster. Stricter than the profile in what the project promises beyond it: a read-only
root, a numeric user and no token.
"""

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def violations(spec):
    """What is wrong with a pod's spec; empty when the profile admits it."""
    found = []
    pod = spec.get("securityContext") or {}
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            found.append(f"{field} is on")
    for volume in spec.get("volumes") or []:
        for kind in set(volume) - {"name"} - VOLUMES:
            found.append(f"volume {volume['name']} is of the kind {kind}")
    if spec.get("automountServiceAccountToken") is not False:
        found.append("a token is mounted")
    for group in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(group) or []:
            found += [f"{container['name']}: {problem}" for problem in _container(container, pod)]
    return found


def _container(container, pod):
    own = container.get("securityContext") or {}

    def effective(field):
        return own.get(field, pod.get(field))

    capabilities = own.get("capabilities") or {}
    user = effective("runAsUser")
    seccomp = (effective("seccompProfile") or {}).get("type")
    checks = {
        "privileged": not own.get("privileged"),
        "allowPrivilegeEscalation is not false": own.get("allowPrivilegeEscalation") is False,
        "capabilities are not dropped": "ALL" in capabilities.get("drop", []),
        "a capability is added": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
        "runAsNonRoot is not true": effective("runAsNonRoot") is True,
        "the user is not a number above 0": isinstance(user, int) and user > 0,
        "no seccomp profile": seccomp in ("RuntimeDefault", "Localhost"),
        "the root is writable": own.get("readOnlyRootFilesystem") is True,
        "a host port": not any(port.get("hostPort") for port in container.get("ports") or []),
    }
    return [problem for problem, fine in checks.items() if not fine]
