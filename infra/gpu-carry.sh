#!/bin/sh
# Collects the wheels that `make check-gpu` needs on a machine with torch for CUDA but without network:
#   infra/gpu-carry.sh FOLDER [PYTHON_VERSION]     default: 3.12
# There: make check-gpu WHEELS=FOLDER PYTHON=python3
# That machine must have torch, timm, transformers, safetensors, jaxtyping, numpy, pandas, pyarrow, scipy, pillow, numba
# and their dependencies.
set -eu

if [ $# -lt 1 ]; then
    sed -n '2,6s/^# *//p' "$0" >&2
    exit 2
fi
folder=$1 version=${2:-3.12}
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
[ -x "$python" ] || python=python3
mkdir -p "$folder"
packages=$(grep -E '^(av|google-crc32c|resampy|soundfile|cffi|pycparser|einops|rich)==' \
    "$here/constraints.txt")
platforms=
for platform in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014; do
    platforms="$platforms --platform ${platform}_x86_64"
done
# shellcheck disable=SC2086
"$python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$version" \
    $platforms --dest "$folder" $packages
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" "$(grep '^torchvggish==' "$here/constraints.txt")"
du -sh "$folder"
