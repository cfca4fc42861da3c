#!/bin/sh
# The steps of both recipes, in the folder of the project:
#   sh container/steps.sh system     the C compiler with which Triton builds its kernels on a GPU (Debian, root)
#   sh container/steps.sh install    the pinned packages, for the first python of the PATH
#   sh container/steps.sh check      a phantom is simulated and checked; needs no network
# TORCH_INDEX: URL of a package index from which torch is taken, such as that of its builds for CPUs alone.
set -eu

case "${1:-}" in
system)
    apt-get update
    apt-get install --yes --no-install-recommends gcc libc6-dev
    rm -rf /var/lib/apt/lists/*
    ;;
install)
    if [ "${TORCH_INDEX:-default}" != default ]; then
        python -m pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.txt)"
    fi
    python -m pip install --no-cache-dir -r requirements-preprocess.txt
    ;;
check)
    project=$(pwd)
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    cd "$scratch"
    python -c "import ants"
    python "$project/main.py" --preset demo --phantom_subjects 6 2 2 --device cpu --stages check
    ;;
*)
    echo "sh container/steps.sh system | install | check" >&2
    exit 2
    ;;
esac
