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
{{- with .Values.initContainers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - name: chatbot
    {{- include "chatbot.containerBasics" . | nindent 4 }}
    {{- with .Values.extraArgs }}
    args:
      - serve
      {{- toYaml . | nindent 6 }}
    {{- end }}
    env:
      # Not as a flag, so that `chatbot health` in the container reads the same file.
      - name: CHATBOT_CONFIG
        value: /etc/chatbot/chatbot.yaml
      {{- if .Values.existingConfigMap }}
      {{- range $section, $keys := include "chatbot.derived" . | fromYaml }}
      {{- range $key, $setting := $keys }}
      - name: {{ include "chatbot.variable" (list $section $key) }}
        value: {{ $setting.value | toString | quote }}
      {{- end }}
      {{- end }}
      {{- end }}
      {{- if .Values.otel.endpoint }}
      {{- include "chatbot.podIdentity" . | trim | nindent 6 }}
      {{- end }}
      {{- with .Values.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with .Values.extraEnvFrom }}
    envFrom:
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
    {{- with .Values.shutdown.preStopSleepSeconds }}
    lifecycle:
      preStop:
        # The kubelet's own: there is no program in the image that could sleep.
        sleep:
          seconds: {{ . }}
    {{- end }}
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
      {{- range include "chatbot.files" . | fromYamlArray }}
      {{- include "chatbot.fileMount" .volume | nindent 6 }}
      {{- end }}
      {{- if not .Values.redis.url }}
      - name: data
        mountPath: /data
      {{- end }}
      {{- with .Values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
  {{- with .Values.sidecars }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumes:
  - name: config
    configMap:
      name: {{ default (include "chatbot.fullname" .) .Values.existingConfigMap }}
  {{- with include "chatbot.knowledgeConfigMap" . }}
  - name: knowledge
    configMap:
      name: {{ . }}
  {{- end }}
  {{- range include "chatbot.files" . | fromYamlArray }}
  {{- include "chatbot.fileVolume" (list .volume .source (values .settings | sortAlpha)) | nindent 2 }}
  {{- end }}
  {{- if not .Values.redis.url }}
  - name: data
    {{- if .Values.persistence.enabled }}
    persistentVolumeClaim:
      claimName: {{ include "chatbot.claimName" . }}
    {{- else }}
    emptyDir:
      sizeLimit: {{ .Values.persistence.emptyDirSizeLimit }}
    {{- end }}
  {{- end }}
  {{- with .Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- /* Who the pod is, for what it sends to a collector. A variable can only name those before it. */ -}}
{{- define "chatbot.podIdentity" -}}
{{- $fields := list (list "POD_NAME" "metadata.name") (list "POD_NAMESPACE" "metadata.namespace") (list "POD_UID" "metadata.uid") (list "NODE_NAME" "spec.nodeName") -}}
{{- range $fields }}
- name: {{ index . 0 }}
  valueFrom:
    fieldRef:
      fieldPath: {{ index . 1 }}
{{- end }}
{{- with .Values.otel.serviceName }}
- name: OTEL_SERVICE_NAME
  value: {{ . | quote }}
{{- end }}
{{- $attributes := dict
  "k8s.namespace.name" "$(POD_NAMESPACE)"
  "k8s.pod.name" "$(POD_NAME)"
  "k8s.pod.uid" "$(POD_UID)"
  "k8s.node.name" "$(NODE_NAME)"
  "k8s.deployment.name" (include "chatbot.fullname" .)
  "k8s.container.name" "chatbot"
  "service.namespace" "$(POD_NAMESPACE)"
  "service.instance.id" "$(POD_NAMESPACE).$(POD_NAME).chatbot"
-}}
{{- $pairs := list -}}
{{- range $name, $value := mergeOverwrite $attributes (deepCopy .Values.otel.resourceAttributes) -}}
{{- $pairs = append $pairs (printf "%s=%s" $name $value) -}}
{{- end }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: {{ join "," $pairs | quote }}
{{- end -}}
