#!/usr/bin/env bash
# Takes the enforcer from every node of the cluster that kubectl talks to: deploy/uninstall.sh [NAMESPACE]
#
# What is pinned enforces without an agent, so that deleting the DaemonSet is not enough. Here the DaemonSet that is there, whoever has
# installed it, runs `egress-agent cleanup` in place of the agent; this waits until it has succeeded on every node, and names those where
# it has not. It may be run again. What puts back what a repository says (Argo CD, Flux) has to be suspended before. The objects stay:
# `helm uninstall`, or `kubectl delete -k` of the overlay, takes them afterwards.
# UNINSTALL_TIMEOUT is in seconds.
set -euo pipefail
namespace=${1:-egress-enforcer}
patience=${UNINSTALL_TIMEOUT:-300}
# A line of `pods`. A pod that has ended well is started again, and finds nothing to do.
ended_well='^[^ ]+ cleanup .*(now|before)=0( |$)'

agents() {
  kubectl --namespace "$namespace" "$@"
}

# Whether the DaemonSet's controller has seen the patch, and on how many nodes it wants a pod.
wanted() {
  agents get daemonset egress-agent --output \
    jsonpath='{.metadata.generation}/{.status.observedGeneration}/{.status.desiredNumberScheduled}'
}

# What the DaemonSet runs now.
runs() {
  agents get daemonset egress-agent --output jsonpath='{.spec.template.spec.containers[?(@.name=="agent")].args[0]}'
}

# For each pod its node, what it runs, and the exit codes of its container now and before.
pods() {
  agents get pods --selector app.kubernetes.io/name=egress-enforcer,app.kubernetes.io/component=agent --output jsonpath='{range .items[*]}{.spec.nodeName}{" "}{.spec.containers[?(@.name=="agent")].args[0]}{" now="}{.status.containerStatuses[?(@.name=="agent")].state.terminated.exitCode}{" before="}{.status.containerStatuses[?(@.name=="agent")].lastState.terminated.exitCode}{"\n"}{end}'
}

if ! agents get daemonset egress-agent --output name > /dev/null; then
  echo "uninstall.sh: no DaemonSet egress-agent in namespace $namespace: name its namespace, or, where it was deleted, install it again first" >&2
  exit 1
fi
agents patch daemonset egress-agent --patch-file "$(dirname "${BASH_SOURCE[0]}")/uninstall.patch.yaml"
end=$((SECONDS + patience))
while true; do
  IFS=/ read -r generation observed nodes < <(wanted && echo)
  found=$(pods)
  clean=$(grep -E "$ended_well" <<< "$found" | cut -d ' ' -f 1 | sort -u | wc -l || true)
  if [ "$generation" = "$observed" ] && [ "$clean" -ge "$nodes" ]; then
    break
  fi
  if [ "$SECONDS" -ge "$end" ]; then
    echo "uninstall.sh: $clean of $nodes nodes are clean after $patience s; the others enforce what is pinned there:" >&2
    grep -v -E "$ended_well" <<< "$found" >&2 || true
    if [ "$(runs)" != cleanup ]; then
      echo "uninstall.sh: somebody has put the agent back: where Argo CD, Flux or the like installed it, suspend its sync first" >&2
    fi
    echo "uninstall.sh: look at \`kubectl --namespace $namespace describe pods\` and at their logs, and run this again" >&2
    exit 1
  fi
  sleep 2
done
echo "$clean nodes are clean: nothing is enforced there. Now delete the objects with what installed them:"
echo "  helm uninstall egress-enforcer --namespace $namespace     or     kubectl delete --ignore-not-found -k OVERLAY"
