#!/bin/sh
# The tests read archives with stock h5ls and h5dump. Installs them where that needs no password, else names them.
command -v h5dump >/dev/null && command -v h5ls >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing hdf5-tools (h5ls, h5dump) with apt-get"
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq hdf5-tools) >/dev/null && exit 0
fi
echo "tracekit: h5ls and h5dump are missing; on Debian: sudo apt-get install hdf5-tools" >&2
exit 1
