#!/usr/bin/env bash
# Makes a virtual machine with a cluster, installs the enforcer into it and verifies it: deploy/vagrant/up.sh
#
# Needs Vagrant with VirtualBox or libvirt, kubectl, and what `cargo xtask image` needs. The machine stays; `vagrant destroy` in
# deploy/vagrant removes it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

images=target/image
kubeconfig=$PWD/$images/vagrant.kubeconfig
export VAGRANT_CWD=$PWD/deploy/vagrant

for program in vagrant kubectl cargo; do
  if ! command -v "$program" > /dev/null; then
    echo "up.sh: $program is missing" >&2
    exit 1
  fi
done

cargo xtask image --output "$images"
vagrant up --provision
# libvirt's provider forwards the port by an ssh of its own, which it starts with the machine alone.
if ! (exec 3<> /dev/tcp/127.0.0.1/16443) 2> /dev/null; then
  vagrant reload --provision
fi
for image in egress-agent egress-probe; do
  vagrant ssh --command "sudo k3s ctr images import -" -- -T < "$images/$image.tar"
done
rm -f "$kubeconfig"
(
  umask 077
  vagrant ssh --command "sudo cat /etc/rancher/k3s/k3s.yaml" -- -T |
    tr -d '\r' | sed 's|https://127.0.0.1:6443|https://127.0.0.1:16443|' > "$kubeconfig"
)
export KUBECONFIG=$kubeconfig

# The new image has the old one's name, and Kubernetes starts no pod again because of it. Before installing, which waits for the pods: an
# image that does not work would never be replaced after it.
if [ -n "$(kubectl --namespace egress-enforcer get daemonset egress-agent --ignore-not-found --output name)" ]; then
  kubectl --namespace egress-enforcer rollout restart daemonset/egress-agent
fi
deploy/install.sh deploy/kustomize/overlays/kind
cargo xtask verify --kubeconfig "$kubeconfig"
