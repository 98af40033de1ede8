{{/* The Secret with the store's identities and its administrator's keys. */}}
{{- define "cloister.storeSecret" -}}
{{- .Values.store.existingSecret | default (printf "%s-store" (include "cloister.fullname" .)) -}}
{{- end }}

{{/* Everybody who gets keys, as a JSON list: the tenants, and the readiness job's namespace. */}}
{{- define "cloister.storeTenants" -}}
{{- $readiness := include "cloister.readinessNamespace" . -}}
{{- $trial := printf "%s/*" (trimPrefix "s3://" .Values.readiness.uri) -}}
{{- $tenants := list -}}
{{- $namespaces := list -}}
{{- range .Values.store.tenants -}}
{{- $namespaces = append $namespaces .namespace -}}
{{- $write := .write | default list -}}
{{- if eq .namespace $readiness -}}
{{- $write = append $write $trial | uniq -}}
{{- end -}}
{{- $tenants = append $tenants (dict "namespace" .namespace "secret" "cloister-storage" "read" (.read | default list) "write" $write) -}}
{{- end -}}
{{- if not (has $readiness $namespaces) -}}
{{- $runs := printf "cloister-runs/%s/*" $readiness -}}
{{- $tenants = append $tenants (dict "namespace" $readiness "secret" .Values.readiness.secretName "read" list "write" (list $trial $runs)) -}}
{{- end -}}
{{- toJson $tenants -}}
{{- end }}

{{/* Environment of a container that uses the store with a Secret's keys: (dict "secret" name). */}}
{{- define "cloister.storeEnvironment" -}}
- {name: HOME, value: /tmp}
{{- range $key := list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
- {name: {{ $key }}, valueFrom: {secretKeyRef: {name: {{ $.secret }}, key: {{ $key }}}}}
{{- end }}
{{- end }}
