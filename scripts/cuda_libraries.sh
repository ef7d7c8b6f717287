#!/usr/bin/env bash
# Installs NVIDIA's libraries from PyPI's wheels, for a machine that has only the driver (release 580 or later), or that only compiles
# kernels (--only nvrtc). Needs Linux, python3, and pip or uv (or python3's venv, which brings a pip).
#
# syncmark finds what lies in the default directory by itself; another one is named in SYNCMARK_CUDA_LIBRARIES. Running this again
# checks what is there and installs only if something is missing or damaged. `syncmark doctor` shows what is found.
# Exit status: 0 all is there; 1 it could not be installed, with the reason; 2 bad usage.
set -euo pipefail

# Versions that were released together, with CUDA 13.0 update 2: PTX of a newer NVRTC is refused by a driver of release 580.
# The kernels need no headers of CUDA's.
nvrtc=(nvidia-cuda-nvrtc==13.0.88)
others=(nvidia-cublas==13.1.0.3 nvidia-cudnn-cu13==9.19.0.56 nvidia-nccl-cu13==2.28.9)
# What the download and what is unpacked take together, in MiB.
nvrtc_mib=400 all_mib=3200

usage() {
    cat <<'TEXT'
usage: scripts/cuda_libraries.sh [--only nvrtc] [DIR]

Installs NVRTC, cuBLAS, cuBLASLt, cuDNN and NCCL (about 1.5 GiB) into DIR, or ${XDG_DATA_HOME:-~/.local/share}/syncmark/cuda.
  --only nvrtc   the kernels' compiler alone (about 90 MiB): enough to compile kernels where there is no GPU
TEXT
}

fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '  help: %s\n' "$@" >&2
    exit 1
}

packages=("${nvrtc[@]}" "${others[@]}") needed_mib=$all_mib directory=
while [ $# -gt 0 ]; do
    case $1 in
        --only)
            [ "${2-}" = nvrtc ] || { usage >&2; exit 2; }
            packages=("${nvrtc[@]}") needed_mib=$nvrtc_mib
            shift ;;
        -h | --help) usage; exit 0 ;;
        -*) usage >&2; exit 2 ;;
        *)
            [ -z "$directory" ] && [ -n "$1" ] || { usage >&2; exit 2; }
            directory=$1 ;;
    esac
    shift
done
if [ -z "$directory" ]; then
    [ -n "${XDG_DATA_HOME-}${HOME-}" ] || fail "neither XDG_DATA_HOME nor HOME is set" "name a directory"
    directory=${XDG_DATA_HOME:-$HOME/.local/share}/syncmark/cuda
fi

command -v python3 >/dev/null || fail "there is no python3" \
    "install it with its pip (Debian: apt-get install python3-pip)"

# What was installed, by the lists that the wheels bring. `verify DIR NAME==VERSION...` fails with what is missing or differs;
# `merge FROM DIR NAME==VERSION...` puts packages in the place of their older versions.
records() {
    python3 - "$@" <<'PYTHON'
import base64, csv, hashlib, os, pathlib, re, shutil, sys

def files(directory, package):
    """Path, hash and size of each file of an installed package, of any version if none is given."""
    name, _, version = package.partition("==")
    name = re.sub(r"[-_.]+", "_", name)
    found = sorted(directory.glob(f"{name}-{version or '*'}.dist-info/RECORD"))
    rows = []
    for record in found:
        with record.open(newline="") as text:
            rows += [row for row in csv.reader(text) if row]
    return rows, [record.parent for record in found]

def verify(directory, packages):
    for package in packages:
        rows, _ = files(directory, package)
        if not rows:
            sys.exit(f"{package} is not installed")
        for path, digest, size in rows:
            path = directory / path
            if not path.is_file():
                # Installers leave out or rename what they compile or list themselves.
                if digest and path.suffix != ".pyc" and "dist-info" not in str(path):
                    sys.exit(f"{path} is missing")
                continue
            if not digest.startswith("sha256=") or ".dist-info" in str(path):
                continue
            if size and path.stat().st_size != int(size):
                sys.exit(f"{path} has {path.stat().st_size} bytes, not {size}")
            found = hashlib.sha256()
            with path.open("rb") as data:
                for block in iter(lambda: data.read(1 << 20), b""):
                    found.update(block)
            if base64.urlsafe_b64encode(found.digest()).rstrip(b"=").decode() != digest[7:]:
                sys.exit(f"{path} is damaged: its hash differs")

def merge(source, directory, packages):
    for package in packages:
        rows, lists = files(directory, package.partition("==")[0])
        for path, *_ in rows:
            path = directory / path
            # A list that points out of the directory is none of ours.
            if directory.resolve() in path.resolve().parents and path.is_file():
                path.unlink()
        for one in lists:
            shutil.rmtree(one)
    # One file after the other, by rename: both are on one file system.
    for folder, _, names in os.walk(source):
        target = directory / os.path.relpath(folder, source)
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            os.replace(os.path.join(folder, name), target / name)

verb, *arguments = sys.argv[1:]
try:
    if verb == "verify":
        verify(pathlib.Path(arguments[0]), arguments[1:])
    else:
        merge(pathlib.Path(arguments[0]), pathlib.Path(arguments[1]), arguments[2:])
except (OSError, ValueError) as error:
    sys.exit(str(error))
PYTHON
}

if problem=$(records verify "$directory" "${packages[@]}" 2>&1); then
    echo "already installed in $directory: ${packages[*]}"
    exit 0
fi
[ ! -e "$directory" ] || echo "installing, since $problem"

case "$(uname -s) $(uname -m)" in
    "Linux x86_64" | "Linux aarch64") ;;
    *) fail "NVIDIA has no wheels for $(uname -s) on $(uname -m)" ;;
esac
mkdir -p "$directory" 2>/dev/null || fail "cannot make $directory" "name a directory that can be written"
directory=$(cd "$directory" && pwd)
[ -w "$directory" ] || fail "cannot write to $directory" "name a directory that can be written"
free_mib=$(df -Pm "$directory" | awk 'NR == 2 { print $4 }')
[ "${free_mib:-0}" -ge "$needed_mib" ] || fail "$directory has $free_mib MiB of room, and $needed_mib MiB are needed" \
    "make room, or name a directory on another disk"

# Everything is fetched and unpacked beside the rest, so that a rename puts it there, and a failure leaves what was there.
staging=$(mktemp -d "$directory/.installing.XXXXXX")
trap 'rm -rf "$staging"' EXIT
mkdir "$staging/tmp"
export TMPDIR=$staging/tmp PIP_ROOT_USER_ACTION=ignore

pip=()
if python3 -m pip --version >/dev/null 2>&1; then
    pip=(python3 -m pip install --no-cache-dir --no-compile --disable-pip-version-check --progress-bar off)
elif command -v uv >/dev/null; then
    pip=(uv pip install --no-cache --python python3)
elif python3 -m venv "$staging/venv" >/dev/null 2>&1 && "$staging/venv/bin/python3" -m pip --version >/dev/null 2>&1; then
    pip=("$staging/venv/bin/python3" -m pip install --no-cache-dir --no-compile --disable-pip-version-check --progress-bar off)
else
    fail "python3 has neither pip nor venv, and there is no uv" \
        "install one of them (Debian: apt-get install python3-pip, or python3-venv)"
fi

echo "installing ${packages[*]} into $directory"
# Their dependencies are each other.
if ! "${pip[@]}" --no-deps --target "$staging/new" "${packages[@]}" 2>&1 | tee "$staging/log"; then
    if grep -q 'No space left\|Errno 28\|os error 28\|Disk quota' "$staging/log"; then
        fail "the disk of $directory is full" "make room for $needed_mib MiB, or name a directory on another disk"
    elif grep -qi 'connection\|resolv\|network\|timed out\|timeout\|unreachable\|dns error\|error sending request\|from versions: none' "$staging/log"; then
        fail "PyPI cannot be reached" \
            "check the network (HTTPS_PROXY, PIP_INDEX_URL); without one, run this on a machine that has it, copy the directory, and name it in SYNCMARK_CUDA_LIBRARIES" \
            "NVIDIA's wheels are for glibc: a system without it (Alpine) finds none"
    fi
    fail "the installer failed: its own words stand above"
fi
rm -f "$staging/new/.lock"
problem=$(records verify "$staging/new" "${packages[@]}" 2>&1) || fail "what was installed is not whole: $problem" "run this again"
problem=$(records merge "$staging/new" "$directory" "${packages[@]}" 2>&1) || fail "cannot put it into $directory: $problem"
problem=$(records verify "$directory" "${packages[@]}" 2>&1) || fail "what was installed is not whole: $problem" "run this again"

default=${XDG_DATA_HOME:-${HOME-}/.local/share}/syncmark/cuda
echo "installed in $directory: ${packages[*]}"
if [ "$directory" != "$default" ]; then
    echo "export SYNCMARK_CUDA_LIBRARIES='$directory'   # syncmark does not look there by itself"
fi
