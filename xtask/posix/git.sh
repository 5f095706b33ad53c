# git: clone of this project, fsck, checkout, gc, and a clone of the clone by another mount.
. "$TOOLS/common.sh"
need git "apt install git"
git -C "$SOURCE" rev-parse 2>/dev/null || skip "$SOURCE is not a git repository"
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
git clone -q --no-local --no-hardlinks "$SOURCE" "$MOUNT/clone"
git -C "$MOUNT/clone" fsck --full --strict 2>&1 | grep -v -E '^(Checking|dangling)' && exit 1
git -C "$MOUNT/clone" status --porcelain | grep . && exit 1
git -C "$MOUNT/clone" gc -q
git clone -q --no-hardlinks "$OTHER/clone" "$OTHER/again"
git -C "$OTHER/again" fsck --full --strict
diff -r --exclude=.git "$MOUNT/clone" "$OTHER/again"
echo "$(git -C "$MOUNT/clone" rev-list --all --count) commits"
