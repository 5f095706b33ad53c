# fio: verified random and sequential writes, buffered, direct and mapped, several jobs.
. "$TOOLS/common.sh"
need fio "apt install fio"
cd "$SCRATCH" # It leaves notes of its state.
for engine in psync libaio mmap; do
  direct=0; [ $engine = libaio ] && direct=1
  fio --name=verify --directory="$MOUNT" --rw=randrw --bsrange=4k-128k --bs_unaligned=0 \
    --size="${FIO_SIZE:-32m}" --numjobs=3 --ioengine=$engine --direct=$direct --iodepth=8 \
    --verify=crc32c --verify_fatal=1 --do_verify=1 --fsync=64 --group_reporting \
    > "$SCRATCH/log" 2>&1 || { cat "$SCRATCH/log"; exit 1; }
  ! grep -qi 'verify: bad' "$SCRATCH/log"
  rm -f "$MOUNT"/verify.*
done
echo "psync, libaio with O_DIRECT, mmap; 3 jobs each"
