#!/bin/sh
# The main job on a real model: record both sides, diff them, then plant a fault in the engine and have it named.
# Each command is printed before it runs, so that any of them can be copied.
set -eu
bin=$1
native=$2
model=$3
out=out/demo
prompt="The history of Rome began when"
settings="--max-new-tokens 48 --seed 0 --temperature 0.8 --top-k 50 --top-p 0.95"
export PATH="$bin:$PATH"
mkdir -p "$out"

run() {
    printf '\n$'
    for word in "$@"; do
        case $word in *' '*) printf " '%s'" "$word" ;; *) printf ' %s' "$word" ;; esac
    done
    printf '\n'
    status=0
    "$@" || status=$?
}
title() { printf '\n== %s\n' "$1"; }
must() { [ "$status" = "$1" ] || { echo "demo: expected exit code $1, got $status" >&2; exit 1; }; }

title "1. A transformers script, unedited, recorded as it runs (about 15 s)"
run tracekit record -o $out/python.h5 hooks/torch/examples/generate.py --model "$model" --prompt "$prompt" $settings
must 0
title "2. The same run in float64, forced onto the same tokens: what rounding noise looks like (about 25 s)"
run tracekit oracle $out/python.h5 -o $out/oracle.h5
must 0
title "3. The candle engine, same prompt, same seed (about 10 s)"
run tracekit record -o $out/native.h5 -- "$native" --model "$model" --prompt "$prompt" $settings
must 0
title "4. Do they agree?"
run tracekit diff $out/python.h5 $out/native.h5 --oracle $out/oracle.h5
must 0
title "5. The engine again, with one matrix of layer 12 scaled by 1.0001"
run tracekit record -o $out/faulted.h5 -- "$native" --model "$model" --prompt "$prompt" $settings \
    --fault gain:model.layers.12.mlp.down_proj:1.0001
must 0
title "6. Where do they part?"
run tracekit diff $out/python.h5 $out/faulted.h5 --oracle $out/oracle.h5
must 1
title "7. The same fault from that trace and the checkpoint alone, with no reference run"
run tracekit audit $out/faulted.h5
must 1
title "8. And with the inverse CDF where PyTorch runs an exponential race"
run tracekit record -o $out/sampler.h5 -- "$native" --model "$model" --prompt "$prompt" $settings --fault inverse-cdf
must 0
run tracekit diff $out/python.h5 $out/sampler.h5 --oracle $out/oracle.h5
must 1
printf '\nThe traces are in %s; look into one with: %s/tracekit show %s/native.h5\n' "$out" "$bin" "$out"
