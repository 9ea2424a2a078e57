#!/usr/bin/env bash
# A one-node Kubernetes of processes of this machine, for tests of the manifests, as root:
#   tests/infra/cluster.sh build FOLDER   compile Kubernetes 1.20 from Debian's source package
#   tests/infra/cluster.sh up FOLDER      start it; FOLDER/admin.conf is its kubeconfig
#   tests/infra/cluster.sh down FOLDER    stop it and take its network down
# Debian has no server of Kubernetes, but its source package kubernetes (bookworm) is whole, and its Go
# compiles it offline: fifteen minutes on two quiet cores. There is no DNS in it, no network policy is
# enforced, and it is older than what we support: newer schemas are checked by `make manifests`.
set -euo pipefail
command=${1:?build, up or down} folder=$(realpath -m "${2:?a folder}")
mkdir -p "$folder"
cd "$folder"
address=10.244.0.1

build() {
  apt-get install -y --no-install-recommends golang-go rsync jq dpkg-dev etcd-server containerd \
    runc containernetworking-plugins conntrack socat iptables gcc libc6-dev podman openssl
  mkdir -p apt/lists reflect2
  sed 's/^Types: deb$/Types: deb-src/' /etc/apt/sources.list.d/debian.sources > apt/src.sources
  local private=(-o "Dir::Etc::sourcelist=$folder/apt/src.sources" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$folder/apt/lists")
  apt-get "${private[@]}" update
  apt-get "${private[@]}" --download-only source kubernetes
  rm -rf source && dpkg-source --no-check -x kubernetes_*.dsc source
  # The reflect2 inside crashes with Go 1.18 and newer; Debian's does not.
  (cd reflect2 && apt-get download golang-github-modern-go-reflect2-dev && dpkg -x ./*.deb .)
  local vendored=source/vendor/github.com/modern-go/reflect2
  rm -f "$vendored"/*.go "$vendored"/*.s
  cp reflect2/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$vendored"
  rm -f "$vendored"/*_test.go
  printf "KUBE_GIT_COMMIT=%s\nKUBE_GIT_TREE_STATE=archive\nKUBE_GIT_VERSION=v1.20.2\n" "$(printf '0%.0s' {1..40})" > version
  printf "KUBE_GIT_MAJOR=1\nKUBE_GIT_MINOR=20\n" >> version
  mkdir -p home source/.go/src/k8s.io bin
  ln -sfn ../../.. source/.go/src/k8s.io/kubernetes
  (
    cd source
    export HOME=$folder/home GOPATH=$PWD/.go GOCACHE=$folder/gocache GOPROXY=off GO111MODULE=auto
    export CGO_ENABLED=0 GOFLAGS=-mod=vendor GOLDFLAGS='-s -w' FORCE_HOST_GO=y
    export KUBE_GIT_VERSION_FILE=$folder/version
    make WHAT="cmd/kube-apiserver cmd/kube-controller-manager cmd/kube-scheduler cmd/kubelet cmd/kube-proxy"
  )
  cp source/_output/local/bin/linux/*/kube* bin
  # The container that holds a pod's network is one small program.
  gcc -Os -static -o pause source/build/pause/linux/pause.c
  tar -c pause | podman import --change 'ENTRYPOINT ["/pause"]' - localhost/pause:1
}

certificate() { # name, subject, names
  openssl req -newkey rsa:2048 -nodes -keyout "pki/$1.key" -out "pki/$1.csr" -subj "$2" 2>/dev/null
  printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$3" > "pki/$1.ext"
  openssl x509 -req -in "pki/$1.csr" -CA pki/ca.crt -CAkey pki/ca.key -CAcreateserial -days 30 \
    -extfile "pki/$1.ext" -out "pki/$1.crt" 2>/dev/null
}

kubeconfig() { # file, certificate
  kubectl config --kubeconfig "$1" set-cluster here --server "https://$address:16443" \
    --certificate-authority pki/ca.crt --embed-certs >/dev/null
  kubectl config --kubeconfig "$1" set-credentials me --client-certificate "pki/$2.crt" \
    --client-key "pki/$2.key" --embed-certs >/dev/null
  kubectl config --kubeconfig "$1" set-context me --cluster here --user me >/dev/null
  kubectl config --kubeconfig "$1" use-context me >/dev/null
}

configure() {
  mkdir -p pki cni
  openssl req -x509 -newkey rsa:2048 -nodes -keyout pki/ca.key -out pki/ca.crt -days 30 \
    -subj /CN=test-ca 2>/dev/null
  local names=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc
  certificate apiserver /CN=kube-apiserver "$names,IP:127.0.0.1,IP:10.96.0.1,IP:$address"
  certificate admin /O=system:masters/CN=admin DNS:admin
  certificate kubelet /O=system:nodes/CN=system:node:local "DNS:local,IP:127.0.0.1"
  openssl genrsa -out pki/sa.key 2048 2>/dev/null
  openssl rsa -in pki/sa.key -pubout -out pki/sa.pub 2>/dev/null
  kubeconfig admin.conf admin
  kubeconfig kubelet.conf kubelet
  cat > cni/10-bridge.conflist <<END
{"cniVersion": "0.4.0", "name": "bridge", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "dataDir": "$folder/cni-data",
   "routes": [{"dst": "10.96.0.0/16"}, {"dst": "10.244.0.0/16"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
  cat > containerd.toml <<END
version = 2
root = "$folder/containerd"
state = "$folder/containerd-state"
oom_score = 0
[grpc]
  address = "$folder/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$folder/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
END
  cat > kubelet.yaml <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $address
port: 11250
readOnlyPort: 0
healthzBindAddress: 127.0.0.1
authentication: {anonymous: {enabled: false}, x509: {clientCAFile: $folder/pki/ca.crt}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
failSwapOn: false
oomScoreAdj: 0
enforceNodeAllocatable: []
evictionHard: {memory.available: 100Mi, nodefs.available: 1Gi}
resolvConf: ""
END
}

start() { # name, command...
  nohup "${@:2}" > "$1.log" 2>&1 &
  echo $! > "$1.pid"
}

up() {
  [ -f admin.conf ] || configure
  ip link add cni0 type bridge 2>/dev/null || true
  ip addr replace $address/24 dev cni0
  ip link set cni0 up
  start etcd etcd --data-dir etcd-data --unsafe-no-fsync --listen-peer-urls http://127.0.0.1:12380 \
    --listen-client-urls http://127.0.0.1:12379 --advertise-client-urls http://127.0.0.1:12379
  start apiserver bin/kube-apiserver --etcd-servers=http://127.0.0.1:12379 --bind-address=$address \
    --secure-port=16443 --insecure-port=0 --advertise-address=$address --allow-privileged=true \
    --tls-cert-file=pki/apiserver.crt --tls-private-key-file=pki/apiserver.key \
    --client-ca-file=pki/ca.crt --kubelet-client-certificate=pki/admin.crt \
    --kubelet-client-key=pki/admin.key --service-account-key-file=pki/sa.pub \
    --service-account-signing-key-file=pki/sa.key --service-cluster-ip-range=10.96.0.0/16 \
    --service-account-issuer=https://kubernetes.default.svc --authorization-mode=Node,RBAC \
    --enable-admission-plugins=NodeRestriction --kubelet-preferred-address-types=InternalIP
  export KUBECONFIG=$folder/admin.conf AWS_EC2_METADATA_DISABLED=true
  for _ in $(seq 120); do kubectl get --raw /readyz >/dev/null 2>&1 && break; sleep 1; done
  start controllers bin/kube-controller-manager --kubeconfig=admin.conf --bind-address=127.0.0.1 \
    --port=0 --service-account-private-key-file=pki/sa.key --root-ca-file=pki/ca.crt \
    --cluster-signing-cert-file=pki/ca.crt --cluster-signing-key-file=pki/ca.key \
    --leader-elect=false --use-service-account-credentials=true
  start scheduler bin/kube-scheduler --kubeconfig=admin.conf --bind-address=127.0.0.1 --port=0 \
    --leader-elect=false
  start containerd containerd -c containerd.toml
  sleep 3
  start proxy bin/kube-proxy --kubeconfig=admin.conf --proxy-mode=iptables --oom-score-adj=0 \
    --cluster-cidr=10.244.0.0/16 --hostname-override=local --healthz-bind-address=127.0.0.1 \
    --metrics-bind-address=127.0.0.1 --conntrack-max-per-core=0
  podman save localhost/pause:1 | ctr -a containerd.sock -n k8s.io images import - >/dev/null
  start kubelet bin/kubelet --config=kubelet.yaml --kubeconfig=kubelet.conf --hostname-override=local \
    --container-runtime=remote --container-runtime-endpoint="unix://$folder/containerd.sock" \
    --node-ip=$address --root-dir="$folder/kubelet" --cert-dir="$folder/kubelet-pki"
  for _ in $(seq 120); do kubectl get node local 2>/dev/null | grep -q ' Ready' && break; sleep 1; done
  kubectl get node local
}

down() {
  export KUBECONFIG=$folder/admin.conf
  kubectl delete deployments,jobs,pods --all -A --grace-period=0 --force >/dev/null 2>&1 || true
  sleep 4
  kill "$(cat kubelet.pid)" 2>/dev/null || true
  for task in $(ctr -a containerd.sock -n k8s.io tasks ls -q 2>/dev/null); do
    ctr -a containerd.sock -n k8s.io tasks kill -s SIGKILL "$task" 2>/dev/null || true
  done
  sleep 2
  for name in proxy scheduler controllers apiserver containerd etcd; do
    if [ -f $name.pid ]; then kill "$(cat $name.pid)" 2>/dev/null || true; fi
  done
  sleep 2
  awk -v at="$folder/" 'index($2, at) == 1 {print $2}' /proc/mounts | sort -r | xargs -r -n 1 umount -l
  ip netns list | grep -oE '^cni-[0-9a-f-]+' | xargs -r -n 1 ip netns del
  bin/kube-proxy --cleanup >/dev/null 2>&1 || true
  ip link del cni0 2>/dev/null || true
  rm -f ./*.pid
}

"$command"
