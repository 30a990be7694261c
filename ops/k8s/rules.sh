#!/bin/sh
# Print the alerts and recording rules of ops/prometheus/ as PrometheusRules for the Prometheus operator:
#
#     ops/k8s/rules.sh | kubectl apply -n catsdogs -f -
#
# Those about Compose's own edge and Prometheus stay behind.
set -eu
cd "$(dirname "$0")/../prometheus/rules"
for name in records alerts; do
    printf -- '---\napiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: catsdogs-%s\nspec:\n' "$name"
    sed 's/^/  /' "$name.yml"
done
