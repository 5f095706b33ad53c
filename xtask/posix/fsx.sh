# fsx: random reads, writes, mappings, cuts, punches, copies; each read is compared. Few by mappings: fsx
# 0.3.2 never ends those, and a process has 65,530.
. "$TOOLS/common.sh"
need fsx "cargo install fsx"
make_config() {
  cat > "$SCRATCH/fsx.toml" <<TOML
flen = $1
[opsize]
max = $2
[weights]
close_open = 1
read = 10
write = 10
mapread = 2
mapwrite = 10
invalidate = 1
truncate = 5
fsync = 0.5
fdatasync = 0.5
posix_fallocate = 2
punch_hole = 3
sendfile = 2
posix_fadvise = 1
copy_file_range = 3
TOML
}
count=${FSX_OPERATIONS:-1000000}
for seed in ${FSX_SEEDS:-1 2 3}; do
  case $((seed % 3)) in
    0) make_config 4194304 262144 ;;
    1) make_config 262144 65536 ;;
    2) make_config 20000 8000 ;; # About the size that is kept in the record.
  esac
  fsx -f "$SCRATCH/fsx.toml" -N "$count" -S "$seed" -P "$SCRATCH" -q "$MOUNT/fsx-$seed" \
    || { echo "seed $seed"; exit 1; }
done
echo "$count operations, seeds ${FSX_SEEDS:-1 2 3}"
