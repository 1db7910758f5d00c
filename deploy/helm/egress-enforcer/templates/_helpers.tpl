{{- define "egress-enforcer.labels" -}}
app.kubernetes.io/name: egress-enforcer
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* Not both: a tag beside a digest means nothing, and not every runtime takes it. */ -}}
{{- define "egress-enforcer.image" -}}
{{- with .Values.image }}
{{- .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* Pods of these two namespaces are no subjects of policies, unless a policy says so. */ -}}
{{- define "egress-enforcer.namespace" -}}
{{- if not (has .Release.Namespace (list "egress-enforcer" "kube-system")) }}
{{- fail "install into the namespace egress-enforcer (or kube-system): in any other one a policy could lock the agent's own pods down" }}
{{- end }}
{{- .Release.Namespace }}
{{- end }}
