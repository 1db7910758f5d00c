#!/usr/bin/env bash
# Applies an overlay to the cluster that kubectl talks to, and waits until every node enforces: deploy/install.sh OVERLAY
#
# In two steps, because a policy cannot be applied before the API server knows what that is.
set -euo pipefail
overlay=${1:?usage: deploy/install.sh OVERLAY, such as deploy/kustomize/overlays/audit-first}

agents() {
  kubectl --namespace egress-enforcer "$@"
}

# By force: uninstall.sh (which patches), `kubectl set image` and `kubectl rollout` write fields under names of their own, and server-side
# apply ends at the first of these that is to be something else. What is in the overlay is to count. The custom resource as well: one that
# Helm has left, or an earlier version's, may be older than the agent that comes now, and no policy is lost by another schema (it keeps
# fields that it does not have). What Helm has installed and still holds is Helm's: it would write its own again.
apply() {
  kubectl apply --server-side --force-conflicts -k "$1"
}

# The binding has no namespace: a release may be in kube-system, and by force its agents would lose their rights.
for object in daemonset/egress-agent clusterrolebinding/egress-enforcer; do
  release=$(agents get "$object" --ignore-not-found --output jsonpath='{.metadata.annotations.meta\.helm\.sh/release-name}')
  if [ -n "$release" ]; then
    echo "install.sh: $object is of Helm's release $release: change that with \`helm upgrade\`, or uninstall it first" >&2
    exit 1
  fi
done

apply "$(dirname "${BASH_SOURCE[0]}")/crd"
kubectl wait --for=condition=Established --timeout=60s crd/egressgatewaypolicies.egress-enforcer.io
apply "$overlay"
if ! agents rollout status daemonset/egress-agent --timeout=5m; then
  # Pods that an admission refuses (a quota, Pod Security, OpenShift's constraints) are not there to say anything.
  refused=$(agents get events --field-selector involvedObject.kind=DaemonSet,involvedObject.name=egress-agent,reason=FailedCreate \
    --sort-by=.lastTimestamp --output jsonpath='{range .items[*]}{.lastTimestamp}{" "}{.message}{"\n"}{end}' | tail -n 3 || true)
  if [ -n "$refused" ]; then
    echo "install.sh: pods could not be made; what the DaemonSet's controller was told last:" >&2
    echo "$refused" >&2
  fi
  echo "install.sh: not every agent is ready; what they said last:" >&2
  agents logs --selector=app.kubernetes.io/name=egress-enforcer --prefix --tail=3 >&2 || true
  exit 1
fi
