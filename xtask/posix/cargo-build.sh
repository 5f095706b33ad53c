# cargo build of this project, sources and target folder on the mount.
. "$TOOLS/common.sh"
need cargo "https://rustup.rs"
git -C "$SOURCE" rev-parse 2>/dev/null || skip "$SOURCE is not a git repository"
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
git clone -q "$SOURCE" "$MOUNT/build"
cd "$MOUNT/build"
CARGO_TARGET_DIR="$MOUNT/build/target" CARGO_BUILD_JOBS=2 cargo build -q --offline -p "${BUILD_PACKAGE:-braid}" 2> "$SCRATCH/log" \
  || { tail -20 "$SCRATCH/log"; exit 1; }
# Nothing has changed: nothing is built again.
CARGO_TARGET_DIR="$MOUNT/build/target" cargo build --offline -p "${BUILD_PACKAGE:-braid}" 2>&1 | grep Compiling && exit 1
echo "$(du -sh "$MOUNT/build/target" | cut -f1) of target"
