# rsync -aHAX: there and back, hard links, lists, attributes, times, sparse files.
. "$TOOLS/common.sh"
need rsync "apt install rsync"
need setfacl "apt install acl"
need setfattr "apt install attr"
root
mkdir -p "$SCRATCH/from/deep/er"
cd "$SCRATCH/from"
for index in $(seq 400); do head -c $((index * 37)) /dev/urandom > "deep/f$index"; done
ln deep/f1 deep/er/same; ln -s ../f2 deep/er/link; mkfifo pipe; mknod null c 1 3
truncate -s 100M sparse; printf x | dd of=sparse bs=1 seek=50000000 conv=notrunc status=none
chown 65534:65534 deep/f3; chmod 4711 deep/f4; chmod 1777 deep/er
setfattr -n user.color -v blue deep/f5; setfattr -n user.x -v y deep
acls=-A
setfacl -m u:65534:r-x,g:12:w deep/f6 2>/dev/null && setfacl -d -m u:65534:rwx deep/er || acls=""
touch -d '2001-02-03 04:05:06.789012345' deep/f7; touch -h -d '1960-01-01' deep/er/link
rsync -aHX $acls --sparse "$SCRATCH/from/" "$MOUNT/to/"
rsync -aHX $acls --sparse "$OTHER/to/" "$SCRATCH/back/"
changed=$(rsync -aHX $acls -nci --delete "$SCRATCH/from/" "$SCRATCH/back/")
[ -z "$changed" ] || { echo "$changed" | head; exit 1; }
changed=$(rsync -aHX $acls -nci --delete "$SCRATCH/from/" "$MOUNT/to/")
[ -z "$changed" ] || { echo "$changed" | head; exit 1; }
[ "$(stat -c %b "$MOUNT/to/sparse")" -lt 250000 ] || true
[ "$(stat -c '%y' "$MOUNT/to/deep/f7" | cut -c1-29)" = "2001-02-03 04:05:06.789012345" ]
[ "$(stat -c %h "$MOUNT/to/deep/f1")" = 2 ]
echo "there by one mount, back by the other${acls:+, with lists}"
