# What the checks on a cluster share; sourced by them.
#
#   IMAGE=chatbot:dev            an image that the cluster has
#   HELM=helm KUBECTL=kubectl    Helm 3 or 4
#   KEEP=1                       keep the namespaces of a run that failed
# shellcheck shell=bash
helm=${HELM:-helm}
kubectl=${KUBECTL:-kubectl}
image=${IMAGE:-chatbot:dev}
namespace=             # where k and h work
namespaces=()          # all that were made, to be deleted in the end
work=$(mktemp -d)
last=$SECONDS

# Each line with the seconds since the start and those of the step.
say() { printf '%4ds %+4ds  %s\n' "$SECONDS" $((SECONDS - last)) "$*"; last=$SECONDS; }
fail() { say "FAIL $*" >&2; exit 1; }
k() { "$kubectl" --namespace "$namespace" "$@"; }
h() { "$helm" --namespace "$namespace" "$@"; }

processes=() # of this machine, to be ended in the end
stop_at_the_end() { processes+=("$1"); }

clean_up() {
  local status=$?
  if ((status)); then
    for namespace in "${namespaces[@]}"; do
      {
        echo "--- $namespace"
        leftovers
        k get pods --output wide
        k describe pods
        k logs --all-containers --prefix --tail 40 --selector app.kubernetes.io/name=chatbot
        k logs --tail 40 --selector chatbot.example/part
        k logs --all-containers --prefix --tail 40 --previous --selector app.kubernetes.io/name=chatbot
        k get events --sort-by .lastTimestamp
      } >&2 || true
    done
  fi
  if ((${#namespaces[@]})) && { ((status == 0)) || [[ ${KEEP:-} != 1 ]]; }; then
    "$kubectl" delete namespace "${namespaces[@]}" --ignore-not-found --timeout 120s >/dev/null || true
  fi
  ((${#processes[@]} == 0)) || kill "${processes[@]}" 2>/dev/null || true
  rm -rf "$work"
}
trap clean_up EXIT

# make_namespace NAME: one that enforces the profile, and warns; where k and h work from now on.
make_namespace() {
  namespace=$1
  namespaces+=("$1")
  "$kubectl" apply --filename - >/dev/null <<YAML
apiVersion: v1
kind: Namespace
metadata:
  name: $1
  labels:
    pod-security.kubernetes.io/enforce: restricted
    pod-security.kubernetes.io/warn: restricted
YAML
  # The pods' service account is made a moment after its namespace.
  eventually 30 "the default service account" \
    is default k get serviceaccount default --output 'jsonpath={.metadata.name}'
}

# no_warning FILE: nothing that was sent would violate the profile.
no_warning() { ! grep -i 'would violate' "$1" >&2 || fail "a warning of the pod security profile"; }

# install COMMAND ARGS...: helm install or upgrade with what all of these have in common.
install() {
  h "$1" chatbot helm/chatbot --wait --timeout 180s --set-string \
    "image.repository=${image%:*},image.tag=${image##*:}" "${@:2}" >"$work/helm" 2>&1 ||
    { cat "$work/helm" >&2; fail "helm $1"; }
  no_warning "$work/helm"
}

# kustomized FOLDER: the folder to apply for it: an overlay, as somebody writes it whose image has another
# name. kustomize takes no absolute path in it.
kustomized() {
  if [[ $image == chatbot:dev ]]; then
    echo "$1"
    return
  fi
  local folder
  folder=$(mktemp --directory --tmpdir="$work")
  cat >"$folder/kustomization.yaml" <<YAML
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: ["$(realpath --relative-to "$folder" "$1")"]
images: [{name: chatbot, newName: "${image%:*}", newTag: "${image##*:}"}]
YAML
  echo "$folder"
}

# client POD ARGS...: runs a command of the image in a pod of its own; nothing is executed in the
# server's.
client() {
  k apply --filename - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata:
  name: $1
  labels: {chatbot.example/part: client}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 120
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: client
      image: $image
      imagePullPolicy: IfNotPresent
      args: [$(printf '"%s", ' "${@:2}")]
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
YAML
}

# client_ends SECONDS POD: waits for it, and says whether it succeeded.
client_ends() {
  local phase='' i
  for ((i = 0; i < 2 * $1; i++)); do
    phase=$(k get pod "$2" --output 'jsonpath={.status.phase}')
    [[ $phase != Succeeded && $phase != Failed ]] || break
    sleep 0.5
  done
  [[ $phase == Succeeded ]]
}

# ask LANGUAGE QUESTION: the answer; fails without one.
ask() {
  local pod=ask-$RANDOM status=0
  client "$pod" ask --addr chatbot:8980 --language "$1" "$2"
  client_ends 60 "$pod" || status=$?
  k logs "$pod"
  k delete pod "$pod" --wait=false >/dev/null
  return "$status"
}

# pod FIELD: of the server's newest pod.
pod() {
  k get pods --selector app.kubernetes.io/name=chatbot --sort-by .metadata.creationTimestamp \
    --output "jsonpath={.items[-1:]$1}"
}

# eventually SECONDS WHAT COMMAND...: the command succeeds within the time.
eventually() {
  local end=$((SECONDS + $1))
  until "${@:3}"; do
    ((SECONDS < end)) || fail "not within $1 s: $2"
    sleep 0.5
  done
}
# What a command that failed did not say proves nothing.
is() { local told; told=$("${@:2}" 2>/dev/null) && [[ $told == "$1" ]]; }
is_not() { local told; told=$("${@:2}" 2>/dev/null) && [[ $told != "$1" ]]; }
at_least() { (($("${@:2}") >= $1)); }
answers() { [[ $(ask "${@:2}") == *"$1"* ]]; }

# leftovers: every object of the namespace that can be listed, but for what each namespace has. Fails if
# that cannot be told.
leftovers() {
  local kinds objects
  kinds=$("$kubectl" api-resources --namespaced --verbs list --output name 2>/dev/null) || return
  kinds=$(grep -vE '^(events|leases)\b|^events\.' <<<"$kinds" | paste -sd,)
  objects=$(k get "$kinds" --output name --ignore-not-found 2>/dev/null) || return
  grep -vE '^(configmap/kube-root-ca.crt|serviceaccount/default)$' <<<"$objects" || true
}

say "     $("$helm" version --template '{{.Version}}'), Kubernetes $("$kubectl" version --output json |
  sed -n '/serverVersion/,$ s/.*"gitVersion": "\(.*\)".*/\1/p'), image $image"
