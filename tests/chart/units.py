"""What the rendered objects promise. Each function is one promise, and its docstring is the line
that the report prints; `values_files` are the values under helm/chatbot/ci by their name.
"""

import copy
import json
import re

import yaml

from rendering import CHART, render
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


def config(objects):
    (found,) = [o for o in of_kind(objects, "ConfigMap") if "chatbot.yaml" in o["data"]]
    return yaml.safe_load(found["data"]["chatbot.yaml"])


def checksum(objects):
    return only(objects, "Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]


def selects(selector, labels):
    return selector.items() <= labels.items()


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
    for _, _, spec in pods(render()):
        for container in spec["containers"]:
            resources = container["resources"]
            equal(set(resources["requests"]), {"cpu", "memory"})
            equal(set(resources["limits"]), {"memory"})


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
    """a changed config, port or drain time rolls the pods; replicas and knowledge do not"""
    before = render()
    for values in (
        {"config": {"telemetry": {"log_filter": "debug"}}},
        {"ports": {"grpc": 9000}},
        {"shutdown": {"drainGraceSeconds": 20}},
    ):
        assert checksum(render(values)) != checksum(before), values
    equal(only(render({"replicaCount": 0}), "Deployment")["spec"]["template"], only(before, "Deployment")["spec"]["template"])
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
        for mount in server(render(values))["volumeMounts"]:
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


def promise_strategy(values_files):
    """the strategy is Recreate with persistence, else it surges and never goes below the replicas"""
    equal(only(render({"persistence": {"enabled": True}}), "Deployment")["spec"]["strategy"], {"type": "Recreate"})
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    equal(only(render(), "Deployment")["spec"]["strategy"], rolling)


def promise_budget(values_files):
    """a PodDisruptionBudget only with more than one replica"""
    equal(of_kind(render(), "PodDisruptionBudget"), [])
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
    for name in ("a" * 53, "chatbot", "prod"):
        for o in render(name=name):
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
        equal(render(copy.deepcopy(values)), render(values))


def promise_schema_is_closed(values_files):
    """values.yaml and the schema know the same keys, and every closed object is closed"""
    schema = json.loads((CHART / "values.schema.json").read_text())

    def walk(values, node, path):
        node = schema["definitions"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
        if "properties" not in node or not isinstance(values, dict):
            return
        assert node.get("additionalProperties") is False, f"{path} is open"
        equal((path, set(values)), (path, set(node["properties"]) - {"global"}))
        for key, value in values.items():
            walk(value, node["properties"][key], f"{path}.{key}")

    walk(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "values")
