{{/* Labels that every object of this chart carries. */}}
{{- define "ztunnel.labels" -}}
app.kubernetes.io/name: ztunnel
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: node-proxy
app.kubernetes.io/part-of: ambit
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* The image: a full reference when the value has a slash, else hub/image:tag. The tag falls back to the chart's appVersion. */}}
{{- define "ztunnel.image" -}}
{{- if contains "/" .Values.image -}}
{{ .Values.image }}
{{- else -}}
{{ .Values.hub | default .Values.global.hub }}/{{ .Values.image }}:{{ .Values.tag | default .Values.global.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The environment: the chart's variables, where env does not name them, then those of env. */}}
{{- define "ztunnel.env" -}}
{{- $all := list }}
{{- range include "ztunnel.ownEnv" . | fromYamlArray }}
{{- if not (hasKey $.Values.env .name) }}{{ $all = append $all . }}{{ end }}
{{- end }}
{{- range $name, $value := .Values.env }}
{{- $all = append $all (dict "name" $name "value" (toString $value)) }}
{{- end }}
{{- toYaml $all }}
{{- end }}

{{- define "ztunnel.ownEnv" -}}
{{- $istiod := printf "istiod.%s.svc:15012" .Values.global.istioNamespace }}
- name: XDS_ADDRESS
  value: {{ printf "https://%s" (.Values.xdsAddress | default $istiod | trimPrefix "https://") | quote }}
- name: CA_ADDRESS
  value: {{ printf "https://%s" (.Values.caAddress | default $istiod | trimPrefix "https://") | quote }}
- name: XDS_ROOT_CA
  value: /var/run/secrets/istio/root-cert.pem
- name: CA_ROOT_CA
  value: /var/run/secrets/istio/root-cert.pem
- name: CLUSTER_ID
  value: {{ .Values.multiCluster.clusterName | default .Values.global.multiCluster.clusterName | default "Kubernetes" | quote }}
- name: NETWORK
  value: {{ .Values.network | default .Values.global.network | quote }}
- name: TRUST_DOMAIN
  value: {{ .Values.meshConfig.trustDomain | default .Values.global.trustDomain | quote }}
- name: SECRET_TTL
  value: {{ .Values.workloadCertTTL | quote }}
- name: TERMINATION_GRACE_PERIOD_SECONDS
  value: {{ .Values.terminationGracePeriodSeconds | quote }}
- name: LOG_LEVEL
  value: {{ .Values.logLevel | default .Values.global.logging.level | quote }}
- name: LOG_FORMAT
  value: {{ ternary "json" "text" .Values.global.logAsJson | quote }}
- name: POD_NAME
  valueFrom: { fieldRef: { fieldPath: metadata.name } }
- name: POD_NAMESPACE
  valueFrom: { fieldRef: { fieldPath: metadata.namespace } }
- name: NODE_NAME
  valueFrom: { fieldRef: { fieldPath: spec.nodeName } }
- name: INSTANCE_IP
  valueFrom: { fieldRef: { fieldPath: status.podIP } }
- name: SERVICE_ACCOUNT
  valueFrom: { fieldRef: { fieldPath: spec.serviceAccountName } }
{{- range $name, $value := .Values.meshConfig.defaultConfig.proxyMetadata }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
