#!/usr/bin/env bash
# Fuzzes one target for some seconds from fresh seeds: run.sh scenario|data SECONDS
set -euo pipefail
target=${1:?scenario or data} seconds=${2:?seconds}
cd "$(dirname "$0")"
corpus=corpus/$target
mkdir -p "$corpus"
case $target in
scenario)
  for file in ../../scenarios/*.toml ../../scenarios/models/*.toml; do
    cp "$file" "$corpus/$(basename "$file")"
  done
  ;;
data)
  python3 - "$corpus" ../../scenarios/data <<'PYTHON'
import gzip, pathlib, struct, sys
corpus, digits = map(pathlib.Path, sys.argv[1:])
def idx(sizes, data):
    return struct.pack(">HBB", 0, 8, len(sizes)) + b"".join(struct.pack(">I", n) for n in sizes) + data
images, labels = idx([2, 28, 28], bytes(range(196)) * 8), idx([2], b"\x03\x09")
record = b"\x07" + bytes(range(256)) * 12
own = (digits / "digits.images.idx3-ubyte").read_bytes() + (digits / "digits.labels.idx1-ubyte").read_bytes()
seeds = {"images": (0, images), "images.gz": (0, gzip.compress(images)), "labels": (1, labels),
         "labels.gz": (1, gzip.compress(labels)), "records": (2, record * 2), "digits": (3, own)}
for name, (reader, data) in seeds.items():
    (corpus / name).write_bytes(bytes([reader]) + data)
PYTHON
  ;;
*)
  echo "no target $target: scenario or data" >&2
  exit 2
  ;;
esac
export RUSTC_BOOTSTRAP=1
exec cargo fuzz run --fuzz-dir . "$target" -- -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -max_len=131072
