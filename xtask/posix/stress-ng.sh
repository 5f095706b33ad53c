# stress-ng: its stressors of files and directories, each for a few seconds.
. "$TOOLS/common.sh"
need stress-ng "apt install stress-ng"
# Not those of binderfs, procfs, bind mounts and other file systems that are not ours.
stressors=${STRESS:-access aio aiol apparmor chattr chdir chmod chown copy-file dentry dir dirdeep
  dirmany dup fallocate fcntl fiemap file-ioctl filename flock fpunch fsize fstat getdent handle
  hdd inode-flags inotify io iomix lease link locka lockf lockofd mknod mmap mmapfork mmapmany
  open readahead rename revio seek sendfile splice symlink sync-file touch utime vm-splice verity
  xattr}
mkdir -p "$MOUNT/stress"
bad=""
for stressor in $stressors; do
  stress-ng --help 2>/dev/null | grep -q -- "--$stressor " || continue
  timeout 120 stress-ng "--$stressor" 2 --timeout "${STRESS_SECONDS:-3}" --verify \
    --temp-path "$MOUNT/stress" > "$SCRATCH/log" 2>&1 || {
      bad="$bad $stressor"
      sed "s/^/$stressor: /" "$SCRATCH/log" | tail -15
    }
done
[ -z "$bad" ] || { echo "failed:$bad"; exit 1; }
echo "$(echo $stressors | wc -w) stressors"
