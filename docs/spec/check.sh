#!/bin/sh
# Checks register.pml with spin, exhaustively within each run's bounds (runs.txt).  Needs spin and a C compiler.
#
#   ./check.sh             every quick run: some seconds each
#   ./check.sh all         the long ones too: some minutes each, one core, up to MEMORY_MB
#   ./check.sh NAME ...    these runs
#   ./check.sh -t NAME     this run, and the schedule that breaks it
#
# Prints one line per run and exits with 1 if one does not come out as runs.txt says.  Everything is made in a scratch
# directory that is removed.
set -u
here=$(cd "$(dirname "$0")" && pwd)
memory_mb=${MEMORY_MB:-6000}
trace=
[ "${1:-}" = -t ] && { trace=yes; shift; }
wanted=" ${*:-quick} "
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
cd "$scratch" || exit 1
cp "$here/register.pml" .
wrong=0

figure() { sed -n "s/^ *\([0-9.]*\) *$1.*/\1/p" out; }

printf '%-19s %-8s %-10s %11s %13s %6s %8s %6s\n' run expected found states transitions depth seconds MB
while read -r name expected size flags; do
    case $name in \#* | '') continue ;; esac
    case $wanted in *" $name "* | *" all "* | *" $size "*) ;; *) continue ;; esac
    # shellcheck disable=SC2086  # flags are several words
    spin -a $flags register.pml >out 2>&1 &&
        cc ${CFLAGS:--O2} -w -DSAFETY -DNOREDUCE -DMEMLIM="$memory_mb" -o pan pan.c >>out 2>&1 || { cat out; exit 1; }
    rm -f ./*.trail
    ./pan -E -n -m10000 -w24 >out 2>&1
    if grep -q 'assertion violated' out; then
        found=broken
    elif grep -q 'errors: 0' out && ! grep -Eq 'Search not completed|too small|truncated' out; then
        found=holds
    else
        found=unfinished
    fi
    [ "$found" = "$expected" ] || wrong=1
    printf '%-19s %-8s %-10s %11s %13s %6s %8s %6.0f\n' "$name" "$expected" "$found" "$(figure 'states, stored')" \
        "$(figure 'transitions (')" "$(sed -n 's/.*depth reached \([0-9]*\).*/\1/p' out)" \
        "$(sed -n 's/.*elapsed time \([0-9.]*\).*/\1/p' out)" \
        "$(sed -n 's/^ *\([0-9.]*\).*\(total actual memory usage\|memory usage (Mbyte)\).*/\1/p' out)"
    if [ -n "$trace" ] && [ "$found" = broken ]; then
        # shellcheck disable=SC2086
        spin -t $flags register.pml | sed -n '/trail ends/q; s/^ */    /p'
    fi
done <"$here/runs.txt"
exit $wrong
