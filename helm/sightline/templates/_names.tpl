{{/* Names, labels and images. */}}

{{- define "sightline.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Release-wide prefix, short enough that a suffix still fits into 63 characters. */}}
{{- define "sightline.prefix" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "sightline.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "sightline.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of a component's objects. Takes (dict "root" $ "component" NAME). */}}
{{- define "sightline.fullname" -}}
{{- printf "%s-%s" (include "sightline.prefix" .root) .component -}}
{{- end -}}

{{/* What selects a component's pods: nothing that a user can change, since selectors are immutable. */}}
{{- define "sightline.selector" -}}
app.kubernetes.io/name: {{ include "sightline.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "sightline.labels" -}}
{{ include "sightline.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: sightline
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.global.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Metadata of an object. Takes root, component, and optionally suffix. */}}
{{- define "sightline.metadata" -}}
name: {{ include "sightline.fullname" . }}{{ with .suffix }}-{{ . }}{{ end }}
labels:
  {{- include "sightline.labels" . | nindent 2 }}
{{- with .root.Values.global.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* An image by digest, or by tag. Takes root and image; the tag of our own images is the chart's appVersion. */}}
{{- define "sightline.image" -}}
{{- $registry := .image.registry | default .root.Values.global.imageRegistry -}}
{{- $repository := ternary (printf "%s/%s" $registry .image.repository) .image.repository (ne $registry "") -}}
{{- if .image.digest -}}
{{ $repository }}@{{ .image.digest }}
{{- else if .root.Values.global.requireDigests -}}
{{- fail (printf "image.digest of %s is required, because global.requireDigests is true: set it" $repository) -}}
{{- else -}}
{{ $repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* gRPC target of a component: its headless Service, so that clients balance over the pods themselves. */}}
{{- define "sightline.target" -}}
{{- printf "dns:///%s.%s.svc:%d" (include "sightline.fullname" .) .root.Release.Namespace (int .root.Values.ports.grpc) -}}
{{- end -}}

{{/* The services of ours that are on, by name. */}}
{{- define "sightline.enabled" -}}
{{- $enabled := dict -}}
{{- range $name := list "scorer" "sampler" "trainer" -}}
{{- $values := index $.Values $name -}}
{{- if $values.enabled -}}{{- $_ := set $enabled $name $values -}}{{- end -}}
{{- end -}}
{{ toYaml $enabled }}
{{- end -}}

{{- define "sightline.policiesClaim" -}}
{{- if or .Values.policies.existingClaim .Values.policies.create -}}
{{- .Values.policies.existingClaim | default (include "sightline.fullname" (dict "root" . "component" "policies")) -}}
{{- else -}}
{{- fail "policies.existingClaim is required, because policies.create is false: name a claim, or set policies.create=true" -}}
{{- end -}}
{{- end -}}

{{/* Whether a component downloads: by a source of `models`, or by a hub's name. Takes root and component; "" is no. */}}
{{- define "sightline.downloads" -}}
{{- $values := .root.Values -}}
{{- $names := list -}}
{{- if has .component (list "scorer" "triton") -}}
{{- range include "sightline.clips" (dict "values" $values.scorer) | fromYaml }}{{- $names = append $names (.model | default "a hub's") -}}{{- end -}}
{{- else if eq .component "trainer" -}}
{{- $names = list $values.trainer.model -}}
{{- else -}}
{{- $names = list $values.sampler.engine.model -}}
{{- end -}}
{{- range $names -}}
{{- if or (not (hasKey $values.models .)) (index $values.models .).source -}}yes{{- end -}}
{{- end -}}
{{- end -}}

{{/* Every component that has pods, by name, with its values: ours, Triton on its own, the engine. */}}
{{- define "sightline.workloads" -}}
{{- $all := include "sightline.enabled" . | fromYaml -}}
{{- if and .Values.scorer.enabled (eq .Values.scorer.triton.mode "separate") -}}
{{- $_ := set $all "triton" .Values.scorer.triton -}}
{{- end -}}
{{- if and .Values.sampler.enabled (ne .Values.sampler.engine.kind "transformers") .Values.sampler.engine.deploy -}}
{{- $_ := set $all "engine" .Values.sampler.engine.server -}}
{{- end -}}
{{ toYaml $all }}
{{- end -}}
