{{/* A name of at most so many characters: (list $name 63). A longer one ends in its hash, so that no two are alike. */}}
{{- define "cloister.fit" -}}
{{- $name := index . 0 -}}
{{- $most := index . 1 | int -}}
{{- if gt (len $name) $most -}}
{{ printf "%s-%s" ($name | trunc (sub $most 9 | int) | trimSuffix "-") ($name | sha256sum | trunc 8) }}
{{- else -}}
{{ $name }}
{{- end -}}
{{- end }}

{{/* Names of everything that the release makes begin with this. */}}
{{- define "cloister.fullname" -}}
{{- $name := contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) -}}
{{ include "cloister.fit" (list $name 40) }}
{{- end }}

{{/* The name of what a hook makes in any namespace: (list $ "readiness"). A release of this name elsewhere has another. */}}
{{- define "cloister.hookName" -}}
{{- $root := index . 0 -}}
{{- $home := $root.Release.Namespace | sha256sum | trunc 8 -}}
{{ include "cloister.fit" (list (printf "%s-%s-%s" (include "cloister.fullname" $root) (index . 1) $home) 63) }}
{{- end }}

{{/* The name of an operator's Deployment and ServiceAccount: (list $ namespace), "" for all namespaces. */}}
{{- define "cloister.operatorName" -}}
{{- $name := printf "%s-operator" (include "cloister.fullname" (index . 0)) -}}
{{ include "cloister.fit" (list (index . 1 | empty | ternary $name (printf "%s-%s" $name (index . 1))) 63) }}
{{- end }}

{{/* Labels by which pods of a component ("operator", "store", …) are found: (list $ component). They never change. */}}
{{- define "cloister.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: cloister-{{ index . 1 }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- end }}

{{/* All labels of a component's objects: (list $ component). */}}
{{- define "cloister.labels" -}}
{{- $root := index . 0 -}}
{{ include "cloister.selectorLabels" . }}
app.kubernetes.io/part-of: cloister
app.kubernetes.io/version: {{ $root.Chart.AppVersion | replace "+" "_" | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* An image's whole name: (list $ "operator"). A digest wins over a tag. */}}
{{- define "cloister.image" -}}
{{- $root := index . 0 -}}
{{- $image := index $root.Values.images (index . 1) -}}
{{- $registry := $image.registry | default $root.Values.images.registry | trimSuffix "/" -}}
{{- if not $registry }}{{ fail "images.registry is missing: name the registry that holds the images cloister/operator, cloister/trainer and cloister/store (docs/install.md), for example --set images.registry=registry.internal:5000." }}{{ end -}}
{{- if $image.digest -}}
{{ printf "%s/%s@%s" $registry $image.repository $image.digest }}
{{- else -}}
{{ printf "%s/%s:%s" $registry $image.repository ($image.tag | default $root.Chart.AppVersion) }}
{{- end -}}
{{- end }}

{{/* What every pod of the chart has: the pull secrets, and nothing that Pod Security `restricted` forbids. */}}
{{- define "cloister.podDefaults" -}}
enableServiceLinks: false
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "cloister.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Where pods go: a map with nodeSelector, tolerations, affinity and priorityClassName. */}}
{{- define "cloister.placement" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- range $field := list "nodeSelector" "tolerations" "affinity" }}
{{- with index $ $field }}
{{ $field }}: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* The namespace of the readiness job. */}}
{{- define "cloister.readinessNamespace" -}}
{{- .Values.readiness.namespace | default (first (append .Values.operator.namespaces .Release.Namespace)) -}}
{{- end }}

{{/* A peer of the settings, as a NetworkPolicy writes it. */}}
{{- define "cloister.peer" -}}
{{- if .cidr -}}
- ipBlock: {cidr: {{ .cidr }}}
{{- else -}}
{{- $selectors := dict -}}
{{- range $selector, $labels := dict "namespaceSelector" .namespaceLabels "podSelector" .podLabels -}}
{{- if not (kindIs "invalid" $labels) -}}
{{- $_ := set $selectors $selector ($labels | empty | ternary dict (dict "matchLabels" $labels)) -}}
{{- end -}}
{{- end -}}
- {{ toJson $selectors }}
{{- end -}}
{{- end }}

{{/* Annotations of a hook, made anew each time: (list "pre-install,pre-upgrade" "-5"). Jobs that fail stay to be read. */}}
{{- define "cloister.hook" -}}
helm.sh/hook: {{ index . 0 }}
helm.sh/hook-weight: {{ index . 1 | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/* Lets helm print what a hook's Job said when it fails. */}}
{{- define "cloister.hookLog" -}}
helm.sh/hook-output-log-policy: hook-failed
{{- end }}
