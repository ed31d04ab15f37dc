{{/* What all pods have: security, scheduling, probes, environment, volumes. Each takes a dict with "root". */}}

{{- define "sightline.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .root.Values.podSecurity.user }}
runAsGroup: {{ .root.Values.podSecurity.group }}
fsGroup: {{ .root.Values.podSecurity.group }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "sightline.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Where the pod may run. Takes root, component, values, and gpu (the block of the container that wants one). */}}
{{- define "sightline.scheduling" -}}
{{- $gpu := .gpu | default dict -}}
{{- with $gpu.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- $node := .values.nodeSelector | default dict | deepCopy }}
{{- with $gpu.product }}
{{- $_ := set $node "nvidia.com/gpu.product" . }}
{{- end }}
{{- with $node }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat (.values.tolerations | default list) ($gpu.tolerations | default list) }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.topologySpread }}
topologySpreadConstraints:
  - maxSkew: {{ .maxSkew }}
    topologyKey: {{ .topologyKey }}
    whenUnsatisfiable: {{ .whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "sightline.selector" $ | nindent 8 }}
{{- end }}
{{- with .root.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Requests and limits, the accelerator among the limits, scratch among the requests. Takes root, resources and gpu. */}}
{{- define "sightline.resources" -}}
{{- $resources := mergeOverwrite (dict "requests" (dict "ephemeral-storage" .root.Values.scratch.request)) (.resources | default dict | deepCopy) -}}
{{- with .gpu }}
{{- if gt (int .count) 0 }}
{{- $limits := $resources.limits | default dict }}
{{- $_ := set $limits .resourceName (int .count) }}
{{- $_ := set $resources "limits" $limits }}
{{- end }}
{{- end }}
{{- toYaml $resources }}
{{- end -}}

{{/* gRPC probes on the plaintext health port. Liveness is the event loop's own; readiness asks the back end. */}}
{{- define "sightline.probes" -}}
{{- range $kind := list "startup" "readiness" "liveness" }}
{{- $probe := index $.values.probes $kind }}
{{ $kind }}Probe:
  grpc:
    port: {{ $.root.Values.ports.health }}
    service: {{ $kind }}
  periodSeconds: {{ $probe.periodSeconds }}
  timeoutSeconds: {{ $probe.timeoutSeconds }}
  failureThreshold: {{ $probe.failureThreshold }}
{{- end }}
{{- end -}}

{{/*
Environment: ours, then global's, then the component's, each a map by name, so a name never comes twice
(server-side apply refuses duplicates). A value is a string, or {valueFrom: ...} for secrets.
*/}}
{{- define "sightline.env" -}}
{{- $ours := dict "HF_HUB_DISABLE_TELEMETRY" "1" "HOME" "/tmp" "OMP_WAIT_POLICY" "PASSIVE" "TOKENIZERS_PARALLELISM" "false" -}}
{{- $env := mergeOverwrite $ours (.own | default dict | deepCopy) (.root.Values.global.extraEnv | deepCopy) (.values.extraEnv | default dict | deepCopy) -}}
{{- range $name, $value := $env }}
- name: {{ $name }}
  {{- if kindIs "map" $value }}
  {{- toYaml $value | nindent 2 }}
  {{- else }}
  value: {{ $value | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The volume of one model. Takes root and name; a claim is mounted as it is, anything else is downloaded into it. */}}
{{- define "sightline.modelVolume" -}}
{{- $model := index .root.Values.models .name | default dict -}}
{{- if not (hasKey .root.Values.models .name) -}}
{{- fail (printf "models.%s is not defined: add it to models" .name) -}}
{{- else if eq (empty $model.imageVolume) (empty (coalesce $model.existingClaim $model.source)) -}}
{{- fail (printf "models.%s has no weights: set its imageVolume, existingClaim or source" .name) -}}
{{- end -}}
- name: model-{{ .name }}
  {{- if $model.existingClaim }}
  persistentVolumeClaim:
    claimName: {{ $model.existingClaim }}
    readOnly: {{ not $model.source }}
  {{- else if $model.imageVolume }}
  image:
    reference: {{ $model.imageVolume }}
    pullPolicy: IfNotPresent
  {{- else }}
  emptyDir: {sizeLimit: {{ $model.sizeLimit | default .root.Values.scratch.sizeLimit }}}
  {{- end }}
{{- end -}}

{{- define "sightline.modelMount" -}}
{{- $model := index .root.Values.models .name -}}
- name: model-{{ .name }}
  mountPath: /models/{{ .name }}
  {{- with $model.subPath }}
  subPath: {{ . }}
  {{- end }}
  readOnly: true
{{- end -}}

{{/* Init container that fetches a model from S3, a hub or any other URL that fsspec knows, checked by SHA-256. */}}
{{- define "sightline.modelFetch" -}}
{{- $model := index .root.Values.models .name -}}
{{- if $model.source }}
- name: fetch-{{ .name }}
  image: {{ include "sightline.image" (dict "root" .root "image" .image) }}
  imagePullPolicy: {{ .root.Values.global.imagePullPolicy }}
  command: [python, -m, sightline_chassis.fetch]
  args:
    - {{ $model.source | quote }}
    - /models/{{ .name }}
    {{- range $file, $digest := $model.sha256 }}
    - --sha256
    - {{ printf "%s=%s" $file $digest }}
    {{- end }}
  env:
    {{- include "sightline.env" (dict "root" .root "values" (dict "extraEnv" ($model.extraEnv | default dict))) | nindent 4 }}
  securityContext:
    {{- include "sightline.containerSecurity" . | nindent 4 }}
  resources:
    {{- include "sightline.resources" (dict "root" .root "resources" .root.Values.fetch.resources) | nindent 4 }}
  volumeMounts:
    - name: model-{{ .name }}
      mountPath: /models/{{ .name }}
      {{- with $model.subPath }}
      subPath: {{ . }}
      {{- end }}
    - {name: tmp, mountPath: /tmp}
{{- end }}
{{- end -}}

{{/* Volumes that every service of ours has: settings, scratch, and certificates and tokens where they are on. */}}
{{- define "sightline.serviceVolumes" -}}
- name: settings
  configMap:
    name: {{ include "sightline.fullname" . }}
- name: tmp
  emptyDir: {sizeLimit: {{ .root.Values.scratch.sizeLimit }}}
{{- if ne .root.Values.tls.mode "disabled" }}
- name: tls
  secret:
    secretName: {{ include "sightline.tlsSecret" . }}
    defaultMode: 0440
{{- end }}
{{- if .root.Values.auth.existingSecret }}
- name: tokens
  secret:
    secretName: {{ .root.Values.auth.existingSecret }}
    defaultMode: 0440
{{- end }}
{{- with .values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sightline.serviceMounts" -}}
- {name: settings, mountPath: /etc/sightline, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if ne .root.Values.tls.mode "disabled" }}
- {name: tls, mountPath: /etc/sightline-tls, readOnly: true}
{{- end }}
{{- if .root.Values.auth.existingSecret }}
- {name: tokens, mountPath: /etc/sightline-tokens, readOnly: true}
{{- end }}
{{- with .values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The Secret of a component's certificate: one that is there, or the one that cert-manager fills. */}}
{{- define "sightline.tlsSecret" -}}
{{- $tls := .root.Values.tls -}}
{{- if not (or (index $tls.existingSecrets .component) $tls.certManager.issuerRef.name) -}}
{{- fail (printf "tls.existingSecrets.%s or tls.certManager.issuerRef.name is required with tls.mode=%s: set one of them" .component $tls.mode) -}}
{{- end -}}
{{- index $tls.existingSecrets .component | default (printf "%s-tls" (include "sightline.fullname" .)) -}}
{{- end -}}

{{/* The container of one of our services. Takes root, component, values, and optionally gpu, env, mounts, command. */}}
{{- define "sightline.serviceContainer" -}}
{{- $end := int (add .values.preStopSeconds .values.drainSeconds) -}}
{{- if le (int .values.terminationGracePeriodSeconds) $end -}}
{{- fail (printf "%s.terminationGracePeriodSeconds must exceed preStopSeconds + drainSeconds (%d), or calls in flight are killed: raise it" .component $end) -}}
{{- end -}}
- name: {{ .component }}
  image: {{ include "sightline.image" (dict "root" .root "image" .values.image) }}
  imagePullPolicy: {{ .root.Values.global.imagePullPolicy }}
  args: [serve, {{ .component }}, --config, /etc/sightline/settings.yaml]
  env:
    {{- include "sightline.env" (dict "root" .root "values" .values "own" .env) | trim | nindent 4 }}
  ports:
    - {name: grpc, containerPort: {{ .root.Values.ports.grpc }}}
    - {name: health, containerPort: {{ .root.Values.ports.health }}}
    - {name: metrics, containerPort: {{ .root.Values.ports.metrics }}}
  {{- include "sightline.probes" . | trim | nindent 2 }}
  lifecycle:
    preStop:
      sleep:
        seconds: {{ .values.preStopSeconds }}
  securityContext:
    {{- include "sightline.containerSecurity" . | nindent 4 }}
  resources:
    {{- include "sightline.resources" (dict "root" .root "resources" .values.resources "gpu" .gpu) | nindent 4 }}
  volumeMounts:
    {{- include "sightline.serviceMounts" . | nindent 4 }}
    {{- with .mounts }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* Pod metadata: the settings' checksum rolls the pods when the settings change. */}}
{{- define "sightline.podMetadata" -}}
labels:
  {{- include "sightline.labels" . | nindent 2 }}
  {{- with .values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  checksum/settings: {{ include "sightline.settings" . | sha256sum }}
  {{- with .values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* A rollout that needs no second GPU while it is under way. */}}
{{- define "sightline.strategy" -}}
type: RollingUpdate
rollingUpdate:
  {{- if gt (int (.gpu | default dict).count) 0 }}
  maxSurge: 0
  maxUnavailable: 1
  {{- else }}
  maxSurge: 1
  maxUnavailable: 0
  {{- end }}
{{- end -}}
