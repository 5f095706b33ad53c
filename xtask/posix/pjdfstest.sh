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
allow_remount = true
[dummy_auth]
entries = [["nobody", "nogroup"], ["tests", "tests"]]
TOML
# A file system of another device, for EXDEV.
other=/dev/shm; [ -d "$other" ] || other=/tmp
status=0
pjdfstest -c "$SCRATCH/pjdfstest.toml" -p "$MOUNT" -s "$other" > "$SCRATCH/log" 2>&1 || status=$?
grep -A3 -E ' (FAILED|skipped)$' "$SCRATCH/log"
grep '^Summary' "$SCRATCH/log"
exit $status
