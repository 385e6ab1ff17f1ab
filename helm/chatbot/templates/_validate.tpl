{{- /* What the schema cannot say: values that are fine one by one and wrong together. Every problem
is reported in one go. */ -}}
{{- define "chatbot.validate" -}}
{{- $problems := list -}}

{{- if eq (int .Values.ports.grpc) (int .Values.ports.ops) -}}
{{- $problems = append $problems (printf "ports.grpc and ports.ops are both %d: the kubelet's probes need a port of their own." (int .Values.ports.ops)) -}}
{{- end -}}

{{- if gt (int .Values.replicaCount) 1 -}}
{{- if .Values.persistence.enabled -}}
{{- $problems = append $problems (printf "replicaCount is %d with persistence.enabled: the store locks its file, so only one pod can use the volume. Set replicaCount to 1, or persistence.enabled to false." (int .Values.replicaCount)) -}}
{{- else if not .Values.acceptIndependentReplicas -}}
{{- $problems = append $problems (printf "replicaCount is %d, but each replica would have its own taught knowledge: what one pod is taught, the others do not know. Set replicaCount to 1, or acceptIndependentReplicas to true if that is fine." (int .Values.replicaCount)) -}}
{{- end -}}
{{- end -}}

{{- $strategy := default "" .Values.strategy.type -}}
{{- if and .Values.persistence.enabled .Values.strategy (ne $strategy "Recreate") -}}
{{- $problems = append $problems "strategy is not Recreate with persistence.enabled: a rolling update starts the new pod while the old one still locks the store's file, so the new one can never start. Leave strategy empty." -}}
{{- end -}}

{{- $drain := add .Values.shutdown.drainDelaySeconds .Values.shutdown.drainGraceSeconds -}}
{{- $grace := int (include "chatbot.gracePeriodSeconds" .) -}}
{{- if lt $grace (int (add $drain 10)) -}}
{{- $problems = append $problems (printf "terminationGracePeriodSeconds is %d, but the server may take %d: shutdown.drainDelaySeconds (%d) + shutdown.drainGraceSeconds (%d) + 10 for its tasks, its store and its last traces. The kubelet would kill it while it drains. Raise it to at least %d, or leave it unset." $grace (int (add $drain 10)) (int .Values.shutdown.drainDelaySeconds) (int .Values.shutdown.drainGraceSeconds) (int (add $drain 10))) -}}
{{- end -}}

{{- range $section, $keys := dict "server" (dict "address" "ports.grpc and listenAddress" "drain_delay" "shutdown.drainDelaySeconds" "drain_grace" "shutdown.drainGraceSeconds") "ops" (dict "address" "ports.ops and listenAddress") -}}
{{- range $key, $instead := $keys -}}
{{- if hasKey (default dict (index $.Values.config $section)) $key -}}
{{- $problems = append $problems (printf "config.%s.%s is set, but the chart derives it: set %s instead, which the probes and the Services follow." $section $key $instead) -}}
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

{{- $taken := dict "CHATBOT_CONFIG" "the chart sets it, to the file made of config" "CHATBOT__SERVER__ADDRESS" "set ports.grpc instead, which the rest of the chart follows" "CHATBOT__OPS__ADDRESS" "set ports.ops instead, which the rest of the chart follows" "CHATBOT__SERVER__DRAIN_DELAY" "set shutdown.drainDelaySeconds instead, which the rest of the chart follows" "CHATBOT__SERVER__DRAIN_GRACE" "set shutdown.drainGraceSeconds instead, which the rest of the chart follows" -}}
{{- range .Values.extraEnv -}}
{{- if hasKey $taken .name -}}
{{- $problems = append $problems (printf "extraEnv has %s: %s." .name (get $taken .name)) -}}
{{- end -}}
{{- $_ := set $taken .name "it is there twice, and the API server rejects that" -}}
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
