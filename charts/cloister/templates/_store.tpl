{{/* The Secret with the store's identities and its administrator's keys. */}}
{{- define "cloister.storeSecret" -}}
{{- .Values.store.existingSecret | default (printf "%s-store" (include "cloister.fullname" .)) -}}
{{- end }}

{{/* Everybody who gets keys, as a JSON list: the tenants, and the readiness job's namespace. */}}
{{- define "cloister.storeTenants" -}}
{{- $readiness := include "cloister.readinessNamespace" . -}}
{{- $runs := ((.Values.settings.storage | default dict).runUri) | default "s3://cloister-runs/{namespace}" -}}
{{- $trial := list -}}
{{- range list .Values.readiness.uri (replace "{namespace}" $readiness $runs) -}}
{{- $trial = append $trial (printf "%s/*" (trimPrefix "s3://" . | trimSuffix "/")) -}}
{{- end -}}
{{- $tenants := list -}}
{{- $namespaces := list -}}
{{- range .Values.store.tenants -}}
{{- $namespaces = append $namespaces .namespace -}}
{{- $write := .write | default list -}}
{{- if eq .namespace $readiness -}}
{{- $write = concat $write $trial | uniq -}}
{{- end -}}
{{- $tenants = append $tenants (dict "namespace" .namespace "secret" "cloister-storage" "read" (.read | default list) "write" $write) -}}
{{- end -}}
{{- if not (has $readiness $namespaces) -}}
{{- $tenants = append $tenants (dict "namespace" $readiness "secret" .Values.readiness.secretName "read" list "write" $trial) -}}
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
