//! What applications expect of a file system, through the kernel, on a store in memory.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{
    FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink,
};
use std::path::Path;
use std::time::{Duration, SystemTime};

use braid_fuse::memory::MemoryStore;
use common::{TestMount, names};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, SeekFrom as Place, Timespec,
    Timestamps, XattrFlags,
};
use rustix::io::Errno;

macro_rules! mount {
    ($store:ident, $mount:ident) => {
        let $store = MemoryStore::default();
        let Some($mount) = TestMount::start(&$store, "") else { return };
    };
}

const O_DSYNC: i32 = 0o10000;
const O_SYNC: i32 = 0o4_010_000;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

#[test]
fn files_of_all_sizes_survive_a_remount() {
    mount!(store, mount);
    let sizes = [0, 1, 4095, 4096, 4097, 65_536, 1 << 20, (5 << 20) + 3];
    for size in sizes {
        fs::write(mount.path(format!("f{size}")), pattern(size)).expect("it is written");
    }
    let mount = mount.again(&store);
    for size in sizes {
        let path = mount.path(format!("f{size}"));
        assert_eq!(fs::metadata(&path).expect("it is there").len(), size as u64);
        assert!(fs::read(&path).expect("it is read") == pattern(size), "size {size}");
    }
    assert_eq!(names(&mount.path("")).len(), sizes.len());
}

#[test]
fn small_files_stay_in_their_records() {
    mount!(store, mount);
    let (devices_before, _) = store.counts();
    fs::write(mount.path("small"), b"some bytes").expect("it is written");
    fs::write(mount.path("small"), b"others").expect("it is written again");
    assert_eq!(store.counts().0, devices_before);
    let mut file = OpenOptions::new().append(true).open(mount.path("small")).expect("it opens");
    file.write_all(&pattern(8000)).expect("it grows");
    drop(file);
    assert_eq!(store.counts().0, devices_before + 1);
    let mount = mount.again(&store);
    let bytes = fs::read(mount.path("small")).expect("it is read");
    assert_eq!(bytes.len(), 8006);
    assert_eq!(&bytes[..6], b"others");
    assert_eq!(&bytes[6..], pattern(8000));
}

#[test]
fn a_file_without_a_name_takes_room_and_grows() {
    mount!(_store, mount);
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mount.path("removed"))
        .expect("it is made");
    file.write_all_at(&pattern(300_000), 0).expect("it is written");
    file.sync_all().expect("it is synced");
    file.write_all_at(b"waits", 100_000).expect("it is written");
    fs::remove_file(mount.path("removed")).expect("it is removed");
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 400_000).expect("it grows");
    let mut bytes = vec![1; 400_000];
    file.read_exact_at(&mut bytes, 0).expect("it is read");
    let mut expect = pattern(300_000);
    expect[100_000..100_005].copy_from_slice(b"waits");
    expect.resize(400_000, 0);
    assert!(bytes == expect, "nothing is lost, and zeros follow");
}

#[test] // Proves: W-9.
fn what_is_synced_is_stable() {
    mount!(store, mount);
    let path = mount.path("file");
    let file = File::create_new(&path).expect("it is made");
    let fill = |place: u64| file.write_all_at(&[1; 5000], place).expect("it is written");
    fill(0);
    file.sync_all().expect("it is synced");
    assert_eq!(store.unstable(), 0, "fsync");
    // Many runs go together, and by more than one flight.
    (0..400).for_each(|at| fill(at << 18));
    file.sync_data().expect("it is synced");
    assert_eq!(store.unstable(), 0, "fdatasync of many places");
    let open = |flags: i32| {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(flags).open(&path).expect("it opens")
    };
    for (flags, name) in [(O_DSYNC, "O_DSYNC"), (O_SYNC, "O_SYNC")] {
        let synced = open(flags);
        for at in [0, 7 << 20, 200 << 20] {
            synced.write_all_at(&[2; 4096], at).expect("it is written");
            assert_eq!(store.unstable(), 0, "{name} at {at}");
        }
    }
    let plain = open(0);
    plain.write_all_at(&[3; 4096], 0).expect("it is written");
    drop(plain);
    assert_eq!(store.unstable(), 1, "a close is no sync");
    open(O_DSYNC).write_all_at(&[4; 4096], 9 << 20).expect("it is written");
    assert_eq!(store.unstable(), 0, "what was held before is stable, too");
}

#[test]
fn what_waits_in_memory_is_data() {
    mount!(_store, mount);
    let path = mount.path("nameless");
    let file = File::create_new(&path).expect("it is made");
    file.write_all_at(b"sent", 8 << 20).expect("it is written");
    file.sync_all().expect("it is synced");
    fs::remove_file(&path).expect("it is removed");
    // What has no name is not sent any more.
    file.write_all_at(&[1; 4096], 1 << 20).expect("it is written");
    file.write_all_at(&[2; 4096], 9 << 20).expect("it is written");
    let places = |at: u64| {
        let data = rustix::fs::seek(&file, Place::Data(at)).expect("there is data");
        (data, rustix::fs::seek(&file, Place::Hole(data)).expect("there is an end"))
    };
    assert_eq!(places(0), (1 << 20, (1 << 20) + 4096));
    let (data, hole) = places((1 << 20) + 4096);
    assert!(data == 8 << 20 && hole <= 9 << 20, "{data} {hole}");
    assert_eq!(places(hole), (9 << 20, (9 << 20) + 4096));
    assert_eq!(rustix::fs::seek(&file, Place::Data((9 << 20) + 4096)), Err(Errno::NXIO));
    assert_eq!(rustix::fs::seek(&file, Place::Data(1 << 40)), Err(Errno::NXIO));
}

#[test]
fn holes_punches_and_places_of_data() {
    mount!(_store, mount);
    let mut file = File::create_new(mount.path("sparse")).expect("it is made");
    file.write_all_at(b"tail", 10 << 20).expect("it is written");
    assert_eq!(file.metadata().expect("it is there").len(), (10 << 20) + 4);
    let data = rustix::fs::seek(&file, Place::Data(0)).expect("there is data");
    assert_eq!(data, 10 << 20);
    assert_eq!(rustix::fs::seek(&file, Place::Hole(0)).expect("there is a hole"), 0);
    assert_eq!(rustix::fs::seek(&file, Place::Data((10 << 20) + 4)), Err(Errno::NXIO));
    file.write_all_at(&pattern(1 << 20), 0).expect("it is written");
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 100, 200_000).expect("it is punched");
    rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, 500_000, 10).expect("it is zeroed");
    let mut expect = pattern(1 << 20);
    expect[100..200_100].fill(0);
    expect[500_000..500_010].fill(0);
    let mut bytes = vec![0; 1 << 20];
    let mut reader = File::open(mount.path("sparse")).expect("it opens");
    reader.read_exact(&mut bytes).expect("it is read");
    assert!(bytes == expect, "punched bytes are zeros, others stay");
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 11 << 20).expect("it grows");
    assert_eq!(file.metadata().expect("it is there").len(), 11 << 20);
    let hole = rustix::fs::seek(&file, Place::Hole(10 << 20)).expect("the end is one");
    assert_eq!(hole, 11 << 20, "room is taken: there are no holes behind what was the end");
    let bytes = fs::read(mount.path("sparse")).expect("it is read");
    assert!(bytes[..1 << 20] == expect && &bytes[10 << 20..][..5] == b"tail\0");
    let too_much = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 1 << 60);
    assert_eq!(too_much, Err(Errno::NOSPC));
    let behind = rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 12 << 20);
    assert_eq!(behind, Err(Errno::OPNOTSUPP), "nothing is kept behind the end");
    assert_eq!(file.metadata().expect("it is there").len(), 11 << 20);
    file.set_len(3).expect("it is cut");
    file.set_len(20).expect("it is made longer");
    file.seek(SeekFrom::Start(0)).expect("it seeks");
    let bytes = fs::read(mount.path("sparse")).expect("it is read");
    assert_eq!(bytes, [&pattern(3)[..], &[0; 17]].concat());
}

#[test]
fn appends_and_truncating_opens() {
    mount!(_store, mount);
    let path = mount.path("log");
    for round in 0..50 {
        let mut file = OpenOptions::new().append(true).create(true).open(&path).expect("it opens");
        writeln!(file, "line {round:03}").expect("it is appended");
    }
    let text = fs::read_to_string(&path).expect("it is read");
    assert_eq!(text.lines().count(), 50);
    assert!(text.lines().enumerate().all(|(at, line)| line == format!("line {at:03}")));
    File::create(&path).expect("it is truncated");
    assert_eq!(fs::metadata(&path).expect("it is there").len(), 0);
    assert_eq!(File::create_new(&path).expect_err("it is there").kind(), ErrorKind::AlreadyExists);
}

#[test]
fn open_files_outlive_their_names() {
    mount!(store, mount);
    let (devices, records) = store.counts();
    for (name, size) in [("small", 100), ("large", 100_000)] {
        let path = mount.path(name);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .expect("it is made");
        file.write_all(&pattern(size)).expect("it is written");
        file.sync_all().expect("it is stable");
        fs::remove_file(&path).expect("its name is removed");
        assert!(!path.exists());
        assert_eq!(file.metadata().expect("it is open").nlink(), 0);
        file.write_all(b"more").expect("it is written on");
        let mut bytes = vec![0; size + 4];
        file.read_exact_at(&mut bytes, 0).expect("it is read");
        assert!(bytes == [pattern(size), b"more".to_vec()].concat());
    }
    // The record goes after the close, which nobody waits for.
    let mount = mount.again(&store);
    assert_eq!(store.counts(), (devices, records));
    drop(mount);
}

#[test]
fn files_without_a_name_go_or_get_one() {
    mount!(store, mount);
    let counts = store.counts();
    let unnamed = |size: usize| {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::TMPFILE.bits().cast_signed())
            .mode(0o640)
            .open(mount.path(""))
            .expect("it is made");
        file.write_all(&pattern(size)).expect("it is written");
        assert_eq!(file.metadata().expect("it is open").nlink(), 0);
        assert!(names(&mount.path("")).is_empty());
        file
    };
    for size in [0, 100, 100_000] {
        drop(unnamed(size));
    }
    let mount = mount.again(&store);
    assert_eq!(store.counts(), counts, "what never had a name is gone with its last close");

    for size in [0, 100, 100_000] {
        let mut file = OpenOptions::new()
            .write(true)
            .custom_flags(rustix::fs::OFlags::TMPFILE.bits().cast_signed())
            .open(mount.path(""))
            .expect("it is made");
        file.write_all(&pattern(size)).expect("it is written");
        file.sync_all().expect("it is stable");
        let shown = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let name = mount.path(format!("named-{size}"));
        rustix::fs::linkat(CWD, shown.as_str(), CWD, &name, AtFlags::SYMLINK_FOLLOW)
            .expect("it gets a name");
        assert_eq!(file.metadata().expect("it is open").nlink(), 1);
        file.write_all(b"more").expect("it is written on");
        drop(file);
        assert_eq!(fs::metadata(&name).expect("it is there").nlink(), 1);
    }
    let mount = mount.again(&store);
    for size in [0, 100, 100_000] {
        let bytes = fs::read(mount.path(format!("named-{size}"))).expect("it is read");
        assert!(bytes == [pattern(size), b"more".to_vec()].concat(), "size {size}");
        fs::remove_file(mount.path(format!("named-{size}"))).expect("it is removed");
    }
    let mount = mount.again(&store);
    assert_eq!(store.counts(), counts);
    drop(mount);
}

#[test]
fn a_replaced_open_file_stays_readable() {
    mount!(store, mount);
    for directory in ["", "sub"] {
        if !directory.is_empty() {
            fs::create_dir(mount.path(directory)).expect("it is made");
        }
        let target = mount.path(directory).join("target");
        fs::write(&target, pattern(50_000)).expect("it is written");
        let old = File::open(&target).expect("it opens");
        fs::write(mount.path("new"), b"new").expect("it is written");
        fs::rename(mount.path("new"), &target).expect("it is replaced");
        assert_eq!(fs::read(&target).expect("it is read"), b"new");
        let mut bytes = vec![0; 50_000];
        old.read_exact_at(&mut bytes, 0).expect("the old one is read");
        assert!(bytes == pattern(50_000));
        drop(old);
    }
    let _ = store;
}

#[test]
fn renames_in_all_modes() {
    mount!(_store, mount);
    for folder in ["a", "b", "a/inner", "b/empty"] {
        fs::create_dir(mount.path(folder)).expect("it is made");
    }
    fs::write(mount.path("a/one"), b"1").expect("it is written");
    fs::write(mount.path("b/two"), b"2").expect("it is written");
    // Over an existing file, across directories.
    fs::rename(mount.path("a/one"), mount.path("b/two")).expect("it is renamed");
    assert_eq!(fs::read(mount.path("b/two")).expect("it is read"), b"1");
    assert_eq!(names(&mount.path("a")), ["inner"]);
    // Not over what is there.
    fs::write(mount.path("a/three"), b"3").expect("it is written");
    let no_replace = |from: &str, to: &str| {
        let (from, to) = (mount.path(from), mount.path(to));
        rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
    };
    assert_eq!(no_replace("a/three", "b/two"), Err(Errno::EXIST));
    no_replace("a/three", "b/three").expect("the name is free");
    // Exchanged, in one directory and across two.
    let exchange = |from: &str, to: &str| {
        let (from, to) = (mount.path(from), mount.path(to));
        rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE)
    };
    exchange("b/two", "b/three").expect("they are exchanged");
    assert_eq!(fs::read(mount.path("b/two")).expect("it is read"), b"3");
    exchange("b/two", "a/inner").expect("they are exchanged");
    assert_eq!(fs::read(mount.path("a/inner")).expect("it is read"), b"3");
    assert!(mount.path("b/two").is_dir());
    assert_eq!(names(&mount.path("b")), ["empty", "three", "two"]);
    // Directories replace empty directories only, and never move below themselves.
    fs::create_dir(mount.path("c")).expect("it is made");
    fs::rename(mount.path("c"), mount.path("b/empty")).expect("an empty one is replaced");
    let full = fs::rename(mount.path("b/empty"), mount.path("a")).expect_err("it has entries");
    assert_eq!(full.raw_os_error(), Some(Errno::NOTEMPTY.raw_os_error()));
    let below = fs::rename(mount.path("b"), mount.path("b/empty/b")).expect_err("below itself");
    assert_eq!(below.raw_os_error(), Some(Errno::INVAL.raw_os_error()));
    let kinds = fs::rename(mount.path("b"), mount.path("a/inner")).expect_err("a file is there");
    assert_eq!(kinds.raw_os_error(), Some(Errno::NOTDIR.raw_os_error()));
    // A directory that moved is found with all that is in it.
    fs::write(mount.path("b/empty/deep"), b"deep").expect("it is written");
    fs::rename(mount.path("b/empty"), mount.path("a/moved")).expect("it is renamed");
    assert_eq!(fs::read(mount.path("a/moved/deep")).expect("it is read"), b"deep");
}

#[test]
fn links_and_removed_directories() {
    mount!(store, mount);
    fs::create_dir(mount.path("d")).expect("it is made");
    fs::write(mount.path("file"), b"bytes").expect("it is written");
    fs::hard_link(mount.path("file"), mount.path("same")).expect("it is linked");
    fs::hard_link(mount.path("file"), mount.path("d/other")).expect("it is linked");
    let ino = fs::metadata(mount.path("file")).expect("it is there").ino();
    for name in ["file", "same", "d/other"] {
        let metadata = fs::metadata(mount.path(name)).expect("it is there");
        assert_eq!((metadata.nlink(), metadata.ino()), (3, ino), "{name}");
    }
    fs::write(mount.path("d/other"), b"changed").expect("it is written");
    assert_eq!(fs::read(mount.path("same")).expect("it is read"), b"changed");
    fs::remove_file(mount.path("file")).expect("it is removed");
    fs::remove_file(mount.path("same")).expect("it is removed");
    let mount = mount.again(&store);
    assert_eq!(fs::read(mount.path("d/other")).expect("it is read"), b"changed");
    assert_eq!(fs::metadata(mount.path("d/other")).expect("it is there").nlink(), 1);
    let full = fs::remove_dir(mount.path("d")).expect_err("it has an entry");
    assert_eq!(full.raw_os_error(), Some(Errno::NOTEMPTY.raw_os_error()));
    fs::remove_file(mount.path("d/other")).expect("it is removed");
    fs::remove_dir(mount.path("d")).expect("it is removed");
    assert!(names(&mount.path("")).is_empty());
    let directory = fs::hard_link(mount.path(""), mount.path("x")).expect_err("a directory");
    assert_eq!(directory.kind(), ErrorKind::PermissionDenied);
}

#[test]
fn nodes_of_all_kinds() {
    mount!(store, mount);
    symlink("some/where", mount.path("link")).expect("it is made");
    let make = |name: &str, kind, device| {
        rustix::fs::mknodat(CWD, mount.path(name), kind, Mode::from(0o640), device)
            .expect("it is made");
    };
    make("fifo", FileType::Fifo, 0);
    make("socket", FileType::Socket, 0);
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        make("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
        make("block", FileType::BlockDevice, rustix::fs::makedev(7, 300));
    }
    let mount = mount.again(&store);
    let target = fs::read_link(mount.path("link")).expect("it is read");
    assert_eq!(target, Path::new("some/where"));
    let metadata = |name: &str| fs::symlink_metadata(mount.path(name)).expect("it is there");
    assert_eq!(metadata("link").len(), 10);
    assert!(metadata("fifo").file_type().is_fifo());
    assert!(metadata("socket").file_type().is_socket());
    assert_eq!(metadata("fifo").mode() & 0o7777, 0o640 & !umask());
    if is_root {
        assert_eq!(metadata("null").rdev(), rustix::fs::makedev(1, 3));
        assert_eq!(metadata("block").rdev(), rustix::fs::makedev(7, 300));
        assert!(metadata("block").file_type().is_block_device());
    }
}

fn umask() -> u32 {
    // It can only be read by setting it.
    let mask = rustix::process::umask(Mode::from(0o022));
    rustix::process::umask(mask);
    mask.bits()
}

#[test]
fn times_modes_and_owners() {
    mount!(store, mount);
    let path = mount.path("file");
    fs::write(&path, b"x").expect("it is written");
    let at = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    for (atime, mtime) in [(at(1, 999_999_999), at(-5, 7)), (at(4_000_000_000, 0), at(0, 1))] {
        let times = Timestamps { last_access: atime, last_modification: mtime };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).expect("they are set");
        let metadata = fs::metadata(&path).expect("it is there");
        assert_eq!((metadata.atime(), metadata.atime_nsec()), (atime.tv_sec, atime.tv_nsec));
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (mtime.tv_sec, mtime.tv_nsec));
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).expect("it is set");
    assert_eq!(fs::metadata(&path).expect("it is there").mode() & 0o7777, 0o4755);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(1234), Some(5678)).expect("it is set");
        let metadata = fs::metadata(&path).expect("it is there");
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678));
        // A new directory below a setgid one has its group, and is setgid too.
        fs::create_dir(mount.path("shared")).expect("it is made");
        std::os::unix::fs::chown(mount.path("shared"), None, Some(77)).expect("it is set");
        let mode = fs::Permissions::from_mode(0o2775);
        fs::set_permissions(mount.path("shared"), mode).expect("it is set");
        fs::create_dir(mount.path("shared/below")).expect("it is made");
        fs::write(mount.path("shared/file"), b"").expect("it is made");
        let below = fs::metadata(mount.path("shared/below")).expect("it is there");
        assert_eq!((below.gid(), below.mode() & 0o2000), (77, 0o2000));
        assert_eq!(fs::metadata(mount.path("shared/file")).expect("it is there").gid(), 77);
    }
    // A time that was set stays when bytes that were written before arrive later.
    let mut file = OpenOptions::new().write(true).open(&path).expect("it opens");
    file.write_all(&pattern(10_000)).expect("it is written");
    let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_234_567_890_123_456_789);
    file.set_modified(time).expect("it is set");
    drop(file);
    let mount = mount.again(&store);
    let metadata = fs::metadata(mount.path("file")).expect("it is there");
    assert_eq!(metadata.modified().expect("it has one"), time);
}

#[test]
fn extended_attributes() {
    mount!(store, mount);
    let path = mount.path("file");
    fs::write(&path, b"x").expect("it is written");
    let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(&path, name, value, flags);
    set("user.one", b"first", XattrFlags::empty()).expect("it is set");
    set("user.two", &pattern(3000), XattrFlags::CREATE).expect("it is set");
    assert_eq!(set("user.one", b"", XattrFlags::CREATE), Err(Errno::EXIST));
    assert_eq!(set("user.three", b"", XattrFlags::REPLACE), Err(Errno::NODATA));
    set("user.one", b"again", XattrFlags::REPLACE).expect("it is set");
    let mut value = [0; 5000];
    let len = rustix::fs::getxattr(&path, "user.one", &mut value[..]).expect("it is there");
    assert_eq!(&value[..len], b"again");
    let short = rustix::fs::getxattr(&path, "user.two", &mut value[..10]);
    assert_eq!(short, Err(Errno::RANGE));
    rustix::fs::removexattr(&path, "user.one").expect("it is removed");
    assert_eq!(rustix::fs::removexattr(&path, "user.one"), Err(Errno::NODATA));
    let mount = mount.again(&store);
    let path = mount.path("file");
    let len = rustix::fs::listxattr(&path, &mut value[..]).expect("they are listed");
    assert_eq!(&value[..len], b"user.two\0");
    let len = rustix::fs::getxattr(&path, "user.two", &mut value[..]).expect("it is there");
    assert!(value[..len] == pattern(3000));
}

#[test]
fn listings_are_complete_while_entries_go() {
    mount!(_store, mount);
    let count = 3000;
    for number in 0..count {
        fs::write(mount.path(format!("file-{number}")), b"").expect("it is made");
    }
    assert_eq!(names(&mount.path("")).len(), count);
    // Removing while listing: each entry is met exactly once.
    let mut seen = 0;
    for entry in fs::read_dir(mount.path("")).expect("it is listed") {
        let entry = entry.expect("it is read");
        assert!(entry.metadata().expect("it is there").is_file());
        fs::remove_file(entry.path()).expect("it is removed");
        seen += 1;
    }
    assert_eq!(seen, count);
    assert!(names(&mount.path("")).is_empty());
}

#[test]
fn names_have_any_bytes_up_to_their_length() {
    use std::os::unix::ffi::OsStrExt;
    mount!(_store, mount);
    let any: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let name = std::ffi::OsStr::from_bytes(&any);
    fs::write(mount.path(name), b"any").expect("it is made");
    assert_eq!(fs::read(mount.path(name)).expect("it is read"), b"any");
    fs::write(mount.path("x".repeat(255)), b"long").expect("it is made");
    let too_long = fs::write(mount.path("x".repeat(256)), b"").expect_err("it is too long");
    assert_eq!(too_long.raw_os_error(), Some(Errno::NAMETOOLONG.raw_os_error()));
}

#[test]
fn copies_without_the_callers_memory() {
    mount!(_store, mount);
    let bytes = pattern((6 << 20) + 11);
    fs::write(mount.path("source"), &bytes).expect("it is written");
    let source = File::open(mount.path("source")).expect("it opens");
    let target = File::create_new(mount.path("target")).expect("it is made");
    let (mut from, mut to) = (5, 2);
    let mut copied = 0;
    loop {
        let step = rustix::fs::copy_file_range(
            &source,
            Some(&mut from),
            &target,
            Some(&mut to),
            bytes.len(),
        )
        .expect("it is copied");
        if step == 0 {
            break;
        }
        copied += step;
    }
    assert_eq!(copied, bytes.len() - 5);
    drop(target);
    let read = fs::read(mount.path("target")).expect("it is read");
    assert_eq!(&read[..2], [0, 0]);
    assert!(read[2..] == bytes[5..], "the copy is right");
}

#[test]
fn shared_and_private_mappings() {
    use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
    mount!(store, mount);
    let len = 300_000;
    fs::write(mount.path("mapped"), pattern(len)).expect("it is written");
    let file =
        OpenOptions::new().read(true).write(true).open(mount.path("mapped")).expect("it opens");
    let map = |flags| {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses, ended below.
        unsafe { mmap(std::ptr::null_mut(), len, access, flags, &file, 0) }.expect("it maps")
    };
    let (shared, private) = (map(MapFlags::SHARED), map(MapFlags::PRIVATE));
    // SAFETY: both mappings are `len` long, live, and only this thread touches them.
    unsafe {
        let bytes = std::slice::from_raw_parts_mut(shared.cast::<u8>(), len);
        assert!(bytes[..] == pattern(len)[..]);
        bytes[1000..1005].copy_from_slice(b"hello");
        bytes[len - 1] = 0xee;
        let copy = std::slice::from_raw_parts_mut(private.cast::<u8>(), len);
        copy[0] = 0x55;
        msync(shared, len, MsyncFlags::SYNC).expect("it is synced");
        munmap(shared, len).expect("it is unmapped");
        munmap(private, len).expect("it is unmapped");
    }
    drop(file);
    let mount = mount.again(&store);
    let mut expect = pattern(len);
    expect[1000..1005].copy_from_slice(b"hello");
    expect[len - 1] = 0xee;
    assert!(fs::read(mount.path("mapped")).expect("it is read") == expect);
}

#[test]
fn direct_and_synced_writes() {
    mount!(_store, mount);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(O_DSYNC)
        .open(mount.path("synced"))
        .expect("it is made");
    file.write_all(&pattern(100_000)).expect("it is written");
    file.write_all(b"end").expect("it is written");
    file.sync_data().expect("it is stable");
    drop(file);
    let bytes = fs::read(mount.path("synced")).expect("it is read");
    assert!(bytes == [pattern(100_000), b"end".to_vec()].concat());
    File::open(mount.path("")).expect("it opens").sync_all().expect("a directory is synced");
}

#[test]
fn a_failed_write_back_is_told_by_write_fsync_and_close() {
    mount!(store, mount);
    let path = mount.path("lost");
    let file = File::create_new(&path).expect("it is made");
    let other = OpenOptions::new().write(true).open(&path).expect("it opens");
    store.set_broken(true);
    file.write_all_at(&pattern(100_000), 0).expect("it is in memory");
    let error = file.sync_all().expect_err("it could not be sent");
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    store.set_broken(false);
    file.sync_all().expect("it is told once");
    let error = other.write_all_at(b"x", 0).expect_err("each open file is told");
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    other.write_all_at(b"x", 0).expect("it is told once");
    other.sync_all().expect("it can be sent again");
}

#[test]
fn what_one_mount_closes_another_opens() {
    mount!(store, mount);
    let Some(other) = TestMount::start(&store, "") else { return };
    let (here, there) = (mount.path("file"), other.path("file"));
    for round in 0..20_usize {
        let bytes = pattern(1 + round * 3001);
        fs::write(&here, &bytes).expect("it is written");
        assert!(fs::read(&there).expect("it is read") == bytes, "round {round}");
        let changed = vec![round as u8; bytes.len()];
        let file = OpenOptions::new().write(true).open(&there).expect("it opens");
        file.write_all_at(&changed, 0).expect("it is written");
        drop(file);
        assert!(fs::read(&here).expect("it is read") == changed, "round {round}, back");
    }
}

#[test]
fn many_threads_write_and_read() {
    mount!(store, mount);
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let folder = mount.path(format!("t{thread}"));
            scope.spawn(move || {
                fs::create_dir(&folder).expect("it is made");
                for number in 0..50_usize {
                    let bytes = pattern(number * 997 + thread);
                    let path = folder.join(format!("{number}"));
                    fs::write(&path, &bytes).expect("it is written");
                    assert!(fs::read(&path).expect("it is read") == bytes);
                    if number % 3 == 0 {
                        fs::remove_file(&path).expect("it is removed");
                    }
                }
            });
        }
    });
    let mount = mount.again(&store);
    for thread in 0..4 {
        assert_eq!(names(&mount.path(format!("t{thread}"))).len(), 33);
    }
}

/// A sequential read fetched whole units; one that a waiting write touched was never kept, and the
/// reader fetched it for ever. Found by fsx.
#[test]
fn a_read_beside_waiting_writes_ends() {
    mount!(store, mount);
    let mut expect = pattern(4 << 20);
    fs::write(mount.path("file"), &expect).expect("it is written");
    let mount = mount.again(&store);
    let file =
        OpenOptions::new().read(true).write(true).open(mount.path("file")).expect("it opens");
    // In the second unit of 1 MiB, behind what is read.
    file.write_all_at(b"waits", 1_900_000).expect("it is written");
    expect[1_900_000..1_900_005].copy_from_slice(b"waits");
    let mut bytes = vec![0; 200_000];
    file.read_exact_at(&mut bytes, 1_000_000).expect("it is read");
    assert!(bytes == expect[1_000_000..1_200_000]);
    let mut bytes = vec![0; 4 << 20];
    file.read_exact_at(&mut bytes, 0).expect("it is read");
    assert!(bytes == expect);
}

/// With `FUSE_ATOMIC_O_TRUNC` the mount had cut the file before the kernel refused the open, and
/// the running program died of SIGBUS. Found by pjdfstest.
#[test]
fn a_running_program_is_not_cut() {
    mount!(_store, mount);
    let path = mount.path("sleep");
    let Ok(bytes) = fs::read("/bin/sleep") else { return };
    fs::write(&path, &bytes).expect("it is written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is set");
    let mut running = match std::process::Command::new(&path).arg("10").spawn() {
        Ok(running) => running,
        // A mount of a user's may not run programs everywhere.
        Err(error) => return println!("skipped: {error}"),
    };
    let error = File::create(&path).expect_err("it runs");
    assert_eq!(error.kind(), ErrorKind::ExecutableFileBusy);
    assert!(fs::read(&path).expect("it is read") == bytes);
    running.kill().expect("it still runs");
    running.wait().expect("it ends");
}
