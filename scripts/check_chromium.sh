#!/bin/sh
# The tests open the report in Debian's chromium. Installs it where that needs no password, else names it.
command -v chromium >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing chromium with apt-get"
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium) >/dev/null && exit 0
fi
echo "tracekit: chromium is missing; on Debian: sudo apt-get install chromium" >&2
exit 1
