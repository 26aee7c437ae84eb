#!/usr/bin/env bash
# Run all checks that need a GPU: build, compare, time, soak. Write one report file to send back. The script takes about
# ten minutes; `SOAK=minutes` makes the soak longer.
#
#   bash scripts/on_device.sh [report.txt]      with PYTHON=... for an interpreter other than python3
set -uo pipefail
cd "$(dirname "$0")/.."
report=$(realpath -m "${1:-corrflow-device-report.txt}")
python=${PYTHON:-python3}
soak=${SOAK:-2}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0

run() { # run TITLE COMMAND...: write output and exit code to the report, and continue after a failure
    local title=$1 code
    shift
    printf '\n## %s\n$ %s\n' "$title" "$*"
    "$@" 2>&1
    code=$?
    printf 'exit code %s\n' "$code"
    [ "$code" -eq 0 ] || failed=$((failed + 1))
}
machine() { # clocks and power; each of these tools exists on some machines only
    printf '\n## machine %s\n' "$1"
    command -v nvpmodel >/dev/null && nvpmodel -q 2>&1
    command -v jetson_clocks >/dev/null && jetson_clocks --show 2>&1
    command -v nvidia-smi >/dev/null && nvidia-smi \
        --query-gpu=name,driver_version,compute_cap,pstate,clocks.sm,clocks.mem,power.draw,power.limit,temperature.gpu \
        --format=csv 2>&1
    uptime
}
bench_cli=("$python" -m corrflow.bench.cli)
export_cli=("$python" -m corrflow.export.cli)
track_cli=("$python" -m corrflow.runtime.commands.track_cli)
bundled=$("$python" -c 'from corrflow.runtime.artifacts.bundled import resolve_model as p; print(p(None))') || {
    echo "error: expected corrflow to be installed for $python, found none; pip install '.[tensorrt]'" >&2
    exit 2
}
{
    echo "# corrflow on a device, $(date -u +%Y-%m-%dT%H:%M:%SZ), $(git rev-parse --short HEAD 2>/dev/null || echo no git)"
    uname -a
    head -n 1 /etc/nv_tegra_release 2>/dev/null
    run "versions" "$python" -m pip list
    machine "before"
    run "what works" "$python" -m corrflow.runtime.commands.doctor_cli
    run "kernel: comparison with the CPU, and time" "${bench_cli[@]}" kernel
    for choice in "fp32 on" "fp16 on" "fp16 off" "int8 on"; do
        read -r precision plugin <<<"$choice"
        artifact=$scratch/$precision-$plugin
        cp -r "$bundled" "$artifact"
        rm -rf "$artifact/engines"
        # The demo clip is tracked at its size, 640x360.
        run "build and compare, $precision, plugin $plugin" \
            "${export_cli[@]}" engine "$artifact" --precision "$precision" --plugin "$plugin" --size 360x640
        machine "before tracking with $choice"
        run "track, $precision, plugin $plugin" \
            "${track_cli[@]}" --demo --model "$artifact" --backend tensorrt --verbose --out "$scratch/out"
        machine "after"
    done
    run "a second build does nothing" "${export_cli[@]}" engine "$scratch/fp16-on" --precision fp16 --size 360x640
    run "track with onnxruntime on the GPU" \
        "${track_cli[@]}" --demo --backend onnxruntime-cuda --verbose --out "$scratch/out"
    run "track on the CPU" "${track_cli[@]}" --demo --backend onnxruntime --verbose --out "$scratch/out"
    # Working size, and a larger size, whose frames are resized on the GPU or on the CPU.
    for size in 360x640 1080x1920; do
        for backend in tensorrt onnxruntime; do
            run "frames per second at $size, $backend" "${bench_cli[@]}" track --model "$scratch/fp16-on" \
                --backend "$backend" --size "$size" --short-side 360 --no-peer
        done
    done
    if "$python" -c 'import pytest' 2>/dev/null; then
        run "the tests that need a GPU" "$python" -m pytest -q -rs -W default -m gpu tests/runtime/backends/test_gpu.py
    else
        printf '\n## the tests that need a GPU: not run, %s has no pytest\n' "$python"
    fi
    # One process, so that growth is detected; the camera has 240 x 320 pixels.
    soaked=$scratch/soak
    cp -r "$bundled" "$soaked"
    rm -rf "$soaked/engines"
    run "build for the soak" "${export_cli[@]}" engine "$soaked" --precision fp16 --size 240x320
    run "what works with these engines" "$python" -m corrflow.runtime.commands.doctor_cli --model "$soaked"
    machine "before the soak"
    run "soak" "${bench_cli[@]}" soak --model "$soaked" --backend tensorrt --short-side 240 --seconds "$((60 * soak))"
    machine "after the soak"
    printf '\n%s commands failed\n' "$failed"
} > >(tee "$report") 2>&1
wait
echo "wrote $report"
[ "$failed" -eq 0 ]
