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
#   RESTARTS=3           restarts without progress when workers or hosts are lost; 0: none
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
take_dry_run "$@"
set -- "${arguments[@]}"
hosts=() arguments=()
while (($# > 0)); do
  case $1 in
    -H | --hostfile) hosts=("$1" "${2:-}") && shift $(($# > 1)) ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
if [[ -z ${hosts[1]:-} ]]; then
  echo "error: no hosts were given; expected -H host1:slots,host2:slots or --hostfile FILE" >&2
  exit 2
fi
strategy=${STRATEGY:-horovod}
if [[ $strategy != horovod && $strategy != multi_worker ]]; then
  echo "error: STRATEGY is $strategy; expected horovod or multi_worker" >&2
  exit 2
fi

module=$(module_for "${arguments[@]}")
command=("$venv/bin/python" -m distcnn.launch "${hosts[@]}" ${RESTARTS:+--restarts "$RESTARTS"}
  ${SSH_PORT:+--ssh-port "$SSH_PORT"} ${SSH_KEY:+--ssh-key "$SSH_KEY"} ${NIC:+--nic "$NIC"}
  "${module#distcnn.}" --distribute.strategy "$strategy" "${arguments[@]}")

alone="^(localhost|127\\.0\\.0\\.1|$(hostname))(:[0-9]+)?\$"
if [[ $strategy == multi_worker && ${hosts[1]} =~ $alone && -z ${NIC:-} && ${PRIVATE:-yes} == yes ]]; then
  own=(unshare --map-root-user --net sh -c 'ip link set lo up && exec "$@"' sh)
  if "${own[@]}" true 2>/dev/null; then command=("${own[@]}" "${command[@]}"); fi
fi

stop_if_dry_run "${command[@]}"
PATH=$venv/bin:$PATH exec "${command[@]}"
