{{- define "hotshelf.name" -}}
{{- $name := printf "%s-%s" .Release.Name (ternary "" .Chart.Name (contains .Chart.Name .Release.Name)) | trimSuffix "-" | trunc 52 | trimSuffix "-" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "the release %s cannot name a Service: use lower-case letters, digits and -, a letter first" .Release.Name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "hotshelf.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "hotshelf.labels" -}}
{{ include "hotshelf.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* Our labels, and `more`, which cannot be others than ours. */}}
{{- define "hotshelf.labelled" -}}
{{- $ours := include "hotshelf.labels" .root | fromYaml -}}
{{- if .component -}}{{- $_ := set $ours "app.kubernetes.io/component" .component -}}{{- end -}}
{{- toYaml (merge $ours (.more | default dict)) -}}
{{- end -}}

{{- define "hotshelf.image" -}}
{{ printf "%s:%s" .image.repository (.image.tag | default .root.Chart.AppVersion) | quote }}
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
{{- range $key := list "store" "socket" "socket_mode" "socket_group" "listen" "page_listen" "budget" "index" "idle_exit_s" -}}
{{- if hasKey $config $key -}}
{{- fail (printf "config.%s is the chart's to set (see store)" $key) -}}
{{- end -}}
{{- end -}}
{{- if hasKey ($config.hub_mirror | default dict) "token" -}}
{{- fail "config.hub_mirror.token: a ConfigMap is no place for credentials; give token_file, out of a Secret in `secrets`" -}}
{{- end -}}
{{- if hasKey ($config.hf | default dict) "token" -}}
{{- fail "config.hf.token: a ConfigMap is no place for credentials; give HF_TOKEN in daemon.env, out of a Secret" -}}
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
{{- if .Values.bundleKey -}}
{{- if hasKey ($config.bundles | default dict) "key_file" -}}
{{- fail "config.bundles.key_file: bundleKey names a Secret, and the chart says where that lies" -}}
{{- end -}}
{{- $_ := set $config "bundles" (merge (dict "key_file" "/etc/hotshelf/bundles/key") ($config.bundles | default dict)) -}}
{{- else if and ($config.publish | default dict).bundles (not ($config.bundles | default dict).key_file) -}}
{{- fail "config.publish.bundles: bundleKey is missing; without one key for all nodes none believes what another has signed" -}}
{{- end -}}
{{- $_ := set $config "budget" (include "hotshelf.budget" .) -}}
{{- toYaml $config -}}
{{- end -}}

{{- define "hotshelf.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
