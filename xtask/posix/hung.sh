# A cluster that hangs (SIGSTOP of all its processes) holds nobody who wants to go: a killed process
# ends, and the mount can be unmounted by force; a soft mount gives an error.
. "$TOOLS/common.sh"
root
data="$SCRATCH/hung"
mkdir -p "$SCRATCH/hard" "$SCRATCH/soft"
cd "$SCRATCH"
"$BRAID" up --detach --servers 3 --dir "$data" --port-base 18800 > /dev/null
pids() { for p in /proc/[0-9]*; do tr '\0' ' ' 2>/dev/null < "$p/cmdline" | grep -q -- "--dir $data/server-" && echo "${p#/proc/}"; done; true; }
trap 'kill -CONT $(pids) 2>/dev/null; umount -l "$SCRATCH/hard" "$SCRATCH/soft" 2>/dev/null; "$BRAID" --cluster "$data/client.toml" down > /dev/null 2>&1 || kill -9 $(pids)' EXIT
"$BRAID" --cluster "$data/client.toml" mount "$SCRATCH/hard"
"$BRAID" --cluster "$data/client.toml" mount "$SCRATCH/soft" -o soft
head -c 3000000 /dev/urandom > "$SCRATCH/hard/file"
cp "$SCRATCH/hard/file" "$SCRATCH/copy"
kill -STOP $(pids)
sleep 1.5
cat "$SCRATCH/hard/new" > /dev/null 2>&1 &
reader=$!
sleep 1
kill -9 $reader
timeout 10 tail --pid=$reader -f /dev/null || { echo "a killed reader does not end"; exit 1; }
begun=$(date +%s)
if timeout 60 ls "$SCRATCH/soft" > /dev/null 2> "$SCRATCH/soft.log"; then echo "a soft mount answers without its cluster"; exit 1; fi
grep -q 'Input/output error' "$SCRATCH/soft.log" || { cat "$SCRATCH/soft.log"; echo "no EIO after $(($(date +%s) - begun)) s"; exit 1; }
soft=$(($(date +%s) - begun))
timeout 20 umount -f "$SCRATCH/soft" || timeout 20 umount -l "$SCRATCH/soft" || { echo "soft cannot be unmounted"; exit 1; }
timeout 20 umount -f "$SCRATCH/hard" || timeout 20 umount -l "$SCRATCH/hard" || { echo "hard cannot be unmounted"; exit 1; }
kill -CONT $(pids)
for _ in $(seq 60); do "$BRAID" --cluster "$data/client.toml" mount "$SCRATCH/hard" > /dev/null 2>&1 && break; sleep 1; done
timeout 60 cmp "$SCRATCH/hard/file" "$SCRATCH/copy"
echo "killed reader ends, soft gives EIO after $soft s, umount -f works, all is there after SIGCONT"
