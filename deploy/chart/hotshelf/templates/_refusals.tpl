{{/* What the schema cannot say: values that do not go together. Nothing is rendered with them. */}}
{{- define "hotshelf.refusals" -}}
{{- $store := .Values.store -}}
{{- $isKept := has $store.type (list "claim" "local") -}}
{{- if and (eq .Values.mode "sidecar") $isKept (gt (int .Values.worker.replicas) 1) -}}
{{- fail (printf "store.type %s: one hotshelfd to a shelf, so worker.replicas must be 1 (a release for each claim), or mode node, or store.type ephemeral" $store.type) -}}
{{- end -}}
{{- if and (eq .Values.mode "node") (not $isKept) -}}
{{- fail (printf "mode node: store.type %s is seen by one pod only; local (a folder of each node) or claim (of a volume that each node has) are shared" $store.type) -}}
{{- end -}}
{{- if and (eq $store.type "claim") (not $store.claimName) -}}
{{- fail "store.type claim: store.claimName is missing" -}}
{{- end -}}
{{- if and .Values.podMonitor.enabled .Values.networkPolicy.enabled (not .Values.networkPolicy.metricsFrom) -}}
{{- fail "podMonitor.enabled: networkPolicy.metricsFrom is empty, so nobody could ask; name Prometheus' pods or namespace there" -}}
{{- end -}}
{{- if eq (int .Values.worker.port) 9464 -}}
{{- fail "worker.port: 9464 is hotshelfd's" -}}
{{- end -}}
{{- range $path := keys .Values.worker.scratch -}}
{{- if has (clean $path) (list "/" "/shelf" "/run/hotshelf") -}}
{{- fail (printf "worker.scratch.%s: something else is mounted there" $path) -}}
{{- end -}}
{{- end -}}
{{- if eq (int .Values.daemon.user) (int .Values.worker.user) -}}
{{- fail "daemon.user and worker.user must differ: a worker of the daemon's uid could change what is on the shelf" -}}
{{- end -}}
{{- end -}}
