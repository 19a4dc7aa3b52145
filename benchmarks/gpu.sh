#!/usr/bin/env bash
# What `make gpu` does with an NVIDIA GPU: builds the extension for it, tests, sanitizes and measures.
#
#   [PYTHON=python3] benchmarks/gpu.sh [tests] [sanitize] [bench]
#   DEVICE=cpu benchmarks/gpu.sh      a rehearsal: nothing is built, tests are collected, benchmarks are tiny
#
# A part ends within $MINUTES (9). It takes the packages of $PYTHON as they are and writes inside the repository alone:
# the extension, build/gpu/ and benchmarks/results/DATE-GPU.{json,md}. A step that fails does not keep the later ones
# from running; the exit code tells. What has passed on the same sources is not repeated. Where $OUT names a folder,
# results and logs are left there too.
set -u
cd "$(dirname "$0")/.."

export PYTHON=${PYTHON:-python3} DEVICE=${DEVICE:-cuda} PEERS=${DETR_FAST_PEERS:-wheels}
export DETR_FAST_SEED=${DETR_FAST_SEED:-$RANDOM$RANDOM} PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1
PYTHON=$("$PYTHON" -c 'import sys; print(sys.executable)') || exit
[ "$DEVICE" = cuda ] && work=build/gpu || work=build/rehearsal
export WORK=$(realpath -m "${WORK:-$work}")
mkdir -p "$WORK"

about_card='import torch; print(*torch.cuda.get_device_capability(), torch.cuda.get_device_name(), sep="\n")'
if [ "$DEVICE" = cpu ]; then
    { read -r major; read -r minor; read -r card; } <<<$'9\n0\nrehearsal'
elif ! { read -r major && read -r minor && read -r card; } < <("$PYTHON" -c "$about_card" 2>/dev/null); then
    echo "make gpu: torch sees no CUDA device here; \`make test\` proves the kernels without one"
    exit 2
fi
card=$(tr -cs 'A-Za-z0-9\n' - <<<"$card")
export ARCHITECTURE=$major$minor TORCH_CUDA_ARCH_LIST=$major.$minor FORCE_CUDA=1 MAX_JOBS=$(nproc)

find_tool() {
    "$PYTHON" - "$1" "$WORK/packages" <<<'
import pathlib, sys
from benchmarks.machine_code import find_tool
print(find_tool(sys.argv[1], pathlib.Path(sys.argv[2])) or "")'
}
importable() { "$PYTHON" -c "from importlib.util import find_spec; exit(find_spec('$1') is None)"; }

# Every cache lies inside the repository, nvcc where compilers look for it.
export PYTHONPATH=$PWD:$WORK/packages${PYTHONPATH:+:$PYTHONPATH} PATH=$(dirname "$PYTHON"):$PATH
export TRITON_CACHE_DIR=$WORK/triton TORCHINDUCTOR_CACHE_DIR=$WORK/inductor CUDA_CACHE_PATH=$WORK/cuda
export TORCH_EXTENSIONS_DIR=$WORK/extensions
nvcc=$(find_tool nvcc)
if [ -n "$nvcc" ]; then
    export PATH=$PATH:$(dirname "$nvcc") CUDACXX=${CUDACXX:-$nvcc}
    for home in "$(dirname "$(dirname "$(realpath "$nvcc")")")" /usr/local/cuda; do
        [ -f "$home/include/cuda_runtime.h" ] && export CUDA_HOME=${CUDA_HOME:-$home}
    done
fi
if [ ! -f "${CUDA_HOME:-}/include/cusparse.h" ]; then # a toolkit without its libraries' headers: torch's packages have them
    site=$("$PYTHON" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])')
    export CPATH=$(printf '%s:' "$site"/nvidia/*/include)${CPATH:-}
fi
export SOURCES=$({
    echo "$card"
    find csrc detr_fast tests benchmarks -name '*.py' -o -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.sh' |
        LC_ALL=C sort | xargs cat
} | sha256sum | cut -c1-16)

build() {
    cmake -S . -B "$WORK/cmake" $(command -v ninja >/dev/null && echo -G Ninja) \
        -DDETR_FAST_CUDA="$([ "$DEVICE" = cuda ] && echo ON || echo OFF)" -DDETR_FAST_CUDA_ARCHS="$ARCHITECTURE-real" \
        -DPython_EXECUTABLE="$PYTHON" \
        -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)" || return
    [ "$DEVICE" = cpu ] && return
    cmake --build "$WORK/cmake" --parallel "$(nproc)" && cmake --install "$WORK/cmake" --prefix .
}

install() { # MODULE ARCHIVE...: the last one, compiled against the torch at hand, unless the module is there already
    if importable "$1"; then
        echo "$1 is installed"
    elif [ ! -e "${*: -1}" ]; then
        echo "$1: no archive in $PEERS (DETR_FAST_PEERS), see benchmarks/README.md; what needs it is left out"
    else
        "$PYTHON" -m pip install --no-index --no-deps --no-build-isolation --no-cache-dir --upgrade \
            --ignore-requires-python --target "$WORK/packages" "${*: -1}"
    fi
}

peers() {
    local compile='import sys, benchmarks.peers.gpu_assignment as peers; sys.exit(peers.birder_operator()[1])'
    rm -f "$TORCH_EXTENSIONS_DIR"/*/lock # of a run that was stopped
    install torch_linear_assignment "$PEERS"/torch_linear_assignment-*.whl &&
        install birder "$PEERS"/birder-*.whl &&
        install torch_ms_deform_attn "$PEERS"/torch_ms_deform_attn-*.tar.gz || return
    # birder's kernel is compiled when it is first used: here, not in the benchmark's time
    ! importable birder || "$PYTHON" -c "$compile"
}

deformops() {
    "$PYTHON" -c 'import sys; exit(sys.version_info < (3, 12))' || { echo "needs Python 3.12" && return; }
    install deformops "$PEERS"/deformops-*
}

sanitizer() { [ -n "$(find_tool compute-sanitizer)" ] || install compute_sanitizer "$PEERS"/nvidia_cuda_sanitizer_api-*.whl; }

run_tests() { # WORKERS ARGUMENT...
    local options=(-q -rs -p no:cacheprovider --no-header)
    if [ "$DEVICE" = cpu ]; then
        options+=(--collect-only -p tests.fake_cuda)
    elif importable xdist; then
        options+=(-n "$1" --dist worksteal)
    fi
    OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=4 "$PYTHON" -m pytest "${options[@]}" "${@:2}"
}

run_all_tests() { # a test that is skipped fails the step
    run_tests "$@" | tee "$WORK/all.txt"
    [ "${PIPESTATUS[0]}" = 0 ] && ! grep -E '[0-9]+ skipped' "$WORK/all.txt"
}

sanitize() { # TOOL
    local module=(-m benchmarks sanitize --device "$DEVICE") tool
    if [ "$DEVICE" = cpu ]; then
        "$PYTHON" "${module[@]}" --largest 200
        return
    fi
    tool=$(find_tool compute-sanitizer)
    [ -n "$tool" ] || { echo "no compute-sanitizer in a toolkit or in nvidia-cuda-sanitizer-api" && return 1; }
    # each tensor gets an allocation of its own, so that an access beyond its end is seen
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$tool" --tool "$1" --error-exitcode 9 --print-limit 20 "$PYTHON" "${module[@]}" |&
        tee "$WORK/$1.txt"
    [ "${PIPESTATUS[0]}" = 0 ] && grep -q 'SUMMARY: 0 ' "$WORK/$1.txt" && ! grep 'SUMMARY: [1-9]' "$WORK/$1.txt"
}

bench() { # NAME OPERATOR...: in a process of its own, so that a lost device ends no other's
    [ "$LIMIT" -gt 20 ] || { echo "no time was left" && return 1; }
    local options=(--device "$DEVICE" --alone --deadline $((LIMIT - 10)) --json "$WORK/$1-$SOURCES.json")
    [ "$DEVICE" = cuda ] || options+=(--tiny)
    shift
    "$PYTHON" -m benchmarks "${options[@]}" "${@/#/--operator=}"
}

# step NAME RESERVED COMMAND...: within the part's time but for RESERVED seconds, which belong to later steps
step() {
    local name=$1 began=$SECONDS state=passed detail="in an earlier call" log=$WORK/$1-$SOURCES.log
    export LIMIT=$((ends - SECONDS - $2))
    if [ "$name" = build ] || [ ! -e "$WORK/$name-$SOURCES.passed" ]; then
        timeout -k 5 "$((LIMIT > 0 ? LIMIT : 1))" bash -c '"$@"' step "${@:3}" >"$log" 2>&1 </dev/null
        case $? in
        0) touch "$WORK/$name-$SOURCES.passed" ;;
        124 | 137) state="failed: time was up" ;;
        *) state=failed ;;
        esac
        detail=$(grep -E '^(=+ )?[0-9]+[^ ]* (passed|failed|skipped|error|tests collected)' "$log" | tail -1 | tr -d =)
        [ "$state" = passed ] || tail -c 4000 "$log"
    fi
    echo "== $name: $state in $((SECONDS - began)) s $detail"
    echo "| $part | $name | $state | $((SECONDS - began)) | $detail |" >>"$steps"
}

part_tests() {
    # of the references, which CPUs run too, a sample
    local kernels="cuda and (not reference-cuda or forward_equals and reference-cuda-float32)"
    step build 450
    # sizes beyond int32 and float64 references of real sizes: alone on the card
    step large 405 run_all_tests 0 tests/gpu -m large
    step contract 205 run_tests 12 tests/ops/test_contract.py -k "$kernels"
    step device 25 run_tests 12 tests/gpu -m "not large" # streams, graphs, inductor
    step golden 0 run_tests 4 tests/golden/test_golden_ms_deform_attn.py -k cuda
}

part_sanitize() {
    step build 400
    step sanitizer 400
    for tool in memcheck racecheck synccheck; do step $tool 0 sanitize $tool & done
    wait
}

part_bench() {
    step peers 400 &
    step deformops 400 &
    step build 400
    wait
    step attention 210 bench attention ms_deform_attn
    step matching 100 bench matching linear_assignment box_match_cost matcher criterion class_loss box_loss
    step models 0 bench models mask_match_cost mask_criterion point_sample model
}

# The steps of all parts that ran on these sources, then what was measured.
join() {
    {
        printf '# %s\n\n| part | step | state | seconds | |\n|---|---|---|---:|---|\n' "$name"
        cat "$WORK"/*-"$SOURCES".steps
        echo
        if compgen -G "$WORK/*-$SOURCES.json" >/dev/null; then
            "$PYTHON" -m benchmarks merge "$WORK"/*-"$SOURCES".json --out "$results/$name.json"
        fi
    } >"$results/$name.md"
    [ -z "${OUT:-}" ] || cp "$results/$name".* "$WORK"/*-"$SOURCES".* "$OUT"
}

[ "$DEVICE" = cuda ] && results=benchmarks/results || results=$WORK
name=$(date -u +%F)-$card code=0
export -f build install peers deformops sanitizer run_tests run_all_tests sanitize bench find_tool importable
[ $# -gt 0 ] || set -- tests sanitize bench
for part; do
    declare -F "part_$part" >/dev/null || { echo "PART: expected some of tests, sanitize, bench; got $part" && exit 2; }
done
for part; do
    ends=$((SECONDS + 60 * ${MINUTES:-9})) steps=$WORK/$part-$SOURCES.steps verdict=passed
    : >"$steps"
    "part_$part"
    if grep -q '| failed' "$steps"; then verdict="NOT PASSED" code=1; fi
    join
    echo "== $part: $verdict, joined in $results/$name.md"
done
exit $code
