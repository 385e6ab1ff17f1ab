{{- /* The server's config file: the `config` of the values between what the chart suggests (the
store on the /data volume) and what it derives from other values. _validate.tpl has made sure that
nothing which is derived was asked for. */ -}}
{{- define "chatbot.config" -}}
{{- $suggested := dict "store" (dict "url" "redb:/data/chatbot.redb") -}}
{{- $derived := dict -}}
{{- range $section, $keys := include "chatbot.derived" . | fromYaml -}}
{{- $values := dict -}}
{{- range $key, $setting := $keys -}}
{{- $_ := set $values $key $setting.value -}}
{{- end -}}
{{- $_ := set $derived $section $values -}}
{{- end -}}
{{- toYaml (mergeOverwrite $suggested (deepCopy .Values.config) $derived) -}}
{{- end -}}

{{- /* The settings that the chart derives, by section and key: each with its value, and with the value of
the chart that it comes from, for whoever sets it by hand. */ -}}
{{- define "chatbot.derived" -}}
{{- $v := .Values -}}
{{- $settings := list
  (list "server.address" (printf "%s:%d" $v.listenAddress (int $v.ports.grpc)) "ports.grpc and listenAddress")
  (list "server.drain_delay" (printf "%ds" (int $v.shutdown.drainDelaySeconds)) "shutdown.drainDelaySeconds")
  (list "server.drain_grace" (printf "%ds" (int $v.shutdown.drainGraceSeconds)) "shutdown.drainGraceSeconds")
  (list "ops.address" (printf "%s:%d" $v.listenAddress (int $v.ports.ops)) "ports.ops and listenAddress")
-}}
{{- if include "chatbot.knowledgeConfigMap" . -}}
{{- $settings = append $settings (list "knowledge.path" (printf "/knowledge/%s" $v.knowledge.key) "knowledge.jsonl or knowledge.existingConfigMap") -}}
{{- end -}}
{{- if $v.redis.url -}}
{{- $settings = append $settings (list "store.url" $v.redis.url "redis.url") -}}
{{- end -}}
{{- range list (list "auth.audience" $v.auth.jwks.audience "auth.jwks.audience") (list "auth.issuer" $v.auth.jwks.issuer "auth.jwks.issuer") (list "upstream.base_url" $v.upstream.baseUrl "upstream.baseUrl") (list "upstream.model" $v.upstream.model "upstream.model") -}}
{{- if index . 1 -}}
{{- $settings = append $settings . -}}
{{- end -}}
{{- end -}}
{{- if $v.otel.endpoint -}}
{{- $settings = concat $settings (list
  (list "telemetry.otlp_endpoint" $v.otel.endpoint "otel.endpoint")
  (list "telemetry.sample_ratio" $v.otel.sampleRatio "otel.sampleRatio")) -}}
{{- end -}}
{{- range $file := include "chatbot.files" . | fromYamlArray -}}
{{- range $setting, $key := $file.settings -}}
{{- $from := printf "%s.%s" $file.value (ternary "existingSecret" "existingConfigMap" (not (empty $file.source.existingSecret))) -}}
{{- $settings = append $settings (list $setting (printf "%s/%s" (include "chatbot.folder" $file.volume) $key) $from) -}}
{{- end -}}
{{- end -}}
{{- $derived := dict -}}
{{- range $settings -}}
{{- $path := splitList "." (index . 0) -}}
{{- $keys := default dict (get $derived (first $path)) -}}
{{- $_ := set $keys (last $path) (dict "value" (index . 1) "from" (index . 2)) -}}
{{- $_ := set $derived (first $path) $keys -}}
{{- end -}}
{{- toYaml $derived -}}
{{- end -}}

{{- /* The environment variable of a setting: (list "section" "key"). */ -}}
{{- define "chatbot.variable" -}}
CHATBOT__{{ index . 0 | upper }}__{{ index . 1 | upper }}
{{- end -}}

{{- /* Not empty where the replicas are known to share a store. A URL that comes from a Secret or the
like is taken for that of a Redis: no other has anything to hide. */ -}}
{{- define "chatbot.sharedStore" -}}
{{- $url := .Values.redis.url -}}
{{- range .Values.extraEnv -}}
{{- if eq .name "CHATBOT__STORE__URL" -}}{{- $url = ternary "redis" .value (hasKey . "valueFrom") -}}{{- end -}}
{{- end -}}
{{- if hasPrefix "redis" (default "" $url) -}}shared{{- end -}}
{{- end -}}

{{- /* What `config` is in values.yaml, which no template can read: no loss where somebody else's file takes its
place. If the two differ, every release with existingConfigMap is refused. */ -}}
{{- define "chatbot.defaultConfig" -}}
telemetry:
  log_format: json
  log_filter: info
{{- end -}}

{{- /* What the server may take after `shutdown` is over: 2.5 s to end what is left of the calls, 2 for the
store, 5 for the last traces, 1 for what still blocks; and a little, since the kubelet counts from before
SIGTERM arrives. */ -}}
{{- define "chatbot.windDownSeconds" -}}12{{- end -}}

{{- /* The least grace period with which the server is never killed. */ -}}
{{- define "chatbot.leastGracePeriodSeconds" -}}
{{- with .Values.shutdown -}}
{{- add .preStopSleepSeconds .drainDelaySeconds .drainGraceSeconds (include "chatbot.windDownSeconds" $) -}}
{{- end -}}
{{- end -}}

{{- define "chatbot.gracePeriodSeconds" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{- include "chatbot.leastGracePeriodSeconds" . -}}
{{- else -}}
{{- int .Values.terminationGracePeriodSeconds -}}
{{- end -}}
{{- end -}}

{{- /* The fewest and the most replicas there will be. */ -}}
{{- define "chatbot.minReplicas" -}}
{{- if .Values.autoscaling.enabled -}}{{- int .Values.autoscaling.minReplicas -}}
{{- else if .Values.keda.enabled -}}{{- int .Values.keda.minReplicas -}}
{{- else -}}{{- int .Values.replicaCount -}}
{{- end -}}
{{- end -}}
{{- define "chatbot.maxReplicas" -}}
{{- if .Values.autoscaling.enabled -}}{{- int .Values.autoscaling.maxReplicas -}}
{{- else if .Values.keda.enabled -}}{{- int .Values.keda.maxReplicas -}}
{{- else -}}{{- int .Values.replicaCount -}}
{{- end -}}
{{- end -}}

{{- /* The ports that a URL leads to, with spaces between them: those it names, and its scheme's for hosts
without one. Sentinels lead on to a primary, which is taken to be at the port that Redis has. */ -}}
{{- define "chatbot.portsOf" -}}
{{- if . -}}
{{- $scheme := first (splitList "://" .) -}}
{{- $hosts := regexReplaceAll "^.*@" (regexReplaceAll "[/?#].*$" (last (splitList "://" .)) "") "" -}}
{{- $usual := get (dict "http" "80" "https" "443" "redis+sentinel" "26379" "rediss+sentinel" "26379") $scheme | default "6379" -}}
{{- $ports := ternary (list "6379") list (hasSuffix "+sentinel" $scheme) -}}
{{- range splitList "," $hosts -}}
{{- $ports = append $ports (default $usual (trimPrefix ":" (regexFind ":[0-9]+$" .))) -}}
{{- end -}}
{{- $ports | uniq | sortAlpha | join " " -}}
{{- end -}}
{{- end -}}

{{- /* Where addresses come from that the NetworkPolicy does not follow, for the notes; empty where there are
none, or nothing is restricted. */ -}}
{{- define "chatbot.unseenPeers" -}}
{{- if and .Values.networkPolicy.enabled .Values.networkPolicy.egress.enabled -}}
{{- $unseen := list -}}
{{- if .Values.existingConfigMap -}}{{- $unseen = append $unseen "existingConfigMap" -}}{{- end -}}
{{- range .Values.extraEnv -}}
{{- if has .name (list "CHATBOT__STORE__URL" "CHATBOT__UPSTREAM__BASE_URL" "CHATBOT__TELEMETRY__OTLP_ENDPOINT" "OTEL_EXPORTER_OTLP_ENDPOINT" "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") -}}
{{- $unseen = append $unseen .name -}}
{{- end -}}
{{- end -}}
{{- if .Values.extraEnvFrom -}}{{- $unseen = append $unseen "extraEnvFrom" -}}{{- end -}}
{{- join ", " $unseen -}}
{{- end -}}
{{- end -}}
