# fsx while servers are killed with SIGKILL, all processes of one at a time, and started again.
. "$TOOLS/common.sh"
need fsx "cargo install fsx"
cat > "$SCRATCH/fsx.toml" <<'TOML'
flen = 1048576
[opsize]
max = 131072
[weights]
close_open = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
truncate = 3
fsync = 1
punch_hole = 3
copy_file_range = 3
TOML
data=$(dirname "$CLUSTER")
fsx -f "$SCRATCH/fsx.toml" -N "${KILL_OPERATIONS:-200000}" -S 77 -P "$SCRATCH" -q "$MOUNT/fsx" > "$SCRATCH/log" 2>&1 &
fsx=$!
kills=0
while kill -0 $fsx 2>/dev/null; do
  server=$((kills % 6 + 1))
  pids=$(pgrep -f -- "--dir [^ ]*$(basename "$data")/server-$server( |\$)" | while read -r pid; do
    tr '\0' ' ' < "/proc/$pid/cmdline" | grep -q "$data/server-$server " && echo "$pid"; done || true)
  [ -z "$pids" ] || kill -9 $pids 2>/dev/null || true
  sleep 4
  (cd "$data/.." && "$BRAID" up --detach --dir "$data") > "$SCRATCH/up" 2>&1 || { cat "$SCRATCH/up"; kill $fsx; exit 1; }
  kills=$((kills + 1))
  sleep 6
done
wait $fsx || { tail -20 "$SCRATCH/log"; exit 1; }
[ $kills -gt 0 ]
echo "${KILL_OPERATIONS:-200000} operations, a server killed and restarted $kills times"
