{{- define "gateway.name" -}}
{{ .Values.name | default .Release.Name }}
{{- end }}

{{/* What selects the pods. Both may be set by labels, as with Istio's chart. */}}
{{- define "gateway.selectorLabels" -}}
app: {{ index .Values.labels "app" | default (include "gateway.name" .) | quote }}
istio: {{ index .Values.labels "istio" | default (include "gateway.name" . | trimPrefix "istio-") | quote }}
{{- end }}

{{/* Labels that every object of this chart carries. */}}
{{- define "gateway.labels" -}}
{{ include "gateway.selectorLabels" . }}
{{- range $key, $value := omit .Values.labels "app" "istio" }}
{{ $key }}: {{ $value | quote }}
{{- end }}
app.kubernetes.io/name: {{ include "gateway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: gateway
app.kubernetes.io/part-of: ambit
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "gateway.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "gateway.name" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end }}

{{/* The image: a full reference when the value has a slash, else hub/image:tag. The tag falls back to the chart's appVersion. */}}
{{- define "gateway.image" -}}
{{- if contains "/" .Values.image -}}
{{ .Values.image }}
{{- else -}}
{{ .Values.hub | default .Values.global.hub }}/{{ .Values.image }}:{{ .Values.tag | default .Values.global.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The environment: the chart's variables, where env does not name them, then those of env. */}}
{{- define "gateway.env" -}}
{{- $all := list }}
{{- range include "gateway.ownEnv" . | fromYamlArray }}
{{- if not (hasKey $.Values.env .name) }}{{ $all = append $all . }}{{ end }}
{{- end }}
{{- range $name, $value := .Values.env }}
{{- $all = append $all (dict "name" $name "value" (toString $value)) }}
{{- end }}
{{- toYaml $all }}
{{- end }}

{{- define "gateway.ownEnv" -}}
{{- $istiod := printf "istiod.%s.svc:15012" .Values.global.istioNamespace }}
- name: POD_NAME
  valueFrom: { fieldRef: { fieldPath: metadata.name } }
- name: POD_NAMESPACE
  valueFrom: { fieldRef: { fieldPath: metadata.namespace } }
- name: INSTANCE_IP
  valueFrom: { fieldRef: { fieldPath: status.podIP } }
- name: NODE_NAME
  valueFrom: { fieldRef: { fieldPath: spec.nodeName } }
- name: SERVICE_ACCOUNT
  valueFrom: { fieldRef: { fieldPath: spec.serviceAccountName } }
- name: CPU_LIMIT
  valueFrom: { resourceFieldRef: { containerName: istio-proxy, resource: limits.cpu, divisor: "1" } }
- name: MEMORY_LIMIT
  valueFrom: { resourceFieldRef: { containerName: istio-proxy, resource: limits.memory, divisor: "1" } }
- name: GATEWAY_NAME
  value: {{ include "gateway.name" . | quote }}
- name: XDS_ADDRESS
  value: {{ printf "https://%s" (.Values.xdsAddress | default $istiod | trimPrefix "https://") | quote }}
- name: TRUST_DOMAIN
  value: {{ .Values.global.trustDomain | quote }}
- name: CLUSTER_ID
  value: {{ .Values.global.multiCluster.clusterName | default "Kubernetes" | quote }}
- name: DOMAIN_SUFFIX
  value: {{ .Values.global.proxy.clusterDomain | quote }}
- name: NETWORK
  value: {{ .Values.global.network | quote }}
- name: TERMINATION_GRACE_PERIOD_SECONDS
  value: {{ .Values.terminationGracePeriodSeconds | quote }}
- name: LOG_LEVEL
  value: {{ .Values.global.logging.level | quote }}
- name: LOG_FORMAT
  value: {{ ternary "json" "text" .Values.global.logAsJson | quote }}
{{- end }}

{{/* How many pods there are at least. */}}
{{- define "gateway.replicas" -}}
{{- if eq .Values.kind "DaemonSet" -}}2
{{- else if .Values.autoscaling.enabled -}}{{ .Values.autoscaling.minReplicas }}
{{- else -}}{{ .Values.replicaCount | default 1 }}
{{- end -}}
{{- end }}
