#!/usr/bin/env bash
# Applies an overlay to the cluster that kubectl talks to, and waits until every node enforces: deploy/install.sh OVERLAY
#
# In two steps, because a policy cannot be applied before the API server knows what that is.
set -euo pipefail
overlay=${1:?usage: deploy/install.sh OVERLAY, such as deploy/kustomize/overlays/audit-first}

kubectl apply --server-side -k "$(dirname "${BASH_SOURCE[0]}")/crd"
kubectl wait --for=condition=Established --timeout=60s crd/egressgatewaypolicies.egress-enforcer.io
kubectl apply --server-side -k "$overlay"
if ! kubectl --namespace egress-enforcer rollout status daemonset/egress-agent --timeout=5m; then
  echo "install.sh: not every agent is ready; what they said last:" >&2
  kubectl --namespace egress-enforcer logs --selector=app.kubernetes.io/name=egress-enforcer --prefix --tail=3 >&2 || true
  exit 1
fi
