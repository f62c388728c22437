#!/usr/bin/env bash
# Trains on several machines over ssh, with one worker per slot.
#
#   launch/multi_node.sh -H host1:4,host2:4 ARG...     passes the arguments to distcnn.train
#   launch/multi_node.sh -H host1:4,host2:4 script.py  runs a Keras script of your own by distcnn.run
#   launch/multi_node.sh --hostfile FILE ARG...        reads lines `host slots=4` or `host:4`
#   STRATEGY=multi_worker launch/multi_node.sh ...     uses TensorFlow's collectives, not Horovod's
#   launch/multi_node.sh --dry-run -H ...              prints the command without running it
#
# Environment variables:
#   SSH_PORT=22          port of sshd on the hosts
#   SSH_KEY=~/.ssh/key   private key for the hosts
#   NIC=eth0             network interface between the hosts, with the same name on each; default:
#                        the interface through which this host reaches the others
#   PRIVATE=no           for multi_worker on this host alone: let TensorFlow's server listen on all
#                        interfaces; by default, if the system allows it, the run gets a network
#                        namespace with only loopback, in which it cannot download anything
#
# Every host needs this project installed at the same path (on a shared file system, or as a copy on
# which launch/install_horovod.sh was run), and must accept ssh from this host without a password.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
dry_run=false hosts=''
arguments=()
while (($# > 0)); do
  case $1 in
    --dry-run) dry_run=true ;;
    -H) hosts=${2:-} && shift $(($# > 1)) ;;
    --hostfile)
      if [[ ! -r ${2:-} ]]; then
        echo "error: the host file ${2:-} cannot be read; expected a readable file" >&2
        exit 2
      fi
      hosts=$(sed -E 's/#.*//; s/[[:space:]]+slots=/:/; s/[[:space:]]//g; /^$/d' "$2" | paste -sd,) && shift
      ;;
    *) arguments+=("$1") ;;
  esac
  shift
done

workers=0 slots=''
if [[ -z $hosts ]]; then
  echo "error: no hosts were given; expected -H host1:slots,host2:slots or --hostfile FILE" >&2
  exit 2
fi
for entry in ${hosts//,/ }; do
  if ! [[ $entry =~ ^[^:]+(:[1-9][0-9]*)?$ ]]; then
    echo "error: the host is $entry; expected host or host:slots" >&2
    exit 2
  fi
  if [[ $entry != *:* ]]; then entry+=:1; fi
  workers=$((workers + ${entry##*:})) slots+=${slots:+,}$entry
done
hosts=$slots
strategy=${STRATEGY:-horovod}
if [[ $strategy != horovod && $strategy != multi_worker ]]; then
  echo "error: STRATEGY is $strategy; expected horovod or multi_worker" >&2
  exit 2
fi

# By default, Horovod may choose the loopback interface, which every host has.
nic=${NIC:-}
if [[ -z $nic ]] && command -v ip >/dev/null; then
  for entry in ${hosts//,/ }; do
    address=$(getent ahostsv4 "${entry%%:*}" | awk 'NR == 1 { print $1 }') || true
    device=$(ip -o route get "${address:-127.0.0.1}" 2>/dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p') || true
    if [[ -n $device && $device != lo ]]; then nic=$device; fi
  done
fi

# Horovod's launcher starts the workers of both strategies; it stops all when one fails.
command=("$venv/bin/python" -m distcnn.horovodrun --gloo -np "$workers" -H "$hosts")
if [[ -n ${SSH_PORT:-} ]]; then command+=(--ssh-port "$SSH_PORT"); fi
if [[ -n ${SSH_KEY:-} ]]; then command+=(--ssh-identity-file "$SSH_KEY"); fi
if [[ -n $nic ]]; then command+=(--network-interfaces "$nic"); fi
command+=("$venv/bin/python" -m "$(module_for "${arguments[@]}")" --distribute.strategy "$strategy" "${arguments[@]}")

if [[ $strategy == multi_worker && -z $nic && ${PRIVATE:-yes} == yes ]]; then
  own=(unshare --map-root-user --net sh -c 'ip link set lo up && exec "$@"' sh)
  if "${own[@]}" true 2>/dev/null; then command=("${own[@]}" "${command[@]}"); fi
fi

if $dry_run; then
  printf 'DISTCNN_HOSTS=%q ' "$hosts"
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
DISTCNN_HOSTS=$hosts PATH=$venv/bin:$PATH exec "${command[@]}"
