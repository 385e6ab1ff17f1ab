{{- /* What the pods of `helm test` share: the server's image with other arguments, and what they show to a
server that wants TLS or a credential. */ -}}

{{- /* metadata of a test pod: (list $ "-test-health"). */ -}}
{{- define "chatbot.testMetadata" -}}
{{- $ := index . 0 -}}
name: {{ include "chatbot.fullname" $ }}{{ index . 1 }}
labels:
  {{- $labels := printf "%s\n%s" (include "chatbot.testSelectorLabels" $) (include "chatbot.sharedLabels" $) | fromYaml }}
  {{- toYaml (merge $labels $.Values.tests.podLabels) | nindent 2 }}
annotations:
  helm.sh/hook: test
  # A failed pod stays, for its log.
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
  {{- with merge (dict) $.Values.tests.podAnnotations $.Values.commonAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "chatbot.testPodSpec" -}}
{{ include "chatbot.podBasics" . }}
restartPolicy: Never
# A test that hangs is a test that failed.
activeDeadlineSeconds: 120
{{- end -}}

{{- /* A container of a test pod: (list $ "name" (list "health" ...) files), where files are those that it
mounts. */ -}}
{{- define "chatbot.testContainer" -}}
{{- $ := index . 0 -}}
- name: {{ index . 1 }}
  {{- include "chatbot.containerBasics" $ | nindent 2 }}
  args:
    {{- toYaml (index . 2) | nindent 4 }}
  resources:
    requests:
      cpu: 10m
      memory: 32Mi
    limits:
      memory: 128Mi
  {{- with index . 3 }}
  volumeMounts:
    {{- range . }}
    {{- include "chatbot.fileMount" .volume | nindent 4 }}
    {{- end }}
  {{- end }}
{{- end -}}

{{- define "chatbot.testVolumes" -}}
{{- range include "chatbot.testFiles" . | fromYamlArray }}
{{ include "chatbot.fileVolume" (list .volume .source .keys) }}
{{- end }}
{{- end -}}

{{- /* Not empty where clients have to show a certificate. Of a config file of somebody else's that is known
only by the certificate that the tests are given for it. */ -}}
{{- define "chatbot.mutualTls" -}}
{{- $told := and .Values.existingConfigMap .Values.tls.enabled .Values.tests.tls.clientSecret -}}
{{- if or .Values.tls.clientCA.existingSecret .Values.tls.clientCA.existingConfigMap (get (default dict .Values.config.tls) "client_ca_file") $told -}}mutual{{- end -}}
{{- end -}}

{{- /* What the tests lack to call the chatbot itself, as the notes say it; empty where they lack nothing. */ -}}
{{- define "chatbot.testsLack" -}}
{{- with .Values.tests -}}
{{- $trusted := or .tls.systemAuthorities .tls.ca.existingSecret .tls.ca.existingConfigMap (include "chatbot.tlsSecret" $) -}}
{{- $mutual := include "chatbot.mutualTls" $ -}}
{{- if and $.Values.tls.enabled (not $trusted) -}}
trust nobody who has signed the certificate: name the authorities
in tests.tls.ca, or set tests.tls.systemAuthorities
{{- else if and $mutual (not .tls.clientSecret) -}}
have no certificate to show: name a Secret with one in
tests.tls.clientSecret
{{- else if and $.Values.auth.enabled (not (or $mutual .token.existingSecret)) -}}
have no token to show: name a Secret with one in
tests.token.existingSecret
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The files that the tests call the chatbot with, where they lack nothing. */ -}}
{{- define "chatbot.testFiles" -}}
{{- $files := list -}}
{{- with .Values.tests -}}
{{- if $.Values.tls.enabled -}}
{{- if not .tls.systemAuthorities -}}
{{- $own := dict "existingSecret" (include "chatbot.tlsSecret" $) -}}
{{- $given := or .tls.ca.existingSecret .tls.ca.existingConfigMap -}}
{{- $files = append $files (dict "volume" "ca" "source" (ternary .tls.ca $own (not (empty $given))) "keys" (list (ternary .tls.ca.key "ca.crt" (not (empty $given))))) -}}
{{- end -}}
{{- if and (include "chatbot.mutualTls" $) .tls.clientSecret -}}
{{- $files = append $files (dict "volume" "client" "source" (dict "existingSecret" .tls.clientSecret) "keys" (list "tls.crt" "tls.key")) -}}
{{- end -}}
{{- end -}}
{{- if and $.Values.auth.enabled .token.existingSecret -}}
{{- $files = append $files (dict "volume" "token" "source" (pick .token "existingSecret") "keys" (list .token.key)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $files -}}
{{- end -}}

{{- /* The flags that go with those files, as a list. */ -}}
{{- define "chatbot.testFlags" -}}
{{- $flags := list -}}
{{- if .Values.tls.enabled -}}{{- $flags = append $flags "--tls" -}}{{- end -}}
{{- range include "chatbot.testFiles" . | fromYamlArray -}}
{{- $folder := include "chatbot.folder" .volume -}}
{{- if eq .volume "ca" -}}{{- $flags = concat $flags (list "--tls-ca" (printf "%s/%s" $folder (first .keys))) -}}
{{- else if eq .volume "client" -}}{{- $flags = concat $flags (list "--tls-cert" (printf "%s/tls.crt" $folder) "--tls-key" (printf "%s/tls.key" $folder)) -}}
{{- else -}}{{- $flags = concat $flags (list "--token-file" (printf "%s/%s" $folder (first .keys))) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.tls.enabled .Values.tests.tls.serverName -}}
{{- $flags = concat $flags (list "--tls-server-name" .Values.tests.tls.serverName) -}}
{{- end -}}
{{- toYaml $flags -}}
{{- end -}}
