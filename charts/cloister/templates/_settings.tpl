{{/* The administrator's settings: what the chart knows, under what `settings` says. */}}
{{- define "cloister.settings" -}}
{{- $name := include "cloister.fullname" . -}}
{{- $own := dict "kubernetes.io/metadata.name" .Release.Namespace -}}
{{- $operator := include "cloister.selectorLabels" (list . "operator") | fromYaml -}}
{{- $network := dict
  "controlAddress" (printf "%s-control.%s.svc:8444" $name .Release.Namespace)
  "canaryAddress" (printf "%s-canary.%s.svc:8445" $name .Release.Namespace)
  "operator" (dict "namespaceLabels" $own "podLabels" $operator "ports" (list 8444)) -}}
{{- if ne .Values.monitoring.scrape "None" -}}
{{- $_ := set $network "prometheus" (include "cloister.prometheus" . | fromYaml) -}}
{{- end -}}
{{- /* A peer is taken whole: labels of two of them together, or labels beside a cidr, would match nothing. */ -}}
{{- range $peer, $_ := pick (.Values.settings.network | default dict) "operator" "prometheus" -}}
{{- $_ := unset $network $peer -}}
{{- end -}}
{{- $storage := dict -}}
{{- if .Values.store.enabled -}}
{{- $store := include "cloister.selectorLabels" (list . "store") | fromYaml -}}
{{- $_ := set $storage "endpoint" (include "cloister.storeEndpoint" .) -}}
{{- $_ := set $storage "peers" (list (dict "namespaceLabels" $own "podLabels" $store "ports" (list 8333))) -}}
{{- end -}}
{{- with .Values.caBundle -}}
{{- $_ := set $storage "ca" . -}}
{{- end -}}
{{- $images := dict "trainer" (include "cloister.image" (list . "trainer")) -}}
{{- with .Values.images.pullSecrets -}}
{{- $_ := set $images "pullSecrets" . -}}
{{- end -}}
{{- $known := dict "images" $images "network" $network -}}
{{- if $storage -}}
{{- $_ := set $known "storage" $storage -}}
{{- end -}}
{{- toYaml (mustMergeOverwrite $known (deepCopy .Values.settings)) -}}
{{- end }}

{{/* Where Prometheus runs. Its defaults stand here, because Helm would merge them with what the values say. */}}
{{- define "cloister.prometheus" -}}
{{- $default := dict
  "namespaceLabels" (dict "kubernetes.io/metadata.name" "monitoring")
  "podLabels" (dict "app.kubernetes.io/name" "prometheus") -}}
{{- .Values.monitoring.prometheus | default $default | toYaml -}}
{{- end }}

{{- define "cloister.storeEndpoint" -}}
http://{{ include "cloister.fullname" . }}-store.{{ .Release.Namespace }}.svc:8333
{{- end }}

{{/* What the operator takes for network.dns when the settings say nothing. */}}
{{- define "cloister.defaultDns" -}}
- {namespaceLabels: {kubernetes.io/metadata.name: kube-system}, podLabels: {k8s-app: kube-dns}, ports: [53]}
{{- end }}
