#!/bin/sh
# The native CosyVoice3 program with faults that depend on the seed: what `tracekit postmortem` is tried on.
#
#   sh scripts/native_with_faults.sh --native PROGRAM --seed N [ARGUMENTS of `tracekit-native cosyvoice3`]
#
# Rotary tables in float16 where the seed is a multiple of 7, a stop too early of 11, an inverse CDF of 13.
set -eu
native= seed=
while [ $# -gt 0 ]; do
    case $1 in
        --native) native=$2; shift 2 ;;
        --seed) seed=$2; shift 2 ;;
        *) break ;;
    esac
done
[ $((seed % 7)) -ne 0 ] || set -- "$@" --fault rope-f16
[ $((seed % 11)) -ne 0 ] || set -- "$@" --fault stop-early
[ $((seed % 13)) -ne 0 ] || set -- "$@" --fault inverse-cdf
exec "$native" cosyvoice3 --seed "$seed" "$@"
