{{- /* Names and labels. Fifty characters are kept of a name, for the longest suffix that an object
adds to it ("-test-health") has to fit into the 63 of a DNS label. */ -}}

{{- define "chatbot.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "chatbot.fullname" -}}
{{- $name := include "chatbot.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* What a Deployment may never change: nothing else belongs in here. */ -}}
{{- define "chatbot.selectorLabels" -}}
app.kubernetes.io/name: {{ include "chatbot.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- /* The test pods have a name of their own, or the Services would send traffic to them. */ -}}
{{- define "chatbot.testSelectorLabels" -}}
app.kubernetes.io/name: {{ include "chatbot.name" . }}-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "chatbot.sharedLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "chatbot.labels" -}}
{{ include "chatbot.selectorLabels" . }}
{{ include "chatbot.sharedLabels" . }}
{{- end -}}

{{- /* Without the chart's version, so that a new chart which changes nothing restarts nothing. */ -}}
{{- define "chatbot.podLabels" -}}
{{ include "chatbot.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- with merge (dict) .Values.podLabels .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* metadata of an object: (list $ "-suffix" annotations), and labels of its own after them. */ -}}
{{- define "chatbot.metadata" -}}
{{- $ := index . 0 -}}
name: {{ include "chatbot.fullname" $ }}{{ index . 1 }}
labels:
  {{- $labels := include "chatbot.labels" $ | fromYaml }}
  {{- if gt (len .) 3 }}
  {{- $labels = mergeOverwrite $labels (deepCopy (index . 3)) }}
  {{- end }}
  {{- toYaml $labels | nindent 2 }}
{{- with merge (dict) (index . 2) $.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "chatbot.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "chatbot.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "chatbot.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end -}}
{{- .Values.image.repository -}}
{{- if .Values.image.digest -}}
@{{ .Values.image.digest }}
{{- else -}}
:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- /* The application protocol of the gRPC port; empty where it is left out. */ -}}
{{- define "chatbot.appProtocol" -}}
{{- if not (kindIs "invalid" .Values.service.appProtocol) -}}
{{- default (ternary "https" "kubernetes.io/h2c" .Values.tls.enabled) .Values.service.appProtocol -}}
{{- end -}}
{{- end -}}

{{- define "chatbot.claimName" -}}
{{- default (include "chatbot.fullname" .) .Values.persistence.existingClaim -}}
{{- end -}}

{{- /* Empty when the knowledge is the sample that is built in. */ -}}
{{- define "chatbot.knowledgeConfigMap" -}}
{{- if .Values.knowledge.jsonl -}}
{{- include "chatbot.fullname" . }}-knowledge
{{- else -}}
{{- .Values.knowledge.existingConfigMap -}}
{{- end -}}
{{- end -}}
