{{/* Labels that every object of this chart carries. */}}
{{- define "istiod.labels" -}}
app.kubernetes.io/name: istiod
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: control-plane
app.kubernetes.io/part-of: ambit
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* The image: a full reference when the value has a slash, else hub/image:tag. The tag falls back to the chart's appVersion. */}}
{{- define "istiod.image" -}}
{{- if contains "/" .Values.image -}}
{{ .Values.image }}
{{- else -}}
{{ .Values.hub | default .Values.global.hub }}/{{ .Values.image }}:{{ .Values.tag | default .Values.global.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The image of waypoints and gateways, which istiod deploys. */}}
{{- define "istiod.waypointImage" -}}
{{- $w := .Values.global.waypoint }}
{{- if contains "/" $w.image -}}
{{ $w.image }}
{{- else -}}
{{ .Values.global.hub }}/{{ $w.image }}:{{ .Values.global.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The environment: the chart's variables, where env does not name them, then those of env. */}}
{{- define "istiod.env" -}}
{{- $all := list }}
{{- range include "istiod.ownEnv" . | fromYamlArray }}
{{- if not (hasKey $.Values.env .name) }}{{ $all = append $all . }}{{ end }}
{{- end }}
{{- range $name, $value := .Values.env }}
{{- $all = append $all (dict "name" $name "value" (toString $value)) }}
{{- end }}
{{- toYaml $all }}
{{- end }}

{{- define "istiod.ownEnv" -}}
- name: POD_NAME
  valueFrom: { fieldRef: { fieldPath: metadata.name } }
- name: POD_NAMESPACE
  valueFrom: { fieldRef: { fieldPath: metadata.namespace } }
- name: CLUSTER_ID
  value: {{ .Values.global.multiCluster.clusterName | default "Kubernetes" | quote }}
- name: NETWORK
  value: {{ .Values.global.network | quote }}
- name: TRUST_DOMAIN
  value: {{ .Values.meshConfig.trustDomain | default .Values.global.trustDomain | quote }}
- name: DOMAIN_SUFFIX
  value: {{ .Values.global.proxy.clusterDomain | quote }}
- name: ROOT_NAMESPACE
  value: {{ .Values.meshConfig.rootNamespace | default .Values.global.istioNamespace | quote }}
- name: CA_TRUSTED_NODE_ACCOUNTS
  value: {{ printf "%s/%s" (.Values.trustedZtunnelNamespace | default .Release.Namespace) (.Values.trustedZtunnelName | default "ztunnel") | quote }}
- name: WAYPOINT_BYPASS
  value: {{ .Values.waypointBypass | quote }}
- name: DEFAULT_WORKLOAD_CERT_TTL
  value: {{ .Values.workloadCertTTL | quote }}
- name: MAX_WORKLOAD_CERT_TTL
  value: {{ .Values.maxWorkloadCertTTL | quote }}
- name: WAYPOINT_IMAGE
  value: {{ include "istiod.waypointImage" . | quote }}
- name: WAYPOINT_IMAGE_PULL_POLICY
  value: {{ .Values.global.imagePullPolicy | quote }}
- name: WAYPOINT_IMAGE_PULL_SECRETS
  value: {{ join "," .Values.global.imagePullSecrets | quote }}
- name: LOG_LEVEL
  value: {{ .Values.global.logging.level | quote }}
- name: LOG_FORMAT
  value: {{ ternary "json" "text" .Values.global.logAsJson | quote }}
{{- end }}
