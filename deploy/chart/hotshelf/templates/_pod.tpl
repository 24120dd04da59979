{{/* What every pod of ours is: as restricted as can be. */}}
{{- define "hotshelf.podSettings" -}}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  fsGroup: {{ .Values.group }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
  {{- with .Values.seLinuxLevel }}
  seLinuxOptions: {level: {{ . | quote }}}
  {{- end }}
{{- end -}}

{{/* hotshelfd: beside a worker an init container that is restarted always, on a node of its own a pod's only one. */}}
{{- define "hotshelf.daemon" -}}
- name: hotshelfd
  image: {{ include "hotshelf.image" (dict "image" .Values.daemon.image "root" $) }}
  imagePullPolicy: {{ .Values.daemon.image.pullPolicy }}
  {{- if eq .Values.mode "sidecar" }}
  restartPolicy: Always
  {{- end }}
  env:
    - {name: HOTSHELF_CONFIG, value: /etc/hotshelf/config/hotshelf.yaml}
    - {name: PIPELINE_STORE, value: /shelf/store}
    {{- with include "hotshelf.socketVariable" . }}{{ . | nindent 4 }}{{- end }}
    - {name: HOTSHELF_LISTEN, value: ":9464"}
    {{- with .Values.daemon.env }}{{ toYaml . | nindent 4 }}{{- end }}
  ports:
    - {name: hotshelf, containerPort: 9464}
  startupProbe:
    exec: {command: [hotshelf, health, --degraded-ok, --format, quiet]}
    periodSeconds: 2
    timeoutSeconds: 10
    failureThreshold: 1800
  livenessProbe:
    httpGet: {path: /livez, port: hotshelf}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  readinessProbe:
    httpGet: {path: /readyz, port: hotshelf}
    periodSeconds: 5
    timeoutSeconds: 5
  resources: {{- toYaml .Values.daemon.resources | nindent 4 }}
  securityContext:
    runAsUser: {{ .Values.daemon.user }}
    runAsGroup: {{ .Values.daemon.user }}
    {{- include "hotshelf.restricted" . | nindent 4 }}
  volumeMounts:
    - {name: shelf, mountPath: /shelf}
    {{- if eq .Values.mode "sidecar" }}
    - {name: socket, mountPath: /run/hotshelf}
    {{- end }}
    - {name: config, mountPath: /etc/hotshelf/config, readOnly: true}
    {{- range $origin, $secret := .Values.credentials }}
    - {name: origin-{{ $origin }}, mountPath: {{ printf "/etc/hotshelf/credentials/%s" $origin | quote }}, readOnly: true}
    {{- end }}
    {{- range $name, $secret := .Values.secrets }}
    - {name: secret-{{ $name }}, mountPath: {{ printf "/etc/hotshelf/secrets/%s" $name | quote }}, readOnly: true}
    {{- end }}
    {{- if .Values.bundleKey }}
    - {name: bundle-key, mountPath: /etc/hotshelf/bundles, readOnly: true}
    {{- end }}
{{- end -}}

{{/* Between pods nothing is shared but the shelf, so the socket lies on it too. */}}
{{- define "hotshelf.socketVariable" -}}
{{- if eq .Values.mode "node" -}}
- {name: HOTSHELF_SOCKET, value: /shelf/run/hotshelf.sock}
{{- end -}}
{{- end -}}

{{/* `who` sees it as a whole, or read-only as a volume too: then the kubelet does not change what is on it. */}}
{{- define "hotshelf.shelf" -}}
{{- $who := .who -}}
{{- with .root -}}
- name: shelf
  {{- if eq .Values.store.type "emptyDir" }}
  emptyDir: {sizeLimit: {{ .Values.store.size }}}
  {{- else if eq .Values.store.type "ephemeral" }}
  ephemeral:
    volumeClaimTemplate:
      metadata:
        labels: {{- include "hotshelf.labels" . | nindent 10 }}
      spec:
        accessModes: [ReadWriteOnce]
        {{- with .Values.store.storageClassName }}
        storageClassName: {{ . | quote }}
        {{- end }}
        resources: {requests: {storage: {{ .Values.store.size }}}}
  {{- else }}
  persistentVolumeClaim: {claimName: {{ include "hotshelf.claim" . | quote }}{{ if and (eq $who "worker") (eq .Values.mode "node") }}, readOnly: true{{ end }}}
  {{- end }}
{{- end -}}
{{- end -}}

{{- define "hotshelf.claim" -}}
{{- ternary (include "hotshelf.name" .) .Values.store.claimName (eq .Values.store.type "local") -}}
{{- end -}}

{{/* Volumes have no namespace: two that are written alike must not be one. */}}
{{- define "hotshelf.volume" -}}
{{- $both := printf "%s/%s" .Release.Namespace (include "hotshelf.name" .) -}}
{{- printf "%s-%s" (include "hotshelf.name" .) ($both | sha256sum | trunc 8) -}}
{{- end -}}

{{/* What only hotshelfd mounts. */}}
{{- define "hotshelf.daemonVolumes" -}}
{{- if eq .Values.mode "sidecar" -}}
- name: socket
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{ end -}}
- name: config
  configMap: {name: {{ include "hotshelf.name" . }}}
{{- range $origin, $secret := .Values.credentials }}
- name: origin-{{ $origin }}
  secret: {secretName: {{ $secret | quote }}, defaultMode: 0440}
{{- end }}
{{- range $name, $secret := .Values.secrets }}
- name: secret-{{ $name }}
  secret: {secretName: {{ $secret | quote }}, defaultMode: 0440}
{{- end }}
{{- if .Values.bundleKey }}
- name: bundle-key
  secret: {secretName: {{ .Values.bundleKey | quote }}, defaultMode: 0440, items: [{key: key, path: key}]}
{{- end }}
{{- end -}}
