# A user without rights mounts by fusermount3, works, and unmounts; without /dev/fuse there is a reason.
. "$TOOLS/common.sh"
root
need fusermount3 "apt install fuse3"
id nobody > /dev/null 2>&1 || skip "no user nobody"
chmod 755 "$(dirname "$SCRATCH")" "$SCRATCH"; mkdir "$SCRATCH/u"; chown nobody "$SCRATCH/u"
cp "$BRAID" "$SCRATCH/braid"; cp "$CLUSTER" "$SCRATCH/client.toml"; chmod 755 "$SCRATCH/braid"; chmod 644 "$SCRATCH/client.toml"
run() { runuser -u nobody -- "$@"; }
cd /
run sh -c ': < /dev/fuse' 2>/dev/null || skip "only root may open /dev/fuse here: chmod 666 /dev/fuse"
run "$SCRATCH/braid" --cluster "$SCRATCH/client.toml" mount "$SCRATCH/u"
trap 'fusermount3 -u -z "$SCRATCH/u" 2>/dev/null || true' EXIT
name=$(basename "$MOUNT"); chmod 777 "$MOUNT"
run sh -c "echo words > '$SCRATCH/u/$name/mine' && cat '$SCRATCH/u/$name/mine'" | grep -q words
[ "$(stat -c %U "$MOUNT/mine")" = nobody ]
touch "$MOUNT/root"; chmod 600 "$MOUNT/root"
if run cat "$SCRATCH/u/$name/root" 2>/dev/null; then echo "nobody reads root's file"; exit 1; fi
run fusermount3 -u "$SCRATCH/u"
trap - EXIT
said=$(unshare -m sh -c "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && '$BRAID' --cluster '$CLUSTER' mount '$SCRATCH/u'" 2>&1 || true)
echo "$said" | grep -q 'modprobe fuse' || { echo "without /dev/fuse: $said"; exit 1; }
echo "mount, write, read, unmount as nobody; without /dev/fuse: $(echo "$said" | cut -c1-60)..."
