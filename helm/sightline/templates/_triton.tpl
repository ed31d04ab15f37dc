{{/* Triton beside the scorer (sidecar) or on its own (separate): the same container and repository. */}}

{{/* The scorer's models. Takes values (the scorer's). */}}
{{- define "sightline.clips" -}}
{{- .values.models | default (dict "default" (dict "source" "ViT-L-14-336" "pretrained" "openai")) | toYaml -}}
{{- end -}}

{{/* Names in `models` that the scorer's models use, each once. */}}
{{- define "sightline.scorerModels" -}}
{{- $names := list -}}
{{- range include "sightline.clips" . | fromYaml }}{{- if .model }}{{- $names = append $names .model -}}{{- end -}}{{- end -}}
{{ $names | uniq | toYaml }}
{{- end -}}

{{/* Init container that builds Triton's model repository from the models, with the scorer's own code and image. */}}
{{- define "sightline.tritonRepository" -}}
- name: build-repository
  image: {{ include "sightline.image" (dict "root" .root "image" .root.Values.scorer.image) }}
  imagePullPolicy: {{ .root.Values.global.imagePullPolicy }}
  command: [python, -m, sightline_scorer.triton.repository]
  args:
    - --config
    - /etc/sightline/settings.yaml
    - --copy-weights
    - /repository
  env:
    {{- include "sightline.env" (dict "root" .root "values" .values) | trim | nindent 4 }}
  securityContext:
    {{- include "sightline.containerSecurity" . | nindent 4 }}
  resources:
    {{- include "sightline.resources" (dict "root" .root "resources" .root.Values.fetch.resources) | nindent 4 }}
  volumeMounts:
    - {name: repository, mountPath: /repository}
    - {name: settings, mountPath: /etc/sightline, readOnly: true}
    - {name: tmp, mountPath: /tmp}
    {{- range $name := include "sightline.scorerModels" . | fromYamlArray }}
    {{- include "sightline.modelMount" (dict "root" $.root "name" $name) | trim | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "sightline.tritonContainer" -}}
{{- $triton := .root.Values.scorer.triton -}}
- name: triton
  image: {{ include "sightline.image" (dict "root" .root "image" $triton.image) }}
  imagePullPolicy: {{ .root.Values.global.imagePullPolicy }}
  command: [tritonserver]
  args:
    - --model-repository=/repository
    - --disable-auto-complete-config
    - --exit-on-error=true
    - --allow-http=true
    - --http-port=8000
    - --grpc-port=8001
    - --metrics-port=8002
    {{- range $triton.extraArgs }}
    - {{ . | quote }}
    {{- end }}
  ports:
    - {name: triton-http, containerPort: 8000}
    - {name: triton-grpc, containerPort: 8001}
    - {name: triton-metrics, containerPort: 8002}
  env:
    {{- include "sightline.env" (dict "root" .root "values" $triton) | trim | nindent 4 }}
  startupProbe:
    httpGet: {path: /v2/health/ready, port: triton-http}
    periodSeconds: 10
    failureThreshold: 60
  readinessProbe:
    httpGet: {path: /v2/health/ready, port: triton-http}
    periodSeconds: 5
  livenessProbe:
    httpGet: {path: /v2/health/live, port: triton-http}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  securityContext:
    {{- include "sightline.containerSecurity" . | nindent 4 }}
  resources:
    {{- include "sightline.resources" (dict "root" .root "resources" $triton.resources "gpu" $triton.gpu) | nindent 4 }}
  volumeMounts:
    - {name: repository, mountPath: /repository, readOnly: true}
    - {name: shm, mountPath: /dev/shm}
    - {name: tmp, mountPath: /tmp}
{{- end -}}

{{/* Python models of Triton talk to its core through /dev/shm; container runtimes give only 64 MiB of it. */}}
{{- define "sightline.tritonVolumes" -}}
- name: repository
  emptyDir: {sizeLimit: {{ .root.Values.scratch.sizeLimit }}}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .root.Values.scorer.triton.sharedMemory }}}
{{- end -}}
