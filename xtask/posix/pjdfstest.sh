# pjdfstest (the Rust edition): what POSIX asks of each call, also for users without rights.
. "$TOOLS/common.sh"
need pjdfstest "cargo install pjdfstest"
root
users=$(for user in nobody tests; do id -u "$user" >/dev/null 2>&1 && echo "$user"; done | wc -l)
[ "$users" = 2 ] || skip "the users nobody and tests are needed: useradd -M tests"
cat > "$SCRATCH/pjdfstest.toml" <<'TOML'
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.001
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["tests", "tests"]]
TOML
# A file system of another device, for EXDEV.
other=/dev/shm; [ -d "$other" ] || other=/tmp
status=0
run() {
  pjdfstest -c "$SCRATCH/pjdfstest.toml" -p "$MOUNT" -s "$other" "$@" > "$SCRATCH/log" 2>&1 || status=$?
  grep -A3 -E ' (FAILED|skipped)$' "$SCRATCH/log" || true
  grep '^Summary' "$SCRATCH/log"
}
run
# Apart: another test leaves a file open for writing, and no file system is made read-only under that.
sed -i 's/^allow_remount.*/allow_remount = true/' "$SCRATCH/pjdfstest.toml"
run erofs
exit $status
