#!/usr/bin/env bash
# Agents under Open MPI's mpirun, which only starts them: no message goes through MPI.
# Usage: scripts/launch/mpirun.sh RANKS run SCENARIO [options of syncmark run]
# On several hosts add --hostfile and export MASTER_ADDR, the address of the first host: every rank needs it.
# Each rank is bound to a core, as mpirun does by default for up to two; --map-by core says so for more.
set -euo pipefail
ranks=${1:?usage: $0 RANKS run SCENARIO...}
shift
syncmark=${SYNCMARK:-$(dirname "$0")/../../target/release/syncmark}
options=(-np "$ranks" --map-by core --bind-to core)
[ -z "${MASTER_ADDR:-}" ] || options+=(-x MASTER_ADDR)
[ "$(id -u)" != 0 ] || options+=(--allow-run-as-root)
exec mpirun "${options[@]}" "$syncmark" "$@"
