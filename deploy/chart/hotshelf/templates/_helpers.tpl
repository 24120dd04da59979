{{- define "hotshelf.name" -}}
{{- printf "%s-%s" .Release.Name (ternary "" .Chart.Name (contains .Chart.Name .Release.Name)) | trimSuffix "-" | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "hotshelf.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "hotshelf.labels" -}}
{{ include "hotshelf.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "hotshelf.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{/* A Kubernetes quantity, or ours (55GiB), as MiB. */}}
{{- define "hotshelf.mebibytes" -}}
{{- $found := regexFindAll "^[0-9]+|[KMGTP]i" (. | toString) -1 -}}
{{- if or (ne (len $found) 2) (not (regexMatch "^[0-9]+(Mi|Gi|Ti)B?$" (. | toString))) -}}
{{- fail (printf "store: %s is no size in Mi, Gi or Ti" (toString .)) -}}
{{- end -}}
{{- mul (index $found 0 | int64) (get (dict "Mi" 1 "Gi" 1024 "Ti" 1048576) (index $found 1)) -}}
{{- end -}}

{{/* Bytes the shelf may use. */}}
{{- define "hotshelf.budget" -}}
{{- $size := include "hotshelf.mebibytes" .Values.store.size | int64 -}}
{{- if .Values.store.budget -}}
{{- if gt (include "hotshelf.mebibytes" .Values.store.budget | int64) (div (mul $size 95) 100) -}}
{{- fail (printf "store.budget %s leaves too little of store.size %s: 95 %% is the most, since a pod that exceeds its emptyDir is evicted" .Values.store.budget .Values.store.size) -}}
{{- end -}}
{{- .Values.store.budget | trimSuffix "B" -}}B
{{- else -}}
{{- div (mul $size 9) 10 -}}MiB
{{- end -}}
{{- end -}}

{{/* hotshelf.yaml: what was given, the budget, and where credentials lie. */}}
{{- define "hotshelf.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- range $key := list "store" "socket" "listen" "page_listen" "budget" -}}
{{- if hasKey $config $key -}}
{{- fail (printf "config.%s is the chart's to set (see store)" $key) -}}
{{- end -}}
{{- end -}}
{{- range $origin, $secret := .Values.credentials -}}
{{- if not (hasKey ($config.origins | default dict) $origin) -}}
{{- fail (printf "credentials.%s: there is no origin of that name in config.origins" $origin) -}}
{{- end -}}
{{- $folder := printf "/etc/hotshelf/credentials/%s" $origin -}}
{{- $_ := set (get $config.origins $origin) "access_key_id_file" (printf "%s/access_key_id" $folder) -}}
{{- $_ := set (get $config.origins $origin) "secret_access_key_file" (printf "%s/secret_access_key" $folder) -}}
{{- end -}}
{{- range $origin, $given := $config.origins -}}
{{- range $key := list "access_key_id" "secret_access_key" "session_token" -}}
{{- if hasKey $given $key -}}
{{- fail (printf "config.origins.%s.%s: a ConfigMap is no place for credentials; name a Secret in credentials.%s" $origin $key $origin) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $_ := set $config "budget" (include "hotshelf.budget" .) -}}
{{- toYaml $config -}}
{{- end -}}

{{- define "hotshelf.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
