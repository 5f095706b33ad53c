# bonnie++: many files made, listed and removed; large ones rewritten and sought in.
. "$TOOLS/common.sh"
need bonnie++ "apt install bonnie++"
bonnie++ -q -d "$MOUNT" -u 0:0 -s 64m -r 32m -n 4:20000:16:4 > "$SCRATCH/log" 2>&1 || { tail -20 "$SCRATCH/log"; exit 1; }
echo "done"
