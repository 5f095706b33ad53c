# tar: a tree like the kernel's sources, in and out again, compared.
. "$TOOLS/common.sh"
python3 - "$SCRATCH/tree" "${TREE_FILES:-20000}" <<'PY'
import os, random, sys
root, count = sys.argv[1], int(sys.argv[2])
rng = random.Random(1)
made = 0
while made < count:
    folder = os.path.join(root, *(f"{rng.choice('abcdefgh')}{rng.randrange(6)}" for _ in range(rng.randrange(1, 6))))
    os.makedirs(folder, exist_ok=True)
    for _ in range(min(count - made, rng.randrange(1, 40))):
        size = min(int(rng.lognormvariate(8.5, 1.3)), 2 << 20)
        path = os.path.join(folder, f"file{made}.c")
        with open(path, "wb") as file:
            file.write(rng.randbytes(size))
        if rng.random() < .02:
            os.chmod(path, 0o755)
        if rng.random() < .01:
            os.symlink(f"file{made}.c", path + ".link")
        if rng.random() < .01:
            os.link(path, path + ".same")
        made += 1
PY
tar -C "$SCRATCH/tree" -cf "$SCRATCH/tree.tar" .
mkdir "$MOUNT/tree"
tar -C "$MOUNT/tree" -xpf "$SCRATCH/tree.tar"
tar -C "$MOUNT/tree" -df "$SCRATCH/tree.tar"
tar -C "$OTHER/tree" -df "$SCRATCH/tree.tar"
[ "$(find "$MOUNT/tree" | wc -l)" = "$(find "$SCRATCH/tree" | wc -l)" ]
found=$(find "$MOUNT/tree" | wc -l)
rm -r "$MOUNT/tree"
[ ! -e "$MOUNT/tree" ]
echo "$found names, compared by both mounts"
