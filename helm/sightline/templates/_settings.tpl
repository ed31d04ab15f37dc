{{/* The settings file of a component: what the chart knows, overridden by the component's own `settings`. */}}
{{- define "sightline.settings" -}}
{{- $ports := .root.Values.ports -}}
{{- $server := dict "host" "0.0.0.0" "port" (int $ports.grpc) "health_port" (int $ports.health) "metrics_port" (int $ports.metrics) "drain_seconds" .values.drainSeconds -}}
{{- if ne .root.Values.tls.mode "disabled" -}}
{{- $tls := dict "mode" .root.Values.tls.mode "certificate" "/etc/sightline-tls/tls.crt" "key" "/etc/sightline-tls/tls.key" -}}
{{- if eq .root.Values.tls.mode "mutual" -}}{{- $_ := set $tls "client_ca" "/etc/sightline-tls/ca.crt" -}}{{- end -}}
{{- $_ := set $server "tls" $tls -}}
{{- end -}}
{{- $settings := dict "server" $server -}}
{{- if .root.Values.auth.existingSecret -}}
{{- if eq .root.Values.tls.mode "disabled" -}}
{{- fail "tls.mode must be server or mutual with auth.existingSecret, because clients send no token in plaintext" -}}
{{- end -}}
{{- $_ := set $settings "auth" (dict "tokens_file" (printf "/etc/sightline-tokens/%s" .root.Values.auth.key) "required" true) -}}
{{- end -}}
{{- $own := include (printf "sightline.settings.%s" .component) . | fromYaml -}}
{{- toYaml (mergeOverwrite $settings $own (deepCopy .values.settings)) -}}
{{- end -}}

{{- define "sightline.settings.scorer" -}}
{{- $triton := .values.triton -}}
models:
  {{- range $name, $model := include "sightline.clips" . | fromYaml }}
  {{ $name }}:
    {{- if $model.model }}
    source: {{ printf "/models/%s/%s" $model.model ($model.path | default "") | trimSuffix "/" | quote }}
    {{- else }}
    source: {{ $model.source | quote }}
    {{- end }}
    {{- with $model.pretrained }}
    pretrained: {{ . | quote }}
    {{- end }}
    precision: {{ $model.precision | default "fp32" }}
  {{- end }}
{{- with .values.defaultModel }}
{{- if not (hasKey (include "sightline.clips" $ | fromYaml) .) }}
{{- fail (printf "scorer.defaultModel is %s, which is not in scorer.models: name one of them" .) }}
{{- end }}
default_model: {{ . }}
{{- end }}
triton:
  {{- if eq $triton.mode "embedded" }}
  mode: embedded
  {{- else }}
  mode: remote
  address: {{ include "sightline.tritonAddress" . | quote }}
  {{- end }}
{{- end -}}

{{- define "sightline.tritonAddress" -}}
{{- if eq .values.triton.mode "sidecar" -}}
127.0.0.1:8001
{{- else if eq .values.triton.mode "separate" -}}
{{ include "sightline.fullname" (dict "root" .root "component" "triton") }}.{{ .root.Release.Namespace }}.svc:8001
{{- else -}}
{{ required "scorer.triton.address is required with scorer.triton.mode=external: set host:port of Triton's gRPC" .values.triton.address }}
{{- end -}}
{{- end -}}

{{- define "sightline.settings.sampler" -}}
{{- $engine := .values.engine -}}
engine:
  kind: {{ $engine.kind }}
  model: {{ include "sightline.modelPath" (dict "root" .root "model" $engine.model) | quote }}
  {{- if ne $engine.kind "transformers" }}
  {{ $engine.kind }}:
    {{- $urls := include "sightline.engineUrls" . | fromYamlArray }}
    {{- if gt (len $urls) 1 }}
    replicas: {{ toYaml $urls | nindent 6 }}
    {{- else }}
    url: {{ first $urls | quote }}
    {{- end }}
    {{- if eq $engine.kind "vllm" }}
    {{- if $engine.server.sleep }}
    sleep: true
    {{- end }}
    max_loras: {{ $engine.server.maxLoras }}
    max_lora_rank: {{ $engine.server.maxLoraRank }}
    {{- else }}
    merge_into: /policies/merged
    {{- if $engine.deploy }}
    kubernetes: {deployment: {{ include "sightline.fullname" (dict "root" .root "component" "engine") }}, container: tgi}
    {{- end }}
    {{- end }}
  {{- end }}
policies:
  root: /policies
  state_dir: /policies/.sampler
{{- end -}}

{{/* A model of `models` by its name, or whatever else was named (a hub's name) as it is. */}}
{{- define "sightline.modelPath" -}}
{{- if hasKey .root.Values.models .model -}}/models/{{ .model }}{{- else -}}{{ .model }}{{- end -}}
{{- end -}}

{{/* Addresses of the engine: of each of its pods where they have names, of its Service, or those that somebody else runs. */}}
{{- define "sightline.engineUrls" -}}
{{- $engine := .values.engine -}}
{{- $service := include "sightline.fullname" (dict "root" .root "component" "engine") -}}
{{- $host := printf "%s.svc:%d" .root.Release.Namespace (int $engine.server.port) -}}
{{- if and $engine.deploy (eq $engine.kind "vllm") -}}
{{- range $number := until (int $engine.server.replicas) }}
- http://{{ $service }}-{{ $number }}.{{ $service }}-replicas.{{ $host }}
{{- end -}}
{{- else if $engine.deploy -}}
- http://{{ $service }}.{{ $host }}
{{- else if and $engine.urls (ne $engine.kind "vllm") -}}
{{- fail "sampler.engine.urls works only with sampler.engine.kind=vllm: set sampler.engine.url instead" -}}
{{- else if $engine.urls -}}
{{ toYaml $engine.urls }}
{{- else -}}
- {{ required (printf "sampler.engine.url is required with sampler.engine.kind=%s and sampler.engine.deploy=false: set the engine's address" $engine.kind) $engine.url }}
{{- end -}}
{{- end -}}

{{- define "sightline.settings.trainer" -}}
runs: /runs
recipes: /etc/sightline-recipes
data_roots: [/data]
{{- if ne .values.update.kind "pod" }}
launchers: [[python, -m, sightline_trainer.job, /etc/sightline-job/job.yaml]]
{{- end }}
{{- $root := .root }}
{{- $token := .values.token }}
{{- $callees := list }}
{{- range $name := list "scorer" "sampler" }}{{ if (index $root.Values $name).enabled }}{{ $callees = append $callees $name }}{{ end }}{{ end }}
{{- if and $callees $root.Values.auth.existingSecret (not $token.existingSecret) }}
{{- fail "trainer.token.existingSecret is required with auth.existingSecret, because scorer and sampler require a token: name its Secret" }}
{{- end }}
{{- with $callees }}
connections:
  {{- range $name := . }}
  {{ $name }}:
    address: {{ include "sightline.target" (dict "root" $root "component" $name) }}
    {{- if ne $root.Values.tls.mode "disabled" }}
    tls:
      root: /etc/sightline-tls/ca.crt
      {{- if eq $root.Values.tls.mode "mutual" }}
      certificate: /etc/sightline-tls/tls.crt
      key: /etc/sightline-tls/tls.key
      {{- end }}
    {{- end }}
    {{- if $token.existingSecret }}
    token_file: /etc/sightline-token/{{ $token.key }}
    {{- end }}
  {{- end }}
{{- end }}
{{- end -}}
