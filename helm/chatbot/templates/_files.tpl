{{- /* The files that come from Secrets and ConfigMaps of somebody else's. Each is mounted as a folder of
its own, for a file mounted by subPath never changes and the server reloads most of them. From this one
list come the volumes, their mounts, the settings that name the files, and what the chart refuses. */ -}}

{{- define "chatbot.files" -}}
{{- $v := .Values -}}
{{- $all := list
  (dict "volume" "redis-password" "value" "redis" "source" $v.redis "settings" (dict "store.password_file" $v.redis.key))
  (dict "volume" "redis-ca" "value" "redis.ca" "source" $v.redis.ca "settings" (dict "store.ca_file" $v.redis.ca.key))
  (dict "volume" "tls" "value" "tls" "source" (dict "existingSecret" (include "chatbot.tlsSecret" .)) "settings" (dict "tls.cert_file" "tls.crt" "tls.key_file" "tls.key"))
  (dict "volume" "client-ca" "value" "tls.clientCA" "source" $v.tls.clientCA "settings" (dict "tls.client_ca_file" $v.tls.clientCA.key))
  (dict "volume" "tokens" "value" "auth" "source" $v.auth "settings" (dict "auth.tokens_file" $v.auth.key))
  (dict "volume" "jwks" "value" "auth.jwks" "source" $v.auth.jwks "settings" (dict "auth.jwks_file" $v.auth.jwks.key))
  (dict "volume" "upstream-key" "value" "upstream" "source" $v.upstream "settings" (dict "upstream.api_key_file" $v.upstream.key))
  (dict "volume" "upstream-ca" "value" "upstream.ca" "source" $v.upstream.ca "settings" (dict "upstream.ca_file" $v.upstream.ca.key))
-}}
{{- $given := list -}}
{{- range $all -}}
{{- if or .source.existingSecret .source.existingConfigMap -}}
{{- $given = append $given (merge (dict "source" (pick .source "existingSecret" "existingConfigMap")) .) -}}
{{- end -}}
{{- end -}}
{{- toYaml $given -}}
{{- end -}}

{{- /* The Secret with the server's certificate; empty where TLS is off or its files come from elsewhere. */ -}}
{{- define "chatbot.tlsSecret" -}}
{{- if .Values.tls.certManager.create -}}
{{- include "chatbot.fullname" . }}-tls
{{- else -}}
{{- .Values.tls.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "chatbot.folder" -}}
/secrets/{{ . }}
{{- end -}}

{{- /* A volume of some keys of a Secret or ConfigMap: (list "name" source (list "key")). A key that is
not there keeps the pod from starting, with an event that names it. The group is the pod's fsGroup. */ -}}
{{- define "chatbot.fileVolume" -}}
{{- $source := index . 1 -}}
- name: {{ index . 0 }}
  {{- if $source.existingSecret }}
  secret:
    secretName: {{ $source.existingSecret }}
    defaultMode: 0440
  {{- else }}
  configMap:
    name: {{ $source.existingConfigMap }}
  {{- end }}
    items:
      {{- range index . 2 }}
      - key: {{ . }}
        path: {{ . }}
      {{- end }}
{{- end -}}

{{- define "chatbot.fileMount" -}}
- name: {{ . }}
  mountPath: {{ include "chatbot.folder" . }}
  readOnly: true
{{- end -}}
