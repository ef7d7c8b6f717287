#!/usr/bin/env bash
# Shows that DDP under PyTorch's torchrun, with a process per rank, trains like syncmark's own launch: bit-equal losses.
# Usage: scripts/launch/torchrun.sh [RANKS]      needs `torchrun` on the PATH
set -euo pipefail
ranks=${1:-2}
syncmark=${SYNCMARK:-$(dirname "$0")/../../target/release/syncmark}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# Windows are counted in steps alone: with a time limit both sides would take another number of steps.
arguments=(run quickstart --filter "parallel.strategy=ddp" --set "parallel.devices=$ranks"
    --set measure.min_time=0s --set measure.warmup_time=0s --set measure.repeats=2)

"$syncmark" "${arguments[@]}" --out "$out/own" >"$out/own.txt"
torchrun --standalone --no-python --nproc-per-node "$ranks" \
    "$syncmark" "${arguments[@]}" --out "$out/torchrun" >"$out/torchrun.txt"

# Trial, repeat and loss of every repeat, in an order of their own.
losses() {
    awk -F, 'NR == 1 { for (i = 1; i <= NF; i++) at[$i] = i; next }
             { print $at["trial"], "repeat", $at["repeat"], "loss", $at["loss"], $at["outcome"] }' "$1"/*/repeats.csv | sort
}
losses "$out/own" >"$out/own.losses"
losses "$out/torchrun" >"$out/torchrun.losses"
[ -s "$out/own.losses" ] || { echo "no repeat was recorded" >&2; exit 1; }
[ "$(ls "$out/torchrun" | wc -l)" = 1 ] || { echo "not exactly one run folder" >&2; exit 1; }
diff "$out/own.losses" "$out/torchrun.losses" || { echo "the losses differ" >&2; exit 1; }
cat "$out/torchrun.losses"
echo "equal: $(wc -l <"$out/own.losses") losses of syncmark's own launch and of torchrun with $ranks processes"
