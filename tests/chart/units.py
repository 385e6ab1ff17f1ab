"""What the rendered objects promise. Each function is one promise, and its docstring is the line
that the report prints; `values_files` are the values under helm/chatbot/ci by their name.
"""

import json
import re

import yaml

from rendering import CHART, ROOT, Loader, notes, render, render_again
from restricted import violations

DEFAULT_PORTS = {"grpc": 8980, "ops": 8981}


def promises():
    """All functions of this module that are promises, in the order of the file."""
    return [each for name, each in globals().items() if name.startswith("promise_")]


# === finding one's way in a list of objects ===


def only(objects, kind, suffix=""):
    """The one object of the kind whose name ends so."""
    found = [o for o in objects if o["kind"] == kind and o["metadata"]["name"].endswith(suffix)]
    assert len(found) == 1, f"{len(found)} objects of the kind {kind} end with {suffix!r}"
    return found[0]


def of_kind(objects, kind):
    return [o for o in objects if o["kind"] == kind]


def pods(objects):
    """(name, labels, spec) of each pod: the Deployment's and the tests'."""
    for o in objects:
        if o["kind"] == "Deployment":
            template = o["spec"]["template"]
            yield o["metadata"]["name"], template["metadata"]["labels"], template["spec"]
        elif o["kind"] == "Pod":
            yield o["metadata"]["name"], o["metadata"]["labels"], o["spec"]


def server(objects):
    """The server's container."""
    (container,) = [c for c in pod(objects)["containers"] if c["name"] == "chatbot"]
    return container


def pod(objects):
    return only(objects, "Deployment")["spec"]["template"]["spec"]


def config_text(objects):
    (found,) = [o for o in of_kind(objects, "ConfigMap") if "chatbot.yaml" in o["data"]]
    return found["data"]["chatbot.yaml"]


def config(objects):
    return yaml.safe_load(config_text(objects))


def variables(container):
    """The variables of a container by their names."""
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def texts(value):
    """Every text in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


def mounted(spec, container):
    """Every file that a container of a pod finds by a Secret or a ConfigMap of which the chart names the keys."""
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    for mount in container.get("volumeMounts", []):
        volume = volumes[mount["name"]]
        for item in (volume.get("secret") or volume.get("configMap") or {}).get("items", []):
            yield f"{mount['mountPath']}/{item['path']}"


def source(spec, name):
    """A volume without its name."""
    (volume,) = [v for v in spec["volumes"] if v["name"] == name]
    return {key: value for key, value in volume.items() if key != "name"}


def checksum(objects):
    return only(objects, "Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]


def selects(selector, labels):
    return selector.items() <= labels.items()


def noted(values):
    """The notes of a release that begin with NOTE, each as one line."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in notes(values).split("\n\n")]
    return [paragraph for paragraph in paragraphs if paragraph.startswith("NOTE: ")]


def equal(actual, expected):
    assert actual == expected, f"{actual!r} is not {expected!r}"


# === probes ===


def promise_probes(values_files):
    """probes are native gRPC by number on the ops port, each with a service name of its own"""
    for ports in (DEFAULT_PORTS, {"grpc": 50051, "ops": 50052}):
        container = server(render({"ports": ports}))
        probes = {kind: container[kind + "Probe"] for kind in ("startup", "liveness", "readiness")}
        for kind, probe in probes.items():
            equal(probe["grpc"], {"port": ports["ops"], "service": kind})
            assert "exec" not in probe and "httpGet" not in probe


def promise_probe_numbers(values_files):
    """probe periods, timeouts and thresholds: startup 2/3/30, liveness 10/5/6, readiness 5/3/2"""
    container = server(render())
    for kind, numbers in {"startup": (2, 3, 30), "liveness": (10, 5, 6), "readiness": (5, 3, 2)}.items():
        probe = container[kind + "Probe"]
        equal((probe["periodSeconds"], probe["timeoutSeconds"], probe["failureThreshold"]), numbers)


def promise_custom_probe(values_files):
    """a custom probe replaces the whole one"""
    custom = {"httpGet": {"path": "/readyz", "port": 8981}}
    equal(server(render({"probes": {"readiness": {"custom": custom}}}))["readinessProbe"], custom)


# === security ===


def promise_restricted(values_files):
    """every pod, test hooks included, passes the restricted profile; root read-only, no token"""
    for name, values in values_files.items():
        for pod_name, _, spec in pods(render(values)):
            equal((name, pod_name, violations(spec)), (name, pod_name, []))


def promise_no_token(values_files):
    """no service account token, no variables for each Service"""
    for values in values_files.values():
        objects = render(values)
        equal(only(objects, "ServiceAccount")["automountServiceAccountToken"], False)
        for _, _, spec in pods(objects):
            equal((spec["automountServiceAccountToken"], spec["enableServiceLinks"]), (False, False))


def promise_resources(values_files):
    """requests and a memory limit on every container, no CPU limit on any"""
    for values in values_files.values():
        for _, _, spec in pods(render(values)):
            for container in spec["containers"]:
                resources = container["resources"]
                equal(set(resources["requests"]), {"cpu", "memory"})
                equal(set(resources["limits"]), {"memory"})


# === secrets ===

# Every Secret and ConfigMap that can be named, with what the server is told.
ALL_FILES = {
    "tls": {"enabled": True, "existingSecret": "s-tls", "clientCA": {"existingSecret": "s-clients", "key": "ca.pem"}},
    "redis": {
        "url": "rediss://redis:6380/0",
        "existingSecret": "s-redis",
        "key": "redis-password",
        "ca": {"existingConfigMap": "c-redis-ca"},
    },
    "auth": {
        "enabled": True,
        "existingSecret": "s-tokens",
        "jwks": {"existingConfigMap": "c-jwks", "audience": "chatbot", "issuer": "https://login.example.com"},
    },
    "upstream": {
        "baseUrl": "https://models.example.com",
        "model": "m",
        "existingSecret": "s-model",
        "ca": {"existingSecret": "s-model-ca"},
    },
}


def promise_secrets_as_files(values_files):
    """a Secret is mounted as a file, with the one key that is needed, for the group of the pod; none is a variable"""
    objects = render(ALL_FILES)
    spec = pod(objects)
    for volume, name, keys in (
        ("tls", "s-tls", ["tls.crt", "tls.key"]),
        ("client-ca", "s-clients", ["ca.pem"]),
        ("redis-password", "s-redis", ["redis-password"]),
        ("tokens", "s-tokens", ["tokens"]),
        ("upstream-key", "s-model", ["api-key"]),
        ("upstream-ca", "s-model-ca", ["ca.crt"]),
    ):
        items = [{"key": key, "path": key} for key in keys]
        equal(source(spec, volume), {"secret": {"secretName": name, "defaultMode": 0o440, "items": items}})
    for volume, name, key in (("redis-ca", "c-redis-ca", "ca.crt"), ("jwks", "c-jwks", "jwks.json")):
        equal(source(spec, volume), {"configMap": {"name": name, "items": [{"key": key, "path": key}]}})
    for values in values_files.values():
        objects = render(values)
        equal(of_kind(objects, "Secret"), [])
        for _, _, spec in pods(objects):
            for container in spec["containers"]:
                assert "secretKeyRef" not in str(container.get("env")), container["env"]
                for mount in container.get("volumeMounts", []):
                    if "secret" in source(spec, mount["name"]):
                        equal(mount["readOnly"], True)


def promise_files_are_there(values_files):
    """every file that the config or a test names is mounted, and every file that is mounted is named"""
    for values in [ALL_FILES, *values_files.values()]:
        objects = render(values)
        if values.get("existingConfigMap"):
            named = set(texts(variables(server(objects))))
        else:
            named = set(texts(config(objects)))
        found = set(mounted(pod(objects), server(objects)))
        equal({path for path in named if path.startswith("/secrets/")}, found)
        for test in of_kind(objects, "Pod"):
            for container in test["spec"]["containers"]:
                named = {arg for arg in container["args"] if arg.startswith("/secrets/")}
                equal(named, set(mounted(test["spec"], container)))


def promise_settings_of_files(values_files):
    """the server is told where each file is, under the name that it knows"""
    made = config(render(ALL_FILES))
    equal(made["tls"], {
        "cert_file": "/secrets/tls/tls.crt",
        "key_file": "/secrets/tls/tls.key",
        "client_ca_file": "/secrets/client-ca/ca.pem",
    })
    equal(made["store"], {
        "url": "rediss://redis:6380/0",
        "password_file": "/secrets/redis-password/redis-password",
        "ca_file": "/secrets/redis-ca/ca.crt",
    })
    equal(made["auth"], {
        "tokens_file": "/secrets/tokens/tokens",
        "jwks_file": "/secrets/jwks/jwks.json",
        "audience": "chatbot",
        "issuer": "https://login.example.com",
    })
    equal(made["upstream"], {
        "base_url": "https://models.example.com",
        "model": "m",
        "api_key_file": "/secrets/upstream-key/api-key",
        "ca_file": "/secrets/upstream-ca/ca.crt",
    })


def promise_files_of_others(values_files):
    """files that something else writes are named in the config, and the chart stands by"""
    values = {
        "tls": {"enabled": True},
        "auth": {"enabled": True},
        "config": {"tls": {"cert_file": "/vault/a", "key_file": "/vault/b"}, "auth": {"tokens_file": "/vault/c"}},
    }
    objects = render(values)
    equal(config(objects)["tls"], {"cert_file": "/vault/a", "key_file": "/vault/b"})
    equal(only(objects, "Service", "chatbot")["spec"]["ports"][0]["appProtocol"], "https")
    assert "secret" not in str(pod(objects)["volumes"])


# === shutdown and config ===


def promise_grace(values_files):
    """the grace period is sleep + delay + grace + 12, an explicit one is taken, the server gets its share"""
    cases = [
        ({}, 42, "5s", "25s"),
        ({"shutdown": {"drainDelaySeconds": 10, "drainGraceSeconds": 60}}, 82, "10s", "60s"),
        ({"shutdown": {"preStopSleepSeconds": 3}}, 45, "5s", "25s"),
        ({"terminationGracePeriodSeconds": 42}, 42, "5s", "25s"),
        ({"terminationGracePeriodSeconds": 100}, 100, "5s", "25s"),
    ]
    for values, seconds, delay, grace in cases:
        objects = render(values)
        equal(pod(objects)["terminationGracePeriodSeconds"], seconds)
        equal((config(objects)["server"]["drain_delay"], config(objects)["server"]["drain_grace"]), (delay, grace))


def promise_config(values_files):
    """the config file follows the ports, keeps what the user set and puts the store on /data"""
    equal(
        config(render()),
        {
            "server": {"address": "[::]:8980", "drain_delay": "5s", "drain_grace": "25s"},
            "ops": {"address": "[::]:8981"},
            "store": {"url": "redb:/data/chatbot.redb"},
            "telemetry": {"log_format": "json", "log_filter": "info"},
        },
    )
    own = {"server": {"reflection": False}, "store": {"url": "memory:"}, "telemetry": {"log_format": "text"}}
    made = config(render({"config": own, "ports": {"grpc": 2001, "ops": 2002}, "listenAddress": "0.0.0.0"}))
    equal((made["server"]["address"], made["ops"]["address"]), ("0.0.0.0:2001", "0.0.0.0:2002"))
    equal((made["server"]["reflection"], made["store"]["url"]), (False, "memory:"))
    equal(made["telemetry"], {"log_format": "text", "log_filter": "info"})


def promise_pre_stop(values_files):
    """the kubelet sleeps before SIGTERM only when asked to"""
    assert "lifecycle" not in server(render())
    slept = server(render({"shutdown": {"preStopSleepSeconds": 3}}))
    equal(slept["lifecycle"], {"preStop": {"sleep": {"seconds": 3}}})


def promise_existing_config(values_files):
    """over a config file of somebody else's goes what the chart derives, as variables"""
    values = values_files["existing-config"]
    objects = render(values)
    equal(of_kind(objects, "ConfigMap"), [])
    equal(source(pod(objects), "config"), {"configMap": {"name": "chatbot-config"}})
    derived = config(render({key: value for key, value in values.items() if key != "existingConfigMap"}))
    del derived["telemetry"]
    expected = {"CHATBOT_CONFIG": "/etc/chatbot/chatbot.yaml"}
    for section, keys in derived.items():
        expected |= {f"CHATBOT__{section.upper()}__{key.upper()}": value for key, value in keys.items()}
    equal(variables(server(objects)), expected)
    # The chart cannot see when it changes.
    assert "annotations" not in only(objects, "Deployment")["spec"]["template"]["metadata"]


def promise_identity(values_files):
    """traces say which pod they come from, by the downward API, and only where there are traces"""
    equal(set(variables(server(render()))), {"CHATBOT_CONFIG"})
    objects = render(values_files["otel"])
    env = [each["name"] for each in server(objects)["env"]]
    found = variables(server(objects))
    pairs = dict(pair.split("=") for pair in found["OTEL_RESOURCE_ATTRIBUTES"].split(","))
    equal(pairs["k8s.pod.name"], "$(POD_NAME)")
    equal(pairs["service.instance.id"], "$(POD_NAMESPACE).$(POD_NAME).chatbot")
    equal(pairs["deployment.environment.name"], "staging")
    for name in re.findall(r"\$\((\w+)\)", found["OTEL_RESOURCE_ATTRIBUTES"]):
        assert "fieldPath" in found[name]["fieldRef"], name
        # A variable can only name those before it.
        assert env.index(name) < env.index("OTEL_RESOURCE_ATTRIBUTES")
    equal(config(objects)["telemetry"]["otlp_endpoint"], "http://collector.observability:4317")
    equal(config(objects)["telemetry"]["sample_ratio"], 0.25)
    equal(config(render({"otel": {"endpoint": "http://a:1"}}))["telemetry"]["sample_ratio"], 1)
    named = render({"otel": {"endpoint": "http://a:1", "serviceName": "helpdesk"}})
    equal(variables(server(named))["OTEL_SERVICE_NAME"], "helpdesk")


def promise_numbers(values_files):
    """large whole numbers in the config stay whole numbers"""
    made = config(render({"config": {"limits": {"query_bytes": 1048576, "other": 20000000}}}))
    equal([repr(made["limits"][key]) for key in ("query_bytes", "other")], ["1048576", "20000000"])


def promise_config_found(values_files):
    """the mounted config file is the one that the environment names"""
    container = server(render())
    equal(container["env"], [{"name": "CHATBOT_CONFIG", "value": "/etc/chatbot/chatbot.yaml"}])
    assert "command" not in container and "args" not in container
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == "config"]
    equal((mount["mountPath"], mount["readOnly"]), ("/etc/chatbot", True))


def promise_checksum(values_files):
    """a changed config, port, drain time or store rolls the pods; replicas and knowledge do not"""
    before = render()
    for values in (
        {"config": {"telemetry": {"log_filter": "debug"}}},
        {"ports": {"grpc": 9000}},
        {"shutdown": {"drainGraceSeconds": 20}},
        {"redis": {"url": "redis://redis"}},
        {"upstream": {"baseUrl": "http://a", "model": "b"}},
    ):
        assert checksum(render(values)) != checksum(before), values
    idle = render({"replicaCount": 0})
    equal(only(idle, "Deployment")["spec"]["template"], only(before, "Deployment")["spec"]["template"])
    lines = ['{"answer_id": 1}', '{"answer_id": 2}']
    first, second = (only(render({"knowledge": {"jsonl": line}}), "Deployment") for line in lines)
    equal(first, second)


# === knowledge and storage ===


def promise_knowledge(values_files):
    """inline knowledge arrives byte for byte, and the server is told where it is"""
    text = '  {"answer_id": 1, "answer": "예: yes, # no \\" {{ .x }}"}\n\n{"answer_id": 2}\n'
    objects = render({"knowledge": {"jsonl": text}})
    equal(only(objects, "ConfigMap", "-knowledge")["data"], {"knowledge.jsonl": text})
    equal(config(objects)["knowledge"]["path"], "/knowledge/knowledge.jsonl")
    (volume,) = [v for v in pod(objects)["volumes"] if v["name"] == "knowledge"]
    equal(volume["configMap"]["name"], "chatbot-knowledge")


def promise_existing_knowledge(values_files):
    """an existing ConfigMap is mounted and none is made"""
    objects = render({"knowledge": {"existingConfigMap": "answers", "key": "faq.jsonl"}})
    equal(len(of_kind(objects, "ConfigMap")), 1)
    equal(config(objects)["knowledge"]["path"], "/knowledge/faq.jsonl")
    assert {"name": "knowledge", "configMap": {"name": "answers"}} in pod(objects)["volumes"]


def promise_reloadable(values_files):
    """no file is mounted by subPath, which would never change"""
    for values in values_files.values():
        for _, _, spec in pods(render(values)):
            for container in spec["containers"]:
                for mount in container.get("volumeMounts", []):
                    assert "subPath" not in mount, mount


def promise_storage(values_files):
    """/data is an emptyDir, or the claim made here, or the claim named"""

    def data(objects):
        (volume,) = [v for v in pod(objects)["volumes"] if v["name"] == "data"]
        return {key: value for key, value in volume.items() if key != "name"}

    equal(data(render()), {"emptyDir": {"sizeLimit": "1Gi"}})
    objects = render({"persistence": {"enabled": True}})
    equal(data(objects), {"persistentVolumeClaim": {"claimName": "chatbot"}})
    assert "storageClassName" not in only(objects, "PersistentVolumeClaim")["spec"]
    objects = render({"persistence": {"enabled": True, "existingClaim": "mine"}})
    equal(data(objects), {"persistentVolumeClaim": {"claimName": "mine"}})
    equal(of_kind(objects, "PersistentVolumeClaim"), [])
    assert "data" not in {v["name"] for v in pod(render(values_files["redis"]))["volumes"]}


def promise_replicas(values_files):
    """with Redis there may be many replicas; the Deployment leaves their number to an HPA or KEDA"""
    equal(only(render(values_files["redis"]), "Deployment")["spec"]["replicas"], 3)
    equal(only(render({"replicaCount": 0}), "Deployment")["spec"]["replicas"], 0)
    for name in ("autoscaling", "keda"):
        assert "replicas" not in only(render(values_files[name]), "Deployment")["spec"]


def promise_hpa(values_files):
    """the HPA scales the Deployment by a metric that the server has, up at once and down one by one"""
    spec = only(render(values_files["autoscaling"]), "HorizontalPodAutoscaler")["spec"]
    equal(spec["scaleTargetRef"], {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chatbot"})
    equal((spec["minReplicas"], spec["maxReplicas"]), (3, 12))
    pods_metric, cpu = spec["metrics"]
    equal(pods_metric["pods"]["target"], {"type": "AverageValue", "averageValue": "40"})
    assert_exported(pods_metric["pods"]["metric"]["name"])
    equal(cpu["containerResource"]["target"]["averageUtilization"], 80)
    equal(set(spec["behavior"]), {"scaleDown"})
    equal(spec["behavior"]["scaleDown"]["policies"], [{"type": "Pods", "value": 1, "periodSeconds": 60}])
    own = {"type": "External", "external": {"metric": {"name": "a"}, "target": {"type": "Value", "value": "1"}}}
    values = {**values_files["redis"], "autoscaling": {"enabled": True, "metric": None, "metrics": [own]}}
    equal(only(render(values), "HorizontalPodAutoscaler")["spec"]["metrics"], [own])


def promise_keda(values_files):
    """the ScaledObject asks Prometheus for this release's pods, by a metric that the server has"""
    objects = render(values_files["keda"], name="prod", namespace="shop")
    spec = only(objects, "ScaledObject")["spec"]
    equal(spec["scaleTargetRef"]["name"], only(objects, "Deployment")["metadata"]["name"])
    equal((spec["minReplicaCount"], spec["maxReplicaCount"]), (2, 10))
    prometheus, cron = spec["triggers"]
    metadata = prometheus["metadata"]
    equal(metadata["serverAddress"], "http://prometheus.observability:9090")
    metric, labels = re.fullmatch(r"sum\((\w+)\{(.*)\}\)", metadata["query"]).groups()
    assert_exported(metric)
    equal(labels, 'namespace="shop",pod=~"prod-chatbot-[a-z0-9]+(-[a-z0-9]+)?"')
    # As Kubernetes names pods: their five letters come after 58 others at most.
    for release in ("prod", "a" * 46, "a" * 47, "a" * 53):
        scaled = render({**values_files["keda"], "nameOverride": "a"}, name=release)
        (query,) = [each["metadata"]["query"] for each in only(scaled, "ScaledObject")["spec"]["triggers"][:1]]
        (pattern,) = re.findall('pod=~"(.*)"', query)
        deployment = only(scaled, "Deployment")["metadata"]["name"]
        for replica_set in ("7c9d8b5f6d", "84746f8d4"):
            name = f"{deployment}-{replica_set}-"[:58] + "x2k4z"
            assert re.fullmatch(pattern, name), f"{pattern} is not {name}"
        assert not re.fullmatch(pattern, f"b{deployment}-7c9d8b5f6d-x2k4z")
    equal((metadata["threshold"], prometheus["authenticationRef"]), ("40", {"name": "prometheus"}))
    equal(cron["type"], "cron")
    assert not of_kind(objects, "HorizontalPodAutoscaler")


def assert_exported(metric):
    """The server registers a metric of that name."""
    prefix, module, name = metric.split("_", 2)
    equal(prefix, "chatbot")
    sources = [path.read_text() for path in (ROOT / "src" / module).rglob("*.rs")]
    assert any(f'"{name}"' in text for text in sources), f"src/{module} has no metric {name}"


def promise_strategy(values_files):
    """the strategy is Recreate with persistence, else it surges and never goes below the replicas"""
    equal(only(render({"persistence": {"enabled": True}}), "Deployment")["spec"]["strategy"], {"type": "Recreate"})
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    equal(only(render(), "Deployment")["spec"]["strategy"], rolling)


def promise_budget(values_files):
    """a PodDisruptionBudget only where there is always more than one replica"""
    equal(of_kind(render(), "PodDisruptionBudget"), [])
    for least, budgets in ((1, 0), (2, 1)):
        scaled = {"autoscaling": {"enabled": True, "minReplicas": least}}
        objects = render({**values_files["redis"], "replicaCount": 1, **scaled})
        equal(len(of_kind(objects, "PodDisruptionBudget")), budgets)
    two = {"replicaCount": 2, "acceptIndependentReplicas": True}
    budget = only(render(two), "PodDisruptionBudget")["spec"]
    equal((budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]), (1, "AlwaysAllow"))
    equal(of_kind(render({**two, "podDisruptionBudget": {"enabled": False}}), "PodDisruptionBudget"), [])


# === names, labels, network ===


def promise_selectors(values_files):
    """selectors are name and instance, whatever labels are added, and select the server's pods only"""
    added = {"commonLabels": {"team": "a"}, "podLabels": {"tier": "b"}, "image": {"tag": "2.0.0"}}
    for objects in (render(), render(added)):
        deployment = only(objects, "Deployment")
        expected = {"app.kubernetes.io/name": "chatbot", "app.kubernetes.io/instance": "chatbot"}
        equal(deployment["spec"]["selector"]["matchLabels"], expected)
        for service in of_kind(objects, "Service"):
            equal(service["spec"]["selector"], expected)
            for name, labels, _ in pods(objects):
                equal((name, selects(expected, labels)), (name, name == "chatbot"))


def promise_names(values_files):
    """names stay valid with the longest release name, and nothing names a namespace"""
    everything = [o for values in values_files.values() for o in render(values, name="a" * 53)]
    for objects in (everything, render(name="chatbot"), render(name="prod")):
        for o in objects:
            if o["metadata"]["name"].endswith("-environment"):
                continue  # The operator's own, of extraObjects.
            assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", o["metadata"]["name"]), o["metadata"]["name"]
            assert "namespace" not in o["metadata"]
            for value in o["metadata"]["labels"].values():
                assert len(value) <= 63, value
    equal(only(render(name="prod"), "Deployment")["metadata"]["name"], "prod-chatbot")


def promise_services(values_files):
    """users reach the gRPC port only, scrapers the ops port only, through headless Services each pod"""
    for ports in (DEFAULT_PORTS, {"grpc": 50051, "ops": 50052}):
        objects = render({"ports": ports})
        declared = {port["name"]: port["containerPort"] for port in server(objects)["ports"]}
        equal(declared, ports)
        reached = {
            service["metadata"]["name"]: (
                service["spec"].get("clusterIP"),
                [(port["port"], declared[port["targetPort"]]) for port in service["spec"]["ports"]],
            )
            for service in of_kind(objects, "Service")
        }
        grpc, ops = [(ports["grpc"],) * 2], [(ports["ops"],) * 2]
        equal(
            reached,
            {"chatbot": (None, grpc), "chatbot-headless": ("None", grpc), "chatbot-metrics": ("None", ops)},
        )


def promise_network_policy(values_files):
    """the NetworkPolicy is off, open to probes when on, and lets the tests in when narrowed"""
    equal(of_kind(render(), "NetworkPolicy"), [])
    spec = only(render({"networkPolicy": {"enabled": True}}), "NetworkPolicy")["spec"]
    equal(spec["policyTypes"], ["Ingress"])
    equal([set(rule) for rule in spec["ingress"]], [{"ports"}, {"ports"}])
    objects = render(values_files["full"])
    labels = only(objects, "Pod", "-test-health")["metadata"]["labels"]
    spec = only(objects, "NetworkPolicy")["spec"]
    equal(spec["policyTypes"], ["Ingress", "Egress"])
    for rule in spec["ingress"]:
        selectors = [peer["podSelector"]["matchLabels"] for peer in rule["from"] if "podSelector" in peer]
        assert any(selects(selector, labels) for selector in selectors), rule
    closed = {"networkPolicy": {"enabled": True, "egress": {"enabled": True, "dns": False}}}
    equal(only(render(closed), "NetworkPolicy")["spec"]["egress"], [])


def promise_egress(values_files):
    """pods may connect to what the values name, on the ports that the URLs say"""
    policy = {"networkPolicy": {"enabled": True, "egress": {"enabled": True, "dns": False}}}
    for values, ports in (
        ({"redis": {"url": "redis://redis"}}, [6379]),
        ({"redis": {"url": "rediss://bot@[2001:db8::1]:7000/2"}}, [7000]),
        ({"redis": {"url": "redis+cluster://a:7000,b:7001,c"}}, [6379, 7000, 7001]),
        ({"redis": {"url": "redis+sentinel://a,b:26380/main/1"}}, [6379, 26379, 26380]),
        ({"otel": {"endpoint": "http://collector:4317"}}, [4317]),
        ({"otel": {"endpoint": "http://collector"}}, [80]),
        ({"upstream": {"baseUrl": "https://a/team/v1", "model": "m"}}, [443]),
        ({"upstream": {"baseUrl": "http://[::1]:11434/v1", "model": "m"}}, [11434]),
        ({"config": {"upstream": {"base_url": "http://a:8000", "model": "m"}}}, [8000]),
        ({"config": {"telemetry": {"otlp_endpoint": "http://a:4317"}}}, [4317]),
    ):
        (rule,) = only(render({**policy, **values}), "NetworkPolicy")["spec"]["egress"]
        equal((values, sorted(each["port"] for each in rule["ports"])), (values, ports))
        assert "to" not in rule
    rules = only(render(values_files["full"]), "NetworkPolicy")["spec"]["egress"]
    ports = [[port["port"] for port in rule["ports"]] for rule in rules]
    equal(ports, [[53, 53], [26379, 6379], [4317], [443], [3128]])
    equal([len(rule.get("to", [])) for rule in rules], [0, 1, 1, 1, 1])


def promise_egress_to_pods(values_files):
    """where the pods behind a Service have other ports than the Service, those named for egress count"""
    for name, values in (
        ("redis", {"redis": {"url": "redis://redis:80"}}),
        ("otlp", {"otel": {"endpoint": "http://collector:80"}}),
        ("upstream", {"upstream": {"baseUrl": "http://vllm:80", "model": "m"}}),
    ):
        to = [{"podSelector": {}}]
        egress = {"enabled": True, "dns": False, name: {"to": to, "ports": [8000, 8001]}}
        policy = only(render({"networkPolicy": {"enabled": True, "egress": egress}, **values}), "NetworkPolicy")
        ports = [{"port": port, "protocol": "TCP"} for port in (8000, 8001)]
        equal(policy["spec"]["egress"], [{"ports": ports, "to": to}])


def promise_egress_notes(values_files):
    """the notes name what the NetworkPolicy cannot follow, and nothing where it follows all"""
    policy = {"networkPolicy": {"enabled": True, "egress": {"enabled": True}}}
    variable = {"name": "CHATBOT__UPSTREAM__BASE_URL", "value": "http://a"}
    values = {
        **policy,
        "existingConfigMap": "a",
        "extraEnv": [variable, {"name": "OTEL_BSP_MAX_QUEUE_SIZE", "value": "1"}],
        "extraEnvFrom": [{"configMapRef": {"name": "b"}}],
    }
    (note,) = [each for each in noted(values) if "NetworkPolicy" in each]
    assert "follow existingConfigMap, CHATBOT__UPSTREAM__BASE_URL, extraEnvFrom." in note, note
    assert "networkPolicy.egress.rules" in note, note
    for followed in (policy, {"existingConfigMap": "a"}, {**policy, "otel": {"endpoint": "http://a"}}):
        assert not [each for each in noted(followed) if "NetworkPolicy" in each], followed


def promise_spread(values_files):
    """spread constraints get the chart's selector unless they have their own"""
    selector = {"matchLabels": {"app.kubernetes.io/name": "chatbot", "app.kubernetes.io/instance": "chatbot"}}
    for constraint in pod(render())["topologySpreadConstraints"]:
        equal(constraint["labelSelector"], selector)
    own = {
        "maxSkew": 2,
        "topologyKey": "rack",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"a": "b"}},
    }
    equal(pod(render({"topologySpreadConstraints": [own]}))["topologySpreadConstraints"], [own])


def promise_image(values_files):
    """the tag is the appVersion, or the tag, or the digest; the tests use the server's image"""
    digest = "sha256:" + "0" * 64
    for image, expected in (
        ({}, "chatbot:0.1.0"),
        ({"registry": "registry.example.com", "repository": "a/b", "tag": "1.10"}, "registry.example.com/a/b:1.10"),
        ({"tag": "1.10", "digest": digest}, "chatbot@" + digest),
    ):
        for _, _, spec in pods(render({"image": image})):
            equal({container["image"] for container in spec["containers"]}, {expected})


# === TLS, gateways and monitoring ===


def promise_protocol(values_files):
    """Services say h2c in plaintext and https with TLS; probes and scrapes stay as they are"""
    for values, protocol in (
        ({}, "kubernetes.io/h2c"),
        (values_files["tls"], "https"),
        ({"service": {"appProtocol": "grpc"}}, "grpc"),
        ({"service": {"appProtocol": None}}, None),
    ):
        objects = render(values)
        for suffix in ("chatbot", "-headless"):
            equal(only(objects, "Service", suffix)["spec"]["ports"][0].get("appProtocol"), protocol)
        equal(server(objects)["livenessProbe"], server(render())["livenessProbe"])
        assert "appProtocol" not in only(objects, "Service", "-metrics")["spec"]["ports"][0]


def promise_certificate(values_files):
    """cert-manager's certificate is for every name of the Services, and is the one that is mounted"""
    objects = render(values_files["cert-manager"], name="prod", namespace="shop")
    spec = only(objects, "Certificate")["spec"]
    equal(source(pod(objects), "tls")["secret"]["secretName"], spec["secretName"])
    for name in ("prod-chatbot", "prod-chatbot-headless"):
        for domain in ("", ".shop", ".shop.svc", ".shop.svc.cluster.local"):
            assert name + domain in spec["dnsNames"], name + domain
    assert "chat.example.com" in spec["dnsNames"]
    equal(spec["issuerRef"], {"name": "authority", "kind": "ClusterIssuer", "group": "cert-manager.io"})
    equal((spec["duration"], spec["renewBefore"]), ("2160h", "360h"))
    equal(of_kind(render(values_files["tls"]), "Certificate"), [])


def promise_route(values_files):
    """a GRPCRoute leads to the Service, for all calls or by its rules, which may lead elsewhere"""
    objects = render(values_files["gateway"])
    here = [{"name": "chatbot", "port": 8980}]
    equal(only(objects, "GRPCRoute")["spec"], {"parentRefs": [{"name": "public"}], "rules": [{"backendRefs": here}]})
    matches = [{"method": {"service": "chatbot.v1.Chatbot"}}]
    elsewhere = [{"name": "other", "port": 1}]
    rules = [{"matches": matches}, {"backendRefs": elsewhere}]
    route = {"enabled": True, "parentRefs": [{"name": "a"}], "rules": rules}
    spec = only(render({"grpcRoute": route}), "GRPCRoute")["spec"]
    equal(spec["rules"], [{"matches": matches, "backendRefs": here}, {"backendRefs": elsewhere}])


def promise_ingress(values_files):
    """an Ingress leads each host to the port of the Service, and there is none by default"""
    spec = only(render(values_files["ingress"]), "Ingress")["spec"]
    (rule,) = spec["rules"]
    equal((rule["host"], spec["ingressClassName"]), ("chat.example.com", "nginx"))
    (path,) = rule["http"]["paths"]
    equal(path["backend"]["service"], {"name": "chatbot", "port": {"name": "grpc"}})
    equal(of_kind(render(), "Ingress"), [])


def promise_monitors(values_files):
    """a monitor finds the ops port of every pod, once"""
    objects = render(values_files["monitoring"])
    monitor = only(objects, "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    equal(endpoint, {"port": "ops", "path": "/metrics", "interval": "15s"})
    assert "ops" in {port["name"] for port in server(objects)["ports"]}
    labels = only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert selects(monitor["spec"]["selector"]["matchLabels"], labels)
    equal(monitor["metadata"]["labels"]["release"], "prometheus")

    objects = render(values_files["full"])
    monitor = only(objects, "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    equal((endpoint["interval"], endpoint["scrapeTimeout"]), ("30s", "10s"))
    selector = monitor["spec"]["selector"]["matchLabels"]
    found = [service for service in of_kind(objects, "Service") if selects(selector, service["metadata"]["labels"])]
    equal([port["name"] for service in found for port in service["spec"]["ports"]], [endpoint["port"]])


def promise_rules(values_files):
    """the PrometheusRule is the rule file word for word, and the dashboard's ConfigMap the dashboard"""
    objects = render(values_files["monitoring"])
    rule = only(objects, "PrometheusRule")
    rules = yaml.load((CHART / "files" / "rules.yaml").read_text(), Loader)
    equal(rule["spec"], rules)
    equal(list(rules), ["groups"])
    alerts = [each for group in rules["groups"] for each in group["rules"] if "alert" in each]
    assert alerts, "no alert"
    for alert in alerts:
        assert alert["labels"]["severity"] and alert["annotations"]["summary"], alert["alert"]
    dashboard = only(objects, "ConfigMap", "-dashboard")
    equal(dashboard["metadata"]["labels"]["grafana_dashboard"], "1")
    shipped = json.loads((CHART / "files" / "dashboard.json").read_text())
    equal(json.loads(dashboard["data"]["chatbot.json"]), shipped)
    assert shipped["panels"] and shipped["uid"]


def promise_only_when_asked(values_files):
    """by default there is nothing that the operator did not ask for"""
    kinds = {"ConfigMap", "Deployment", "Pod", "Service", "ServiceAccount"}
    equal({o["kind"] for o in render()}, kinds)


# === what is added ===


def promise_extras(values_files):
    """what is added arrives where it belongs, beside what the chart has"""
    objects = render(values_files["full"])
    spec = pod(objects)
    container = server(objects)
    equal(container["args"], ["serve", "--set-aside-damaged-store"])
    equal(container["envFrom"], [{"configMapRef": {"name": "helpdesk-environment"}}])
    equal(variables(container)["OTEL_BSP_MAX_QUEUE_SIZE"], "4096")
    equal([each["name"] for each in spec["initContainers"]], ["wait"])
    equal([each["name"] for each in spec["containers"]], ["chatbot", "shipper"])
    equal(source(spec, "scratch"), {"emptyDir": {}})
    equal(only(objects, "ConfigMap", "chatbot-environment")["data"], {"OTEL_BSP_SCHEDULE_DELAY": "1000"})


# === tests of the chart ===


def promise_helm_tests(values_files):
    """the helm tests call Services and ports that exist, and ask the questions word for word"""
    for name, values in values_files.items():
        objects = render(values)
        reachable = {
            f"{service['metadata']['name']}:{port['port']}"
            for service in of_kind(objects, "Service")
            for port in service["spec"]["ports"]
        }
        for test in of_kind(objects, "Pod"):
            equal(test["metadata"]["annotations"]["helm.sh/hook"], "test")
            for container in test["spec"]["containers"]:
                address = container["args"][container["args"].index("--addr") + 1]
                assert address in reachable, (name, address)
        defaults = yaml.safe_load((CHART / "values.yaml").read_text())
        questions = values.get("tests", {}).get("questions", defaults["tests"]["questions"])
        asked = [container["args"][-1] for container in only(objects, "Pod", "-test-ask")["spec"]["containers"]]
        equal(asked, [question["question"] for question in questions])
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    equal({question["language"] for question in defaults["tests"]["questions"]}, {"ko", "en"})
    equal(of_kind(render({"tests": {"enabled": False}}), "Pod"), [])


def promise_helm_tests_show_what_is_asked(values_files):
    """the helm tests trust the server's authority, and show a certificate or a token where one is wanted"""
    tls = ["--tls", "--tls-ca", "/secrets/ca/ca.crt"]
    certificate = ["--tls-cert", "/secrets/client/tls.crt", "--tls-key", "/secrets/client/tls.key"]
    token = ["--token-file", "/secrets/token/token"]
    public = {**values_files["tls"], "tests": {"tls": {"systemAuthorities": True, "serverName": "chat.example.com"}}}
    for values, flags in (
        ({}, []),
        (values_files["tls"], tls),
        (values_files["cert-manager"], tls),
        (public, ["--tls", "--tls-server-name", "chat.example.com"]),
        (values_files["mutual-tls"], tls + certificate),
        (values_files["auth"], token),
        (values_files["full"], [*tls, *certificate, *token, "--tls-server-name", "chat.example.com"]),
    ):
        objects = render(values)
        for container in only(objects, "Pod", "-test-ask")["spec"]["containers"]:
            equal(container["args"][5:-1], flags)
        by_name = {c["name"]: c for c in only(objects, "Pod", "-test-health")["spec"]["containers"]}
        equal(by_name["chatbot"]["args"][7:], flags)
        # The ops port asks for nothing, so nothing is shown to it.
        for name in ("liveness", "readiness"):
            assert "volumeMounts" not in by_name[name] and len(by_name[name]["args"]) == 7
    own = only(render(values_files["cert-manager"]), "Pod", "-test-ask")["spec"]
    equal(source(own, "ca")["secret"]["secretName"], "chatbot-tls")


def promise_helm_tests_without_credential(values_files):
    """without the credential or the authorities that it takes, the helm tests look at the ops port only, and say so"""
    by_hand = {"tls": {"enabled": True}, "config": {"tls": {"cert_file": "/vault/a", "key_file": "/vault/b"}}}
    unseen = {"tls": {"enabled": True}, "existingConfigMap": "a"}
    for values, lacks in (
        ({"auth": {"enabled": True, "existingSecret": "a"}}, "tests.token.existingSecret"),
        (
            {"tls": {"enabled": True, "existingSecret": "a", "clientCA": {"existingSecret": "b"}}},
            "tests.tls.clientSecret",
        ),
        (by_hand, "tests.tls.ca"),
        (unseen, "tests.tls.systemAuthorities"),
    ):
        (test,) = of_kind(render(values), "Pod")
        equal([container["name"] for container in test["spec"]["containers"]], ["liveness", "readiness"])
        assert "volumes" not in test["spec"]
        equal(of_kind(render({**values, "metricsService": {"enabled": False}}), "Pod"), [])
        (note,) = [each for each in noted(values) if "ops port only" in each]
        assert lacks in note, note
    # What they lack can be given to them, and then they call.
    for values, tls, flags in (
        (by_hand, {"ca": {"existingConfigMap": "c"}}, ["--tls", "--tls-ca", "/secrets/ca/ca.crt"]),
        (unseen, {"systemAuthorities": True}, ["--tls"]),
        (
            unseen,
            {"systemAuthorities": True, "clientSecret": "d"},
            ["--tls", "--tls-cert", "/secrets/client/tls.crt", "--tls-key", "/secrets/client/tls.key"],
        ),
    ):
        values = {**values, "tests": {"tls": tls}}
        for container in only(render(values), "Pod", "-test-ask")["spec"]["containers"]:
            equal(container["args"][5:-1], flags)
        assert not [each for each in noted(values) if "ops port only" in each]


def promise_helm_tests_of_a_config_unseen(values_files):
    """the notes say that the chart does not see what a config file of somebody else's asks of clients"""

    def warned(values):
        return [each for each in noted(values) if "does not look into existingConfigMap" in each]

    (note,) = warned({"existingConfigMap": "a"})
    for name in ("tls.enabled", "tests.tls.clientSecret", "auth.enabled", "tests.token"):
        assert name in note, note
    told = {"existingConfigMap": "a", "auth": {"enabled": True}, "tests": {"token": {"existingSecret": "b"}}}
    for values in ({}, told, {"existingConfigMap": "a", "tests": {"enabled": False}}):
        equal(warned(values), [])


# === forms that a server or a tool would trip over ===


def promise_no_duplicates(values_files):
    """no name of a variable, port, volume or mount twice: server-side apply rejects that"""
    for values in values_files.values():
        for _, _, spec in pods(render(values)):
            for container in spec["containers"]:
                for field, key in (("env", "name"), ("ports", "name"), ("volumeMounts", "mountPath")):
                    found = [each[key] for each in container.get(field, [])]
                    equal(len(found), len(set(found)))
                mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
                assert mounted <= {volume["name"] for volume in spec.get("volumes", [])}
            volumes = [volume["name"] for volume in spec.get("volumes", [])]
            equal(len(volumes), len(set(volumes)))


def promise_no_nulls(values_files):
    """no field is null and no two objects of a kind have the same name"""

    def nulls(value, path):
        if value is None:
            yield path
        elif isinstance(value, (dict, list)):
            for key, each in value.items() if isinstance(value, dict) else enumerate(value):
                yield from nulls(each, f"{path}/{key}")

    for values in values_files.values():
        objects = render(values)
        equal([path for o in objects for path in nulls(o, f"{o['kind']}/{o['metadata']['name']}")], [])
        names = [(o["kind"], o["metadata"]["name"]) for o in objects]
        equal(len(names), len(set(names)))


def promise_deterministic(values_files):
    """the same values render the same objects"""
    for values in values_files.values():
        equal(render_again(values), render(values))


def promise_schema_is_closed(values_files):
    """values.yaml and the schema know the same keys, every section is closed and cannot be null"""
    schema = json.loads((CHART / "values.schema.json").read_text())

    def resolved(node):
        return schema["definitions"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node

    def walk(values, node, path):
        assert node.get("additionalProperties") is False, f"{path} is open"
        equal((path, set(values)), (path, set(node["properties"]) - {"global"}))
        for key, value in values.items():
            below = resolved(node["properties"][key])
            if isinstance(value, dict) and "properties" in below:
                # Templates look into sections: one that null takes away ends in an error of theirs.
                assert key in node.get("required", []), f"{path}.{key} may be null"
                walk(value, below, f"{path}.{key}")

    walk(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "values")
