{{/* The name of the FineTuneJob: a job's may have 40 characters. */}}
{{- define "cloister.readinessName" -}}
{{ include "cloister.fit" (list (printf "%s-readiness" (include "cloister.fullname" .)) 40) }}
{{- end }}

{{/* What `helm test` is asked to do, as JSON: see cloister_operator.readiness.plan. */}}
{{- define "cloister.readinessPlan" -}}
{{- $settings := include "cloister.settings" . | fromYaml -}}
{{- $storage := $settings.storage | default dict -}}
{{- $hosts := list (splitList ":" $settings.network.controlAddress | first) (splitList ":" $settings.network.canaryAddress | first) -}}
{{- with $storage.endpoint -}}
{{- $hosts = append $hosts (regexReplaceAll ":[0-9]+$" (urlParse .).host "" | trimPrefix "[" | trimSuffix "]") -}}
{{- end -}}
{{- $gpus := list -}}
{{- range $profile := $settings.profiles | default (dict "default" dict) -}}
{{- $gpus = append $gpus ($profile.gpuResource | default "nvidia.com/gpu") -}}
{{- end -}}
{{- $kuberay := (($settings.network.kuberay | default dict).podLabels) | default (dict "app.kubernetes.io/name" "kuberay-operator") -}}
{{- $queued := or .Values.prerequisites.kueue $settings.auxiliaryQueueName (hasKey .Values.readiness.job.labels "kueue.x-k8s.io/queue-name") -}}
{{- dict
  "inputs" (include "cloister.readinessInputs" . | fromYaml)
  "job" (include "cloister.readinessJob" . | fromYaml)
  "hostNames" $hosts
  "kueueNamespace" .Values.readiness.kueueNamespace
  "timeoutMinutes" .Values.readiness.timeoutMinutes
  "expected" (dict
    "gpuResources" ($gpus | uniq)
    "gpuOptional" .Values.readiness.gpuOptional
    "kuberayLabels" $kuberay
    "kueueRequired" ($queued | empty | not))
  | toJson -}}
{{- end }}

{{/* The Job that writes a tiny model and rows, with the trainer's image and the store as a job has them. */}}
{{- define "cloister.readinessInputs" -}}
{{- $settings := include "cloister.settings" . | fromYaml -}}
{{- $storage := $settings.storage | default dict -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ include "cloister.readinessName" . }}-inputs
  namespace: {{ include "cloister.readinessNamespace" . }}
  labels:
    {{- include "cloister.labels" (list . "readiness") | nindent 4 }}
    {{- with .Values.settings.auxiliaryQueueName }}
    kueue.x-k8s.io/queue-name: {{ . }}
    {{- end }}
spec:
  backoffLimit: 0
  ttlSecondsAfterFinished: 3600
  template:
    metadata:
      labels:
        {{- include "cloister.labels" (list . "readiness") | nindent 8 }}
        cloister.dev/store-client: "true"
    spec:
      restartPolicy: Never
      automountServiceAccountToken: false
      {{- include "cloister.podDefaults" . | nindent 6 }}
      containers:
      - name: inputs
        image: {{ $settings.images.trainer }}
        imagePullPolicy: {{ .Values.images.pullPolicy }}
        command: [python, -m, cloister_trainer.readiness, inputs]
        args:
        - {{ .Values.readiness.uri }}
        - --storage
        - {{ pick $storage "endpoint" "region" "pathStyle" | toJson | quote }}
        env:
        {{- include "cloister.storeEnvironment" (dict "secret" .Values.readiness.secretName) | nindent 8 }}
        {{- range $key := list "AWS_SESSION_TOKEN" "AWS_ENDPOINT_URL_S3" "AWS_REGION" }}
        - {name: {{ $key }}, valueFrom: {secretKeyRef: {name: {{ $.Values.readiness.secretName }}, key: {{ $key }}, optional: true}}}
        {{- end }}
        - {name: CLOISTER_STORAGE_CA, value: /etc/cloister-storage/ca.crt}
        {{- with $storage.ca }}
        - {name: CLOISTER_READINESS_CA, value: {{ toJson . }}}
        {{- end }}
        resources:
          requests: {cpu: 100m, memory: 1Gi}
          limits: {memory: 2Gi}
        {{- include "cloister.containerSecurity" . | nindent 8 }}
        volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: storage-ca, mountPath: /etc/cloister-storage, readOnly: true}
      volumes:
      - {name: tmp, emptyDir: {sizeLimit: 1Gi}}
      - name: storage-ca
        secret:
          secretName: {{ .Values.readiness.secretName }}
          items: [{key: ca.crt, path: ca.crt}]
          optional: true
{{- end }}

{{/* The FineTuneJob: 20 steps on CPUs, unless readiness.job says otherwise. */}}
{{- define "cloister.readinessJob" -}}
apiVersion: cloister.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: {{ include "cloister.readinessName" . }}
  namespace: {{ include "cloister.readinessNamespace" . }}
  labels:
    {{- include "cloister.labels" (list . "readiness") | nindent 4 }}
    {{- with .Values.readiness.job.labels }}{{ toYaml . | nindent 4 }}{{ end }}
{{- $spec := include "cloister.readinessSpec" . | fromYaml }}
spec: {{- mustMergeOverwrite $spec (deepCopy .Values.readiness.job.spec) | toYaml | nindent 2 }}
{{- end }}

{{- define "cloister.readinessSpec" -}}
model: {uri: {{ .Values.readiness.uri }}/model}
dataset: {uri: {{ .Values.readiness.uri }}/rows.jsonl, validation: {fraction: 0}}
output: {uri: {{ .Values.readiness.uri }}/adapter, ifExists: Replace}
lora: {rank: 4}
training: {maxSteps: 20, globalBatchSize: 4}
distribution: {workers: 1, gpusPerWorker: 0}
storage: {secretName: {{ .Values.readiness.secretName }}}
pods:
  {{- range $role := list "prepare" "head" "worker" "publish" }}
  {{ $role }}: {resources: {requests: {cpu: 250m, memory: 1Gi}, limits: {memory: 3Gi}}}
  {{- end }}
{{- end }}
