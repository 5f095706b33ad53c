# For all scripts: what is missing is a reason to skip, never to pass.
set -eu
skip() { echo "$1"; exit 77; }
need() { command -v "$1" >/dev/null 2>&1 || skip "no $1: $2"; }
root() { [ "$(id -u)" = 0 ] || skip "only root can do this"; }
