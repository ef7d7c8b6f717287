#!/usr/bin/env bash
# One agent per rank on this host, without any launcher: the variables of torchrun, set by a loop.
# Usage: scripts/launch/loop.sh RANKS run SCENARIO [options of syncmark run]
# On several hosts, start ranks on each with the same WORLD_SIZE and MASTER_ADDR, and ranks of their own.
set -euo pipefail
ranks=${1:?usage: $0 RANKS run SCENARIO...}
shift
syncmark=${SYNCMARK:-$(dirname "$0")/../../target/release/syncmark}
export WORLD_SIZE=$ranks LOCAL_WORLD_SIZE=$ranks
export MASTER_ADDR=${MASTER_ADDR:-127.0.0.1} MASTER_PORT=${MASTER_PORT:-29500}

agents=()
for ((rank = 1; rank < ranks; rank++)); do
    RANK=$rank LOCAL_RANK=$rank "$syncmark" "$@" &
    agents+=($!)
done
# Rank 0 runs in the foreground: it alone prints. The others end with it, whatever its end.
status=0
RANK=0 LOCAL_RANK=0 "$syncmark" "$@" || status=$?
wait "${agents[@]}" || status=$((status ? status : $?))
exit "$status"
