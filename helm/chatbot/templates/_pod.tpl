{{- /* The one pod of the chart, and what the test pods share with it. */ -}}

{{- /* What every pod says about itself, tests included: no token, the restricted profile, and no
variables for each Service of the namespace (a Service named "chatbot" would add CHATBOT_PORT and
others, next to the server's own variables). */ -}}
{{- define "chatbot.podBasics" -}}
serviceAccountName: {{ include "chatbot.serviceAccountName" . }}
automountServiceAccountToken: {{ .Values.serviceAccount.automount }}
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "chatbot.containerBasics" -}}
image: {{ include "chatbot.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- end -}}

{{- /* A probe: (list $ "liveness"). The port is a number, because a gRPC probe takes no port name. */ -}}
{{- define "chatbot.probe" -}}
{{- $ := index . 0 -}}
{{- $probe := index $.Values.probes (index . 1) -}}
{{- if $probe.custom -}}
{{- toYaml $probe.custom -}}
{{- else -}}
grpc:
  port: {{ $.Values.ports.ops }}
  service: {{ $probe.service | quote }}
periodSeconds: {{ $probe.periodSeconds }}
timeoutSeconds: {{ $probe.timeoutSeconds }}
failureThreshold: {{ $probe.failureThreshold }}
{{- end -}}
{{- end -}}

{{- define "chatbot.podSpec" -}}
{{ include "chatbot.podBasics" . }}
terminationGracePeriodSeconds: {{ include "chatbot.gracePeriodSeconds" . }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{ toYaml . | nindent 4 | trim }}
    {{- if not (hasKey . "labelSelector") }}
    labelSelector:
      matchLabels:
        {{- include "chatbot.selectorLabels" $ | nindent 8 }}
    {{- end }}
  {{- end }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
containers:
  - name: chatbot
    {{- include "chatbot.containerBasics" . | nindent 4 }}
    env:
      # Not as a flag, so that `chatbot health` in the container reads the same file.
      - name: CHATBOT_CONFIG
        value: /etc/chatbot/chatbot.yaml
      {{- with .Values.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    ports:
      - name: grpc
        containerPort: {{ .Values.ports.grpc }}
        protocol: TCP
      - name: ops
        containerPort: {{ .Values.ports.ops }}
        protocol: TCP
    startupProbe:
      {{- include "chatbot.probe" (list . "startup") | nindent 6 }}
    livenessProbe:
      {{- include "chatbot.probe" (list . "liveness") | nindent 6 }}
    readinessProbe:
      {{- include "chatbot.probe" (list . "readiness") | nindent 6 }}
    resources:
      {{- toYaml .Values.resources | nindent 6 }}
    volumeMounts:
      # Folders, not single files: a file mounted by subPath never changes, and the server reloads
      # what does.
      - name: config
        mountPath: /etc/chatbot
        readOnly: true
      {{- if include "chatbot.knowledgeConfigMap" . }}
      - name: knowledge
        mountPath: /knowledge
        readOnly: true
      {{- end }}
      - name: data
        mountPath: /data
      {{- with .Values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: config
    configMap:
      name: {{ include "chatbot.fullname" . }}
  {{- with include "chatbot.knowledgeConfigMap" . }}
  - name: knowledge
    configMap:
      name: {{ . }}
  {{- end }}
  - name: data
    {{- if .Values.persistence.enabled }}
    persistentVolumeClaim:
      claimName: {{ include "chatbot.claimName" . }}
    {{- else }}
    emptyDir:
      sizeLimit: {{ .Values.persistence.emptyDirSizeLimit }}
    {{- end }}
  {{- with .Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- /* metadata of a test pod: (list $ "-test-health"). */ -}}
{{- define "chatbot.testMetadata" -}}
{{- $ := index . 0 -}}
name: {{ include "chatbot.fullname" $ }}{{ index . 1 }}
labels:
  {{- include "chatbot.testSelectorLabels" $ | nindent 2 }}
  {{- include "chatbot.sharedLabels" $ | nindent 2 }}
annotations:
  helm.sh/hook: test
  # A failed pod stays, for its log.
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
  {{- with $.Values.commonAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- /* A container of a test pod, which is the server's image with other arguments:
(list $ "name" (list "health" ...)). */ -}}
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
{{- end -}}

{{- define "chatbot.testPodSpec" -}}
{{ include "chatbot.podBasics" . }}
restartPolicy: Never
# A test that hangs is a test that failed.
activeDeadlineSeconds: 120
{{- end -}}
