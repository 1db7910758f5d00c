#!/usr/bin/env bash
# Makes a kind cluster, installs the enforcer into it and verifies it: deploy/kind/up.sh
#
# Needs kind, kubectl, and docker (or podman, with KIND_EXPERIMENTAL_PROVIDER=podman), and what `cargo xtask image` needs. The cluster
# stays; `kind delete cluster --name egress-enforcer` removes it. A cluster of this name that is there already is used.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

name=egress-enforcer
images=target/image
kubeconfig=$images/kind.kubeconfig
engine=${KIND_EXPERIMENTAL_PROVIDER:-docker}

for program in kind kubectl "$engine" cargo; do
  if ! command -v "$program" > /dev/null; then
    echo "up.sh: $program is missing" >&2
    exit 1
  fi
done

cargo xtask image --output "$images"
if ! kind get clusters | grep -qx "$name"; then
  kind create cluster --config deploy/kind/cluster.yaml --kubeconfig "$kubeconfig" --wait 5m
fi
(umask 077; kind get kubeconfig --name "$name" > "$kubeconfig")
export KUBECONFIG=$kubeconfig

for image in egress-agent egress-probe; do
  kind load image-archive --name "$name" "$images/$image.tar"
done

# The new image has the old one's name, and Kubernetes starts no pod again because of it. Before installing, which waits for the pods: an
# image that does not work would never be replaced after it.
if [ -n "$(kubectl --namespace egress-enforcer get daemonset egress-agent --ignore-not-found --output name)" ]; then
  kubectl --namespace egress-enforcer rollout restart daemonset/egress-agent
fi
deploy/install.sh deploy/kustomize/overlays/kind
cargo xtask verify --all-nodes --kubeconfig "$kubeconfig"
