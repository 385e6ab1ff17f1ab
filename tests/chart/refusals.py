"""Values that cannot work, and some that can. Each of the first is a name, the values, the texts that the
refusal has to have in it, and for some the cluster on which they cannot.
"""

REDIS = {"redis": {"url": "redis://redis:6379/0"}}
# What only a real cluster says that it knows; `helm template` has groups and versions, without kinds.
CLUSTER = {"apis": ("apps/v1/Deployment",)}

REFUSED = [
    ("a port as a string", {"ports": {"grpc": "8980"}}, ["grpc", "integer"]),
    ("a privileged port", {"ports": {"grpc": 80}}, ["grpc", "minimum"]),
    ("an unknown key", {"replicas": 2}, ["replicas", "not allowed"]),
    ("an unknown key further in", {"probes": {"liveness": {"period": 1}}}, ["liveness", "period", "not allowed"]),
    ("an image tag that is a number", {"image": {"tag": 1.1}}, ["tag", "string"]),
    ("a value of a variable that is a number", {"extraEnv": [{"name": "A", "value": 1}]}, ["value", "string"]),
    ("a loopback address", {"listenAddress": "[::1]"}, ["listenAddress"]),
    ("a section that is taken away", {"config": None}, ["config", "missing"]),
    ("a section further in that is taken away", {"tls": {"clientCA": None}}, ["tls", "clientCA", "missing"]),
    ("a probe that is taken away", {"probes": {"liveness": None}}, ["probes", "liveness", "missing"]),
    ("a config section that is no map", {"config": {"server": 5}}, ["server", "object"]),
    (
        "two replicas without a store to share",
        {"replicaCount": 2},
        ["replicaCount is 2", "taught knowledge of its own", "Set redis.url", "acceptIndependentReplicas"],
    ),
    (
        "two replicas whose store is said by a variable to be their own",
        {"replicaCount": 2, "extraEnv": [{"name": "CHATBOT__STORE__URL", "value": "memory:"}]},
        ["replicaCount is 2", "Set redis.url", "acceptIndependentReplicas"],
    ),
    (
        "two replicas whose store the chart does not see",
        {"replicaCount": 2, "existingConfigMap": "a"},
        ["replicaCount is 2", "does not look into existingConfigMap", "Set redis.url", "acceptIndependentReplicas"],
    ),
    (
        "two replicas on one volume, accepted or not",
        {"replicaCount": 2, "acceptIndependentReplicas": True, "persistence": {"enabled": True}},
        ["replicaCount is 2", "locks its file", "redis.url"],
    ),
    (
        "a rolling update with a volume",
        {"persistence": {"enabled": True}, "strategy": {"type": "RollingUpdate"}},
        ["still locks", "Leave strategy empty"],
    ),
    (
        "a grace period shorter than the drain",
        {"terminationGracePeriodSeconds": 41},
        ["is 41", "may take 42", "at least 42"],
    ),
    ("one port for both", {"ports": {"grpc": 8981}}, ["both 8981"]),
    ("a derived config key", {"config": {"server": {"drain_grace": "60s"}}}, ["shutdown.drainGraceSeconds"]),
    ("a derived address", {"config": {"ops": {"address": "[::]:1"}}}, ["set ports.ops"]),
    (
        "a config that somebody else's takes the place of",
        {"existingConfigMap": "a", "config": {"telemetry": {"log_filter": "debug"}, "limits": {"burst": 5}}},
        ["config.limits.burst, config.telemetry.log_filter: ", "existingConfigMap", "Put this into the file"],
    ),
    ("two knowledge files", {"knowledge": {"jsonl": "{}", "existingConfigMap": "a"}}, ["both set"]),
    (
        "a knowledge file and a path",
        {"knowledge": {"jsonl": "{}"}, "config": {"knowledge": {"path": "/a"}}},
        ["config.knowledge.path"],
    ),
    ("knowledge that is not JSON", {"knowledge": {"jsonl": '{"answer_id": 1}\n{"answer_id"\n'}}, ["line 2 "]),
    ("too much knowledge for a ConfigMap", {"knowledge": {"jsonl": '{"a": 1}\n' * 120000}}, ["1 MiB", "extraVolumes"]),
    (
        "a variable twice",
        {"extraEnv": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
        ["extraEnv has A", "twice"],
    ),
    (
        "a variable that the chart derives",
        {"extraEnv": [{"name": "CHATBOT__SERVER__ADDRESS", "value": "[::]:1"}]},
        ["set ports.grpc and listenAddress instead"],
    ),
    (
        "more replicas to come without a store to share",
        {"autoscaling": {"enabled": True}},
        ["autoscaling.maxReplicas is 10", "redis.url"],
    ),
    (
        "an HPA and KEDA",
        {
            **REDIS,
            "autoscaling": {"enabled": True},
            "keda": {"enabled": True, "prometheus": {"serverAddress": "http://prometheus"}},
        },
        ["autoscaling.enabled and keda.enabled", "fight"],
    ),
    (
        "an HPA with nothing to scale by",
        {**REDIS, "autoscaling": {"enabled": True, "metric": None}},
        ["autoscaling.metric"],
    ),
    (
        "an HPA by a share of nothing",
        {**REDIS, "autoscaling": {"enabled": True, "cpuUtilization": 80}, "resources": {"requests": {"cpu": None}}},
        ["resources.requests.cpu"],
    ),
    ("KEDA with nothing to scale by", {**REDIS, "keda": {"enabled": True}}, ["keda.prometheus.serverAddress"]),
    ("KEDA down to nobody", {**REDIS, "keda": {"minReplicas": 0}}, ["minReplicas", "minimum"]),
    (
        "fewer replicas at most than at least",
        {**REDIS, "autoscaling": {"enabled": True, "minReplicas": 4, "maxReplicas": 3}},
        ["autoscaling.minReplicas is 4", "maxReplicas, 3"],
    ),
    (
        "a password in the URL of Redis",
        {"redis": {"url": "redis://bot:se@cret@redis:6379/0"}},
        ["redis.url has a password", "redis.existingSecret"],
    ),
    ("a URL that is no Redis", {"redis": {"url": "http://redis"}}, ["url", "pattern"]),
    ("a password without a Redis", {"redis": {"existingSecret": "a"}}, ["without redis.url"]),
    ("a Redis in the config", {"config": {"store": {"url": "redis://redis"}}}, ["set redis.url instead"]),
    (
        "a Redis with a volume",
        {**REDIS, "persistence": {"enabled": True}},
        ["nothing would be written to the volume"],
    ),
    ("TLS without a certificate", {"tls": {"enabled": True}}, ["tls.existingSecret", "tls.certManager.create"]),
    (
        "a certificate without TLS",
        {"tls": {"existingSecret": "a"}},
        ["tls.enabled is false", "Set tls.enabled to true"],
    ),
    (
        "a client CA without TLS",
        {"tls": {"clientCA": {"existingConfigMap": "a"}}},
        ["tls.enabled is false"],
    ),
    (
        "two certificates",
        {"tls": {"enabled": True, "existingSecret": "a", "certManager": {"create": True, "issuerRef": {"name": "b"}}}},
        ["tls.existingSecret", "tls.certManager.create", "one of them has to go"],
    ),
    (
        "a certificate of nobody",
        {"tls": {"enabled": True, "certManager": {"create": True}}},
        ["tls.certManager.issuerRef.name is empty"],
    ),
    (
        "one file from two sources",
        {"redis": {"url": "rediss://a", "ca": {"existingSecret": "b", "existingConfigMap": "c"}}},
        ["redis.ca.existingSecret and redis.ca.existingConfigMap"],
    ),
    (
        "a certificate twice, in the values and in the config",
        {"tls": {"enabled": True, "existingSecret": "a"}, "config": {"tls": {"cert_file": "/a"}}},
        ["config.tls.cert_file", "set tls.existingSecret instead"],
    ),
    ("credentials that nothing can check", {"auth": {"enabled": True}}, ["auth.existingSecret", "auth.jwks"]),
    ("tokens that nobody asks for", {"auth": {"existingSecret": "a"}}, ["auth.enabled is false"]),
    (
        "tokens in the config that nobody asks for",
        {"config": {"auth": {"tokens_file": "/a"}}},
        ["auth.enabled is false"],
    ),
    (
        "keys of JWTs for whatever service",
        {"auth": {"enabled": True, "jwks": {"existingSecret": "a", "audience": "b"}}},
        ["auth.jwks.audience and auth.jwks.issuer"],
    ),
    ("a model's server without a model", {"upstream": {"baseUrl": "http://a"}}, ["name the model"]),
    ("a model without a server", {"upstream": {"model": "a"}}, ["without upstream.baseUrl"]),
    (
        "a password in the address of the model's server",
        {"upstream": {"baseUrl": "http://a:b@c", "model": "d"}},
        ["upstream.baseUrl has a password"],
    ),
    (
        "a password in the address of the model's server, by the server's own setting",
        {"config": {"upstream": {"base_url": "http://a:b@c", "model": "d"}}},
        ["config.upstream.base_url has a password"],
    ),
    (
        "a password in the address of the collector",
        {"otel": {"endpoint": "http://a:b@collector:4317"}},
        ["otel.endpoint has a password", "OTEL_EXPORTER_OTLP_HEADERS"],
    ),
    (
        "a password in the address of the collector, by the server's own setting",
        {"config": {"telemetry": {"otlp_endpoint": "http://a:b@collector:4317"}}},
        ["config.telemetry.otlp_endpoint has a password", "OTEL_EXPORTER_OTLP_HEADERS"],
    ),
    ("a collector behind TLS", {"otel": {"endpoint": "https://collector:4317"}}, ["endpoint", "pattern"]),
    ("a share of more than all", {"otel": {"sampleRatio": 1.5}}, ["sampleRatio", "maximum"]),
    (
        "attributes that would be read as two",
        {"otel": {"endpoint": "http://a:4317", "resourceAttributes": {"a": "b,c=d"}}},
        ["resourceAttributes", "pattern"],
    ),
    (
        "attributes of the pod by hand",
        {"otel": {"endpoint": "http://a:4317"}, "extraEnv": [{"name": "OTEL_RESOURCE_ATTRIBUTES", "value": "a=b"}]},
        ["set otel.resourceAttributes instead"],
    ),
    (
        "the store in a variable as well",
        {**REDIS, "extraEnv": [{"name": "CHATBOT__STORE__URL", "value": "memory:"}]},
        ["extraEnv has CHATBOT__STORE__URL", "set redis.url instead"],
    ),
    ("a label of the chart's", {"commonLabels": {"app.kubernetes.io/name": "a"}}, ["commonLabels", "on its own"]),
    ("such a label of the pods", {"podLabels": {"app.kubernetes.io/instance": "a"}}, ["podLabels", "on its own"]),
    (
        "a policy for traffic that cannot come",
        {"service": {"externalTrafficPolicy": "Local"}},
        ["service.externalTrafficPolicy", "leave it unset"],
    ),
    (
        "a volume under the chart's name",
        {"tls": {"enabled": True, "existingSecret": "a"}, "extraVolumes": [{"name": "tls", "emptyDir": {}}]},
        ["extraVolumes has tls", "another name"],
    ),
    (
        "a mount over the chart's",
        {"extraVolumeMounts": [{"name": "a", "mountPath": "/etc/chatbot/"}]},
        ["extraVolumeMounts has /etc/chatbot/", "elsewhere"],
    ),
    (
        "a mount that hides one of the chart's",
        {"extraVolumeMounts": [{"name": "a", "mountPath": "/etc"}]},
        ["extraVolumeMounts has /etc, ", "over /etc/chatbot", "elsewhere"],
    ),
    (
        "a mount that hides everything",
        {"extraVolumeMounts": [{"name": "a", "mountPath": "/"}]},
        ["extraVolumeMounts has /, ", "over /etc/chatbot", "over /data"],
    ),
    (
        "a mount that hides the chart's secrets",
        {
            "tls": {"enabled": True, "existingSecret": "a"},
            "extraVolumeMounts": [{"name": "a", "mountPath": "//secrets/"}],
        },
        ["extraVolumeMounts has /secrets, ", "over /secrets/tls"],
    ),
    (
        "a port of egress that is none",
        {"networkPolicy": {"egress": {"redis": {"ports": [0]}}}},
        ["redis", "ports", "minimum"],
    ),
    ("a sidecar under the server's name", {"sidecars": [{"name": "chatbot"}]}, ["have chatbot", "another name"]),
    ("a route to no gateway", {"grpcRoute": {"enabled": True}}, ["grpcRoute.parentRefs is empty"]),
    ("an Ingress for no host", {"ingress": {"enabled": True}}, ["ingress.hosts is empty"]),
    (
        "pods that are scraped twice",
        {"metrics": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}},
        ["twice"],
    ),
    (
        "a ServiceMonitor without a Service",
        {"metrics": {"serviceMonitor": {"enabled": True}}, "metricsService": {"enabled": False}},
        ["metricsService.enabled is false", "metrics.podMonitor"],
    ),
    (
        "a sleep on a Kubernetes that has none",
        {"shutdown": {"preStopSleepSeconds": 3}},
        ["needs Kubernetes 1.30", "this is v1.29", "drainDelaySeconds"],
        {"kube": "1.29.9"},
    ),
    (
        "a sleep that the grace period does not cover",
        {"shutdown": {"preStopSleepSeconds": 3}, "terminationGracePeriodSeconds": 44},
        ["is 44", "may take 45"],
    ),
    (
        "traffic in the zone on a Kubernetes that does not know it",
        {"service": {"trafficDistribution": "PreferClose"}},
        ["needs Kubernetes 1.31", "this is v1.30"],
        {"kube": "1.30.4-gke.1"},
    ),
    (
        "traffic on the node on a Kubernetes that does not know it",
        {"service": {"trafficDistribution": "PreferSameNode"}},
        ["needs Kubernetes 1.34", "this is v1.33"],
        {"kube": "1.33.1"},
    ),
    ("a Kubernetes without gRPC probes", {}, ["1.26.9", ">=1.27.0-0"], {"kube": "1.26.9"}),
    (
        "a Certificate on a cluster that knows none",
        {"tls": {"enabled": True, "certManager": {"create": True, "issuerRef": {"name": "a"}}}},
        ["tls.certManager.create is set", "does not know cert-manager.io/v1/Certificate"],
        CLUSTER,
    ),
    (
        "a ScaledObject on a cluster that knows none",
        {**REDIS, "keda": {"enabled": True, "triggers": [{"type": "cron"}]}},
        ["keda.enabled is set", "does not know keda.sh/v1alpha1/ScaledObject"],
        CLUSTER,
    ),
    (
        "a GRPCRoute on a cluster that knows none",
        {"grpcRoute": {"enabled": True, "parentRefs": [{"name": "a"}]}},
        ["grpcRoute.enabled is set", "does not know gateway.networking.k8s.io/v1/GRPCRoute"],
        CLUSTER,
    ),
    (
        "a PodMonitor on a cluster that knows none",
        {"metrics": {"podMonitor": {"enabled": True}}},
        ["metrics.podMonitor.enabled is set", "does not know monitoring.coreos.com/v1/PodMonitor"],
        CLUSTER,
    ),
    (
        "a ServiceMonitor on a cluster that knows none",
        {"metrics": {"serviceMonitor": {"enabled": True}}},
        ["metrics.serviceMonitor.enabled is set", "does not know monitoring.coreos.com/v1/ServiceMonitor"],
        CLUSTER,
    ),
    (
        "a PrometheusRule on a cluster that knows none",
        {"metrics": {"prometheusRule": {"enabled": True}}},
        ["metrics.prometheusRule.enabled is set", "does not know monitoring.coreos.com/v1/PrometheusRule"],
        CLUSTER,
    ),
    (
        "metricsFrom without probeFrom",
        {"networkPolicy": {"enabled": True, "ops": {"metricsFrom": [{"podSelector": {}}]}}},
        ["no effect"],
    ),
    (
        "two problems, reported in one go",
        {"replicaCount": 2, "ports": {"grpc": 8981}},
        ["both 8981", "acceptIndependentReplicas"],
    ),
]

# Names and values that look alike, and work.
ACCEPTED = [
    ("independent replicas", {"replicaCount": 2, "acceptIndependentReplicas": True}),
    ("globals of a parent chart", {"global": {"anything": 1}}),
    ("a user in the URL of Redis", {"redis": {"url": "redis://bot@[2001:db8::1]:6379/0"}}),
    (
        "replicas whose store comes from a variable",
        {"replicaCount": 2, "extraEnv": [{"name": "CHATBOT__STORE__URL", "valueFrom": {"secretKeyRef": {}}}]},
    ),
    (
        "replicas whose Redis is named in a variable",
        {"replicaCount": 2, "extraEnv": [{"name": "CHATBOT__STORE__URL", "value": "redis://redis"}]},
    ),
    (
        "replicas whose Redis is named over a config file of somebody else's",
        {**REDIS, "existingConfigMap": "a", "replicaCount": 2},
    ),
    (
        "TLS and credentials that a config file of somebody else's is about",
        {
            "existingConfigMap": "a",
            "tls": {"enabled": True},
            "auth": {"enabled": True},
            "replicaCount": 2,
            "acceptIndependentReplicas": True,
        },
    ),
    (
        "mounts beside the chart's and below them",
        {
            "extraVolumes": [{"name": "a", "emptyDir": {}}],
            "extraVolumeMounts": [{"name": "a", "mountPath": path} for path in ("/data/models", "/etc/chat", "/da")],
        },
    ),
    ("no replica at all", {"replicaCount": 0}),
    (
        "a PodMonitor on a cluster that knows it",
        {"metrics": {"podMonitor": {"enabled": True}}},
        {"apis": (*CLUSTER["apis"], "monitoring.coreos.com/v1/PodMonitor")},
    ),
    ("the oldest Kubernetes, as a provider calls it", {}, {"kube": "1.27.0-gke.100"}),
]
