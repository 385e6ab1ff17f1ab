{{- /* What the schema cannot say: values that are fine one by one and wrong together. Every problem
is reported in one go. */ -}}
{{- define "chatbot.validate" -}}
{{- $problems := list -}}

{{- if eq (int .Values.ports.grpc) (int .Values.ports.ops) -}}
{{- $problems = append $problems (printf "ports.grpc and ports.ops are both %d: the kubelet's probes need a port of their own." (int .Values.ports.ops)) -}}
{{- end -}}

{{- if and .Values.autoscaling.enabled .Values.keda.enabled -}}
{{- $problems = append $problems "autoscaling.enabled and keda.enabled are both true: two controllers would fight over the replicas. Set one of them to false." -}}
{{- end -}}
{{- range $name := list "autoscaling" "keda" -}}
{{- with index $.Values $name -}}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) -}}
{{- $problems = append $problems (printf "%s.minReplicas is %d, more than maxReplicas, %d." $name (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.autoscaling -}}
{{- if and .enabled (not (or .metric .cpuUtilization .metrics)) -}}
{{- $problems = append $problems "autoscaling.enabled is true, but there is nothing to scale by: set autoscaling.metric, cpuUtilization or metrics." -}}
{{- end -}}
{{- if and .enabled .cpuUtilization (not (dig "requests" "cpu" "" $.Values.resources)) -}}
{{- $problems = append $problems "autoscaling.cpuUtilization is a percentage of resources.requests.cpu, which is not set: set it, or scale by another metric." -}}
{{- end -}}
{{- end -}}
{{- with .Values.keda -}}
{{- if and .enabled (not (or .prometheus.serverAddress .triggers)) -}}
{{- $problems = append $problems "keda.enabled is true, but there is nothing to scale by: set keda.prometheus.serverAddress or keda.triggers." -}}
{{- end -}}
{{- end -}}

{{- $replicas := int (include "chatbot.maxReplicas" .) -}}
{{- $replicasValue := "replicaCount" -}}
{{- if .Values.autoscaling.enabled -}}
{{- $replicasValue = "autoscaling.maxReplicas" -}}
{{- else if .Values.keda.enabled -}}
{{- $replicasValue = "keda.maxReplicas" -}}
{{- end -}}
{{- if gt $replicas 1 -}}
{{- if .Values.persistence.enabled -}}
{{- $problems = append $problems (printf "%s is %d with persistence.enabled: the store locks its file, so only one pod can use the volume. Set it to 1, or persistence.enabled to false and redis.url to a Redis." $replicasValue $replicas) -}}
{{- else if or (include "chatbot.sharedStore" .) .Values.acceptIndependentReplicas -}}
{{- else if .Values.existingConfigMap -}}
{{- $problems = append $problems (printf "%s is %d, but the chart does not look into existingConfigMap, so it does not know whether the replicas share a store. Set redis.url, which goes over that file, or %s to 1, or acceptIndependentReplicas to true if the file names a Redis, or if it is fine that each has conversations and taught knowledge of its own." $replicasValue $replicas $replicasValue) -}}
{{- else -}}
{{- $problems = append $problems (printf "%s is %d, but each replica would have conversations and taught knowledge of its own: what one pod is told, the others do not know. Set redis.url, or %s to 1, or acceptIndependentReplicas to true if that is fine." $replicasValue $replicas $replicasValue) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.redis.url .Values.persistence.enabled -}}
{{- $problems = append $problems "persistence.enabled is true with redis.url: Redis is the store, and nothing would be written to the volume. Set persistence.enabled to false, or leave redis.url empty." -}}
{{- end -}}

{{- $strategy := default "" .Values.strategy.type -}}
{{- if and .Values.persistence.enabled .Values.strategy (ne $strategy "Recreate") -}}
{{- $problems = append $problems "strategy is not Recreate with persistence.enabled: a rolling update starts the new pod while the old one still locks the store's file, so the new one can never start. Leave strategy empty." -}}
{{- end -}}

{{- $grace := int (include "chatbot.gracePeriodSeconds" .) -}}
{{- $least := int (include "chatbot.leastGracePeriodSeconds" .) -}}
{{- if lt $grace $least -}}
{{- with .Values.shutdown -}}
{{- $problems = append $problems (printf "terminationGracePeriodSeconds is %d, but the server may take %d: shutdown.preStopSleepSeconds (%d) + drainDelaySeconds (%d) + drainGraceSeconds (%d) + %s for its tasks, its store and its last traces. The kubelet would kill it while it drains. Raise it to at least %d, or leave it unset." $grace $least (int .preStopSleepSeconds) (int .drainDelaySeconds) (int .drainGraceSeconds) (include "chatbot.windDownSeconds" $) $least) -}}
{{- end -}}
{{- end -}}

{{- $version := .Capabilities.KubeVersion.Version -}}
{{- if and .Values.shutdown.preStopSleepSeconds (semverCompare "<1.30.0-0" $version) -}}
{{- $problems = append $problems (printf "shutdown.preStopSleepSeconds needs Kubernetes 1.30, and this is %s: leave it 0, and raise shutdown.drainDelaySeconds instead." $version) -}}
{{- end -}}
{{- with .Values.service -}}
{{- if and .externalTrafficPolicy (eq .type "ClusterIP") -}}
{{- $problems = append $problems "service.externalTrafficPolicy is set, but service.type is ClusterIP, which nothing outside the cluster reaches: leave it unset." -}}
{{- end -}}
{{- end -}}
{{- with .Values.service.trafficDistribution -}}
{{- $since := ternary "1.31" "1.34" (eq . "PreferClose") -}}
{{- if semverCompare (printf "<%s.0-0" $since) $version -}}
{{- $problems = append $problems (printf "service.trafficDistribution %s needs Kubernetes %s, and this is %s: leave it unset." . $since $version) -}}
{{- end -}}
{{- end -}}

{{- range $section, $keys := include "chatbot.derived" . | fromYaml -}}
{{- range $key, $setting := $keys -}}
{{- if hasKey (default dict (index $.Values.config $section)) $key -}}
{{- $problems = append $problems (printf "config.%s.%s is set, but the chart derives it: set %s instead, which the rest of the chart follows." $section $key $setting.from) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if .Values.existingConfigMap -}}
{{- $default := include "chatbot.defaultConfig" . | fromYaml -}}
{{- $dropped := list -}}
{{- range $section, $keys := .Values.config -}}
{{- range $key, $value := $keys -}}
{{- if ne (toJson $value) (toJson (dig $section $key nil $default)) -}}
{{- $dropped = append $dropped (printf "config.%s.%s" $section $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with $dropped -}}
{{- $problems = append $problems (printf "%s: config is not read along with existingConfigMap, which takes its place. Put this into the file there, or leave existingConfigMap empty." (join ", " .)) -}}
{{- end -}}
{{- end -}}
{{- if hasPrefix "redis" (default "" (get (default dict .Values.config.store) "url")) -}}
{{- $problems = append $problems "config.store.url names a Redis: set redis.url instead, which replicas and the NetworkPolicy follow, and the password's Secret in redis.existingSecret." -}}
{{- end -}}

{{- range list "redis.ca" "tls.clientCA" "auth.jwks" "upstream.ca" "tests.tls.ca" -}}
{{- $source := $.Values -}}
{{- range splitList "." . -}}{{- $source = get $source . -}}{{- end -}}
{{- if and $source.existingSecret $source.existingConfigMap -}}
{{- $problems = append $problems (printf "%s.existingSecret and %s.existingConfigMap are both set: there is one file, so one of them has to go." . .) -}}
{{- end -}}
{{- end -}}

{{- if regexMatch "://[^@]*:.*@" .Values.redis.url -}}
{{- $problems = append $problems "redis.url has a password in it, which would be in a ConfigMap for everybody to read: leave it out, and name a Secret with it in redis.existingSecret." -}}
{{- end -}}
{{- if and (not .Values.redis.url) (or .Values.redis.existingSecret .Values.redis.ca.existingSecret .Values.redis.ca.existingConfigMap) -}}
{{- $problems = append $problems "redis.existingSecret or redis.ca is set without redis.url: set it, such as redis://redis:6379/0." -}}
{{- end -}}

{{- with .Values.tls -}}
{{- $byHand := get (default dict $.Values.config.tls) "cert_file" -}}
{{- if and .existingSecret .certManager.create -}}
{{- $problems = append $problems "tls.existingSecret is set along with tls.certManager.create, which makes a Secret of its own: one of them has to go." -}}
{{- end -}}
{{- if and .enabled (not (or .existingSecret .certManager.create $byHand $.Values.existingConfigMap)) -}}
{{- $problems = append $problems "tls.enabled is true, but there is no certificate: name a Secret of the type kubernetes.io/tls in tls.existingSecret, or set tls.certManager.create, or name files that you mount in config.tls." -}}
{{- end -}}
{{- if and (not .enabled) (or .existingSecret .certManager.create $byHand .clientCA.existingSecret .clientCA.existingConfigMap) -}}
{{- $problems = append $problems "a certificate or a client CA is set, but tls.enabled is false: the port would be half protected, or not at all. Set tls.enabled to true." -}}
{{- end -}}
{{- if and .certManager.create (not .certManager.issuerRef.name) -}}
{{- $problems = append $problems "tls.certManager.create is true, but tls.certManager.issuerRef.name is empty: name the Issuer or ClusterIssuer that signs." -}}
{{- end -}}
{{- end -}}

{{- with .Values.auth -}}
{{- $byHand := pick (default dict $.Values.config.auth) "tokens_file" "jwks_file" -}}
{{- $named := or .existingSecret .jwks.existingSecret .jwks.existingConfigMap $byHand -}}
{{- if and .enabled (not (or $named $.Values.existingConfigMap)) -}}
{{- $problems = append $problems "auth.enabled is true, but there is nothing to check a credential by: name a Secret with the tokens file in auth.existingSecret, or the public keys of JWTs in auth.jwks, or files that you mount in config.auth." -}}
{{- end -}}
{{- if and (not .enabled) $named -}}
{{- $problems = append $problems "tokens or public keys are set, but auth.enabled is false: set it to true, so that nobody takes an open port for a guarded one." -}}
{{- end -}}
{{- if and (or .jwks.existingSecret .jwks.existingConfigMap) (not (and .jwks.audience .jwks.issuer)) -}}
{{- $problems = append $problems "auth.jwks needs auth.jwks.audience and auth.jwks.issuer: without both, a token that the issuer made for another service would do." -}}
{{- end -}}
{{- end -}}

{{- with .Values.upstream -}}
{{- if and .baseUrl (not .model) -}}
{{- $problems = append $problems "upstream.baseUrl is set without upstream.model: name the model." -}}
{{- end -}}
{{- if and (not .baseUrl) (or .model .existingSecret .ca.existingSecret .ca.existingConfigMap) -}}
{{- $problems = append $problems "upstream.model, existingSecret or ca is set without upstream.baseUrl: set it, such as http://ollama:11434." -}}
{{- end -}}
{{- end -}}
{{- $key := "name a Secret with the key in upstream.existingSecret" -}}
{{- $headers := "what the collector wants goes into OTEL_EXPORTER_OTLP_HEADERS, from a Secret that extraEnv names" -}}
{{- range list
  (list "upstream.baseUrl" .Values.upstream.baseUrl $key)
  (list "config.upstream.base_url" (dig "upstream" "base_url" "" .Values.config) $key)
  (list "otel.endpoint" .Values.otel.endpoint $headers)
  (list "config.telemetry.otlp_endpoint" (dig "telemetry" "otlp_endpoint" "" .Values.config) $headers)
-}}
{{- if regexMatch "://[^/]*@" (toString (index . 1)) -}}
{{- $problems = append $problems (printf "%s has a password in it, which would be in a ConfigMap for everybody to read: leave it out; %s." (index . 0) (index . 2)) -}}
{{- end -}}
{{- end -}}

{{- with .Values.grpcRoute -}}
{{- if and .enabled (not .parentRefs) -}}
{{- $problems = append $problems "grpcRoute.enabled is true, but grpcRoute.parentRefs is empty: name the Gateway." -}}
{{- end -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- $problems = append $problems "ingress.enabled is true, but ingress.hosts is empty: name the hosts." -}}
{{- end -}}

{{- with .Values.metrics -}}
{{- if and .podMonitor.enabled .serviceMonitor.enabled -}}
{{- $problems = append $problems "metrics.podMonitor.enabled and metrics.serviceMonitor.enabled are both true: everything would be scraped, and counted, twice. Set one of them to false." -}}
{{- end -}}
{{- if and .serviceMonitor.enabled (not $.Values.metricsService.enabled) -}}
{{- $problems = append $problems "metrics.serviceMonitor.enabled is true, but metricsService.enabled is false: there is no Service to scrape. Set it to true, or take metrics.podMonitor." -}}
{{- end -}}
{{- end -}}

{{- range $value := list "commonLabels" "podLabels" -}}
{{- range $label, $_ := index $.Values $value -}}
{{- if has $label (list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart") -}}
{{- $problems = append $problems (printf "%s has %s, which the chart sets on its own: leave it out; nameOverride changes the name." $value $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- if and .Values.knowledge.jsonl .Values.knowledge.existingConfigMap -}}
{{- $problems = append $problems "knowledge.jsonl and knowledge.existingConfigMap are both set: there is one knowledge file, so one of them has to go." -}}
{{- end -}}
{{- if and (include "chatbot.knowledgeConfigMap" .) (hasKey (default dict .Values.config.knowledge) "path") -}}
{{- $problems = append $problems "config.knowledge.path is set along with knowledge.jsonl or knowledge.existingConfigMap, which decide the path: leave it out." -}}
{{- end -}}
{{- if gt (len .Values.knowledge.jsonl) 1000000 -}}
{{- $problems = append $problems (printf "knowledge.jsonl has %d bytes, and a ConfigMap takes 1 MiB: mount a volume with extraVolumes and extraVolumeMounts, and name the file in config.knowledge.path." (len .Values.knowledge.jsonl)) -}}
{{- end -}}
{{- range $index, $line := splitList "\n" .Values.knowledge.jsonl -}}
{{- if and (trim $line) (hasKey (fromJson $line) "Error") -}}
{{- $problems = append $problems (printf "knowledge.jsonl, line %d is no JSON object: %s" (add1 $index) (trunc 60 $line)) -}}
{{- end -}}
{{- end -}}

{{- $taken := dict "CHATBOT_CONFIG" "the chart sets it, to the file made of config" -}}
{{- range $section, $keys := include "chatbot.derived" . | fromYaml -}}
{{- range $key, $setting := $keys -}}
{{- $_ := set $taken (include "chatbot.variable" (list $section $key)) (printf "set %s instead, which the rest of the chart follows" $setting.from) -}}
{{- end -}}
{{- end -}}
{{- if .Values.otel.endpoint -}}
{{- range include "chatbot.podIdentity" . | fromYamlArray -}}
{{- $_ := set $taken .name "the chart sets it along with otel.endpoint" -}}
{{- end -}}
{{- $_ := set $taken "OTEL_SERVICE_NAME" "set otel.serviceName instead" -}}
{{- $_ := set $taken "OTEL_RESOURCE_ATTRIBUTES" "set otel.resourceAttributes instead, to which the chart adds those of the pod" -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if hasKey $taken .name -}}
{{- $problems = append $problems (printf "extraEnv has %s: %s." .name (get $taken .name)) -}}
{{- end -}}
{{- $_ := set $taken .name "it is there twice, and the API server rejects that" -}}
{{- end -}}

{{- $files := include "chatbot.files" . | fromYamlArray -}}
{{- $volumes := list "config" "knowledge" "data" -}}
{{- $mounts := list "/etc/chatbot" "/knowledge" "/data" -}}
{{- range $files -}}
{{- $volumes = append $volumes .volume -}}
{{- $mounts = append $mounts (include "chatbot.folder" .volume) -}}
{{- end -}}
{{- range .Values.extraVolumes -}}
{{- if has .name $volumes -}}
{{- $problems = append $problems (printf "extraVolumes has %s, which is the name of a volume of the chart's, or there twice: give it another name." .name) -}}
{{- end -}}
{{- $volumes = append $volumes .name -}}
{{- end -}}
{{- $own := $mounts -}}
{{- range .Values.extraVolumeMounts -}}
{{- $path := clean .mountPath -}}
{{- if has $path $mounts -}}
{{- $problems = append $problems (printf "extraVolumeMounts has %s, where the chart mounts something, or which is there twice: mount it elsewhere." .mountPath) -}}
{{- end -}}
{{- range $mount := $own -}}
{{- if and (ne $path $mount) (hasPrefix (printf "%s/" (trimSuffix "/" $path)) $mount) -}}
{{- $problems = append $problems (printf "extraVolumeMounts has %s, which lies over %s, where the chart mounts something: mount it elsewhere." $path $mount) -}}
{{- end -}}
{{- end -}}
{{- $mounts = append $mounts $path -}}
{{- end -}}
{{- $containers := list "chatbot" -}}
{{- range concat .Values.initContainers .Values.sidecars -}}
{{- if has .name $containers -}}
{{- $problems = append $problems (printf "initContainers or sidecars have %s, which is the name of another container: give it another name." .name) -}}
{{- end -}}
{{- $containers = append $containers .name -}}
{{- end -}}

{{- with .Values.networkPolicy -}}
{{- if and .enabled .ops.metricsFrom (not .ops.probeFrom) -}}
{{- $problems = append $problems "networkPolicy.ops.metricsFrom is set without probeFrom: an empty probeFrom opens the ops port to everybody, so that metricsFrom has no effect. Set both, with the nodes' addresses in probeFrom." -}}
{{- end -}}
{{- end -}}

{{- if $problems -}}
{{- fail (printf "\n\nThese values do not work:\n- %s\n" (join "\n- " $problems)) -}}
{{- end -}}
{{- end -}}

{{- /* Refuses a kind that the cluster does not know: (list $ "value" "group/version" "Kind"). Only a real
cluster lists kinds; `helm template` has none, and renders. */ -}}
{{- define "chatbot.needs" -}}
{{- $ := index . 0 -}}
{{- $kind := printf "%s/%s" (index . 2) (index . 3) -}}
{{- if and ($.Capabilities.APIVersions.Has "apps/v1/Deployment") (not ($.Capabilities.APIVersions.Has $kind)) -}}
{{- fail (printf "\n\nThese values do not work:\n- %s is set, but this cluster does not know %s: install its custom resource definitions first, or leave it unset.\n" (index . 1) $kind) -}}
{{- end -}}
{{- end -}}
