{{- /* The server's config file: the `config` of the values between what the chart suggests (the
store on the /data volume) and what it knows better (ports, drain times, the knowledge file).
_validate.tpl has made sure that nothing which is known better was asked for. */ -}}
{{- define "chatbot.config" -}}
{{- $suggested := dict "store" (dict "url" "redb:/data/chatbot.redb") -}}
{{- $known := dict
  "server" (dict
    "address" (printf "%s:%d" .Values.listenAddress (int .Values.ports.grpc))
    "drain_delay" (printf "%ds" (int .Values.shutdown.drainDelaySeconds))
    "drain_grace" (printf "%ds" (int .Values.shutdown.drainGraceSeconds)))
  "ops" (dict "address" (printf "%s:%d" .Values.listenAddress (int .Values.ports.ops))) -}}
{{- if include "chatbot.knowledgeConfigMap" . -}}
{{- $_ := set $known "knowledge" (dict "path" (printf "/knowledge/%s" .Values.knowledge.key)) -}}
{{- end -}}
{{- toYaml (mergeOverwrite $suggested (deepCopy .Values.config) $known) -}}
{{- end -}}

{{- /* Seconds from SIGTERM to SIGKILL: what the server may take by its own deadlines, and some. */ -}}
{{- define "chatbot.gracePeriodSeconds" -}}
{{- $drain := add .Values.shutdown.drainDelaySeconds .Values.shutdown.drainGraceSeconds -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{- add $drain 10 -}}
{{- else -}}
{{- int .Values.terminationGracePeriodSeconds -}}
{{- end -}}
{{- end -}}
