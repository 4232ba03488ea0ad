{{/* Labels that every object of this chart carries. */}}
{{- define "cni.labels" -}}
app.kubernetes.io/name: istio-cni
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: node-agent
app.kubernetes.io/part-of: ambit
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* The image: a full reference when the value has a slash, else hub/image:tag. The tag falls back to the chart's appVersion. */}}
{{- define "cni.image" -}}
{{- if contains "/" .Values.image -}}
{{ .Values.image }}
{{- else -}}
{{ .Values.hub | default .Values.global.hub }}/{{ .Values.image }}:{{ .Values.tag | default .Values.global.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The environment: the chart's variables, where env does not name them, then those of env. */}}
{{- define "cni.env" -}}
{{- $all := list }}
{{- range include "cni.ownEnv" . | fromYamlArray }}
{{- if not (hasKey $.Values.env .name) }}{{ $all = append $all . }}{{ end }}
{{- end }}
{{- range $name, $value := .Values.env }}
{{- $all = append $all (dict "name" $name "value" (toString $value)) }}
{{- end }}
{{- toYaml $all }}
{{- end }}

{{- define "cni.ownEnv" -}}
- name: NODE_NAME
  valueFrom: { fieldRef: { fieldPath: spec.nodeName } }
- name: POD_NAMESPACE
  valueFrom: { fieldRef: { fieldPath: metadata.namespace } }
- name: EXCLUDE_NAMESPACES
  value: {{ join "," .Values.excludeNamespaces | quote }}
- name: CNI_BIN_DIR
  value: /host/opt/cni/bin
- name: CNI_CONF_DIR
  value: /host/etc/cni/net.d
{{- with .Values.cniConfFileName }}
- name: CNI_CONF_NAME
  value: {{ . | quote }}
{{- end }}
- name: NETNS_DIR
  value: /host/var/run/netns
- name: HOST_PROC
  value: /host/proc
- name: BPF_DIR
  value: {{ .Values.ambient.bpfDir | quote }}
- name: REDIRECT_MODE
  value: {{ .Values.ambient.redirectMode | quote }}
- name: LOG_LEVEL
  value: {{ .Values.logging.level | default .Values.global.logging.level | quote }}
- name: LOG_FORMAT
  value: {{ ternary "json" "text" .Values.global.logAsJson | quote }}
{{- end }}
