# dbench: the file operations of an office's file server, four clients.
. "$TOOLS/common.sh"
need dbench "apt install dbench"
load=$(ls /usr/share/dbench/client.txt /usr/share/dbench/loadfiles/client.txt 2>/dev/null | head -1)
[ -n "$load" ] || skip "dbench has no load file"
dbench -c "$load" -D "$MOUNT" -t "${DBENCH_SECONDS:-20}" 4 > "$SCRATCH/log" 2>&1 || { tail -20 "$SCRATCH/log"; exit 1; }
grep -i '^Throughput' "$SCRATCH/log"
