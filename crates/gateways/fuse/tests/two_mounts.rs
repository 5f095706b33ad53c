//! Two mounts of one store: what one does, the other sees, and races have one outcome.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use braid_fuse::memory::MemoryStore;
use common::{TestMount, names};

fn two() -> Option<(TestMount, TestMount)> {
    let store = MemoryStore::default();
    Some((TestMount::start(&store, "")?, TestMount::start(&store, "")?))
}

#[test]
fn what_is_made_and_closed_is_there_for_the_other() {
    let Some((one, other)) = two() else { return };
    for index in 0..50_u32 {
        let name = index.to_string();
        fs::write(one.path(&name), name.as_bytes()).expect("one writes");
        assert_eq!(fs::read(other.path(&name)).expect("the other reads"), name.as_bytes());
    }
    assert_eq!(names(&other.path("")).len(), 50);
    let empty = File::create(one.path("empty")).expect("one makes");
    drop(empty);
    assert_eq!(fs::metadata(other.path("empty")).expect("the other sees it").len(), 0);
}

#[test]
fn a_file_that_stays_open_is_soon_there_for_the_other() {
    let Some((one, other)) = two() else { return };
    let mut open = File::create(one.path("log")).expect("one makes");
    // Waits for what the mount does by itself; it never ends if that never happens.
    while names(&other.path("")).is_empty() {
        std::thread::yield_now();
    }
    open.write_all(b"later").expect("one goes on");
    open.sync_all().expect("and syncs");
    assert_eq!(fs::read(other.path("log")).expect("the other reads"), b"later");
}

/// What was closed is held: its length, too, where what was answered ahead is lost.
#[test] // Proves: N-2, W-9.
fn what_was_closed_or_cut_has_its_length_whatever_is_lost_ahead() {
    let write = |path: &Path| {
        let file = OpenOptions::new().write(true).open(path).expect("it opens");
        file.write_all_at(&[7; 300_000], 15_000).expect("it is written");
    };
    let cut = |path: &Path| {
        let file = OpenOptions::new().write(true).open(path);
        file.and_then(|file| file.set_len(10_000)).expect("it is cut");
    };
    for (change, length) in [(&write as &dyn Fn(&Path), 315_000), (&cut, 10_000)] {
        let store = MemoryStore::default();
        let Some(one) = TestMount::start(&store, "") else { return };
        let path = one.path("file");
        fs::write(&path, [7; 20_000]).expect("it is made");
        File::open(&path).and_then(|file| file.sync_all()).expect("it is stable");
        change(&path);
        store.lose_ahead();
        let other = TestMount::start(&store, "").expect("one could be mounted");
        let bytes = fs::read(other.path("file")).expect("it is read");
        assert_eq!(bytes.len(), length);
        assert!(bytes.iter().all(|byte| *byte == 7));
    }
}

/// The mount tells a size by itself while a later write is on its way: a sync must tell that one's.
#[test] // Proves: N-2, W-9.
fn a_size_that_was_told_early_is_told_again() {
    let store = MemoryStore::default();
    let Some(one) = TestMount::start(&store, "") else { return };
    fs::write(one.path("file"), [7; 20_000]).expect("it is made");
    let file = OpenOptions::new().write(true).open(one.path("file")).expect("it opens");
    file.sync_all().expect("it is stable");
    // These waits never end if what they wait for never happens.
    let until = |is_so: &dyn Fn() -> bool| {
        while !is_so() {
            std::thread::yield_now();
        }
    };
    let gate = store.hold_writes();
    file.write_all_at(&[7; 5_000], 20_000).expect("it is written");
    until(&|| store.writes() == 1);
    file.write_all_at(&[7; 200_000], 25_000).expect("it is written");
    gate.add_permits(1);
    until(&|| store.writes() == 2 && store.size_of("file") == Some(25_000));
    gate.add_permits(1_000);
    file.sync_all().expect("it is stable");
    assert_eq!(store.size_of("file"), Some(225_000));
}

/// Bytes that nobody is told of do not wait: the other could not have them sent.
#[test] // Proves: N-1, W-9.
fn without_a_lease_the_other_sees_each_write_at_once() {
    let store = MemoryStore::default();
    store.end_copies();
    let Some(one) = TestMount::start(&store, "") else { return };
    let Some(other) = TestMount::start(&store, "") else { return };
    fs::write(one.path("file"), [7; 20_000]).expect("it is made");
    let mut writer = OpenOptions::new().write(true).open(one.path("file")).expect("it opens");
    let sized = File::open(other.path("file")).expect("it opens");
    let mut bytes = [0; 100];
    for round in 0..50_u8 {
        let end = 20_000 + u64::from(round);
        writer.seek(SeekFrom::Start(end - 100)).expect("a place");
        writer.write_all(&[round; 101]).expect("it is written");
        assert_eq!(sized.metadata().expect("it is there").len(), end + 1);
        let seen = File::open(other.path("file")).expect("it opens");
        seen.read_exact_at(&mut bytes, end - 99).expect("it is read");
        assert_eq!(bytes, [round; 100], "round {round}");
    }
}

#[test]
fn both_make_the_same_file_and_no_byte_is_lost() {
    let Some((one, other)) = two() else { return };
    for round in 0..20 {
        let name = format!("race-{round}");
        let make = |mount: &TestMount| {
            let mut options = OpenOptions::new();
            options.append(true).create(true).open(mount.path(&name)).expect("both may make it")
        };
        // Neither owner has heard of the file when the second one makes it.
        let (mut first, mut second) = (make(&one), make(&other));
        first.write_all(b"first,").expect("one writes");
        first.sync_all().expect("and it is stable");
        second.write_all(b"second,").expect("the other writes");
        second.sync_all().expect("and it is stable");
        drop((first, second));
        for mount in [&one, &other] {
            let text = fs::read_to_string(mount.path(&name)).expect("both read");
            assert_eq!(text, "first,second,", "{name}");
        }
    }
}

#[test]
fn a_truncating_open_of_a_file_that_the_other_made_cuts_it() {
    let Some((one, other)) = two() else { return };
    for round in 0..20 {
        let name = format!("cut-{round}");
        let mut first = File::create(one.path(&name)).expect("one makes");
        let mut second = File::create(other.path(&name)).expect("the other makes");
        first.write_all(b"a long text of the first").expect("one writes");
        drop(first);
        second.write_all(b"short").expect("the other writes");
        drop(second);
        let text = fs::read_to_string(one.path(&name)).expect("it is there");
        // Opens and writes have one order or the other; a mixture of lengths would be neither.
        let fits = text == "short" || text == "shortg text of the first";
        assert!(fits, "{name}: {text}");
        let again = fs::read_to_string(other.path(&name)).expect("it is there");
        assert_eq!(text, again);
    }
}

/// Lines of several sizes, small files and such with a device; each line is one write.
#[test]
fn appends_of_both_are_all_there_each_in_one_piece() {
    let Some((one, other)) = two() else { return };
    const LINES: usize = 300;
    let line = |who: char, number: usize| {
        let filler = "x".repeat(number * 37 % 900);
        format!("{who} {number} {filler}\n")
    };
    let append = |path: std::path::PathBuf, who: char| {
        // Opened again now and then, as by a shell's `>>`.
        for numbers in (0..LINES).collect::<Vec<_>>().chunks(40) {
            let mut options = OpenOptions::new();
            let mut log = options.append(true).create(true).open(&path).expect("it opens");
            for number in numbers {
                log.write_all(line(who, *number).as_bytes()).expect("it appends");
            }
        }
    };
    let places = [(one.path("log"), 'a'), (other.path("log"), 'b')];
    std::thread::scope(|scope| {
        for (path, who) in places {
            scope.spawn(move || append(path, who));
        }
    });
    for mount in [&one, &other] {
        let found = fs::read_to_string(mount.path("log")).expect("it is read");
        for who in ['a', 'b'] {
            let mut of_one = found.split_inclusive('\n').filter(|line| line.starts_with(who));
            for number in 0..LINES {
                let is_right = of_one.next() == Some(&line(who, number));
                assert!(is_right, "line {number} of {who} is lost or torn");
            }
        }
        assert_eq!(found.lines().count(), 2 * LINES);
    }
}

#[test]
fn exclusive_creates_have_one_winner() {
    let Some((one, other)) = two() else { return };
    for round in 0..50 {
        let name = format!("lock-{round}");
        let (here, there) = (one.path(&name), other.path(&name));
        let make = |path| OpenOptions::new().write(true).create_new(true).open(path);
        let (a, b) = std::thread::scope(|scope| {
            let a = scope.spawn(|| make(here));
            let b = scope.spawn(|| make(there));
            (a.join().expect("no panic"), b.join().expect("no panic"))
        });
        let refused: Vec<ErrorKind> =
            [&a, &b].iter().filter_map(|r| r.as_ref().err().map(std::io::Error::kind)).collect();
        assert_eq!(refused, [ErrorKind::AlreadyExists], "{name}");
    }
}

#[test]
fn renames_of_one_file_have_one_winner() {
    let Some((one, other)) = two() else { return };
    for round in 0..50 {
        let name = format!("file-{round}");
        fs::write(one.path(&name), b"bytes").expect("one makes");
        assert!(other.path(&name).exists());
        let here = (one.path(&name), one.path(format!("{name}-one")));
        let there = (other.path(&name), other.path(format!("{name}-other")));
        let (a, b) = std::thread::scope(|scope| {
            let a = scope.spawn(|| fs::rename(here.0, here.1));
            let b = scope.spawn(|| fs::rename(there.0, there.1));
            (a.join().expect("no panic"), b.join().expect("no panic"))
        });
        assert_ne!(a.is_ok(), b.is_ok(), "{name}: one and only one");
        let winner = if a.is_ok() { "one" } else { "other" };
        for mount in [&one, &other] {
            let all: Vec<String> = names(&mount.path(""))
                .into_iter()
                .filter(|found| found.starts_with(&format!("{name}-")) || *found == name)
                .collect();
            assert_eq!(all, [format!("{name}-{winner}")]);
        }
    }
}

#[test]
fn a_listing_has_each_lasting_name_once_while_the_other_changes_the_directory() {
    let Some((one, other)) = two() else { return };
    let stays: BTreeSet<String> = (0..700).map(|index| format!("stays-{index}")).collect();
    for name in &stays {
        fs::write(one.path(name), b"").expect("one makes");
    }
    let is_done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (done, changing) = (&is_done, other.path(""));
        let changer = scope.spawn(move || {
            let mut index = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let (from, to) = (format!("comes-{index}"), format!("goes-{index}"));
                fs::write(changing.join(&from), b"").expect("the other makes");
                fs::rename(changing.join(&from), changing.join(&to)).expect("and renames");
                fs::remove_file(changing.join(&to)).expect("and removes");
                index += 1;
            }
        });
        for _ in 0..10 {
            let listed = names(&one.path(""));
            let lasting: Vec<String> =
                listed.iter().filter(|name| name.starts_with("stays")).cloned().collect();
            assert_eq!(lasting.len(), stays.len(), "none twice, none missing");
            assert_eq!(lasting.into_iter().collect::<BTreeSet<_>>(), stays);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        changer.join().expect("the other goes on all the time");
    });
}

#[test]
fn attributes_set_before_the_owner_knows_the_file_are_kept() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let Some((one, other)) = two() else { return };
    let mut file = File::create(one.path("tar")).expect("one makes");
    file.write_all(b"from an archive").expect("and writes");
    file.set_permissions(fs::Permissions::from_mode(0o640)).expect("and sets the mode");
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_007, 9);
    let times = fs::FileTimes::new().set_accessed(time).set_modified(time);
    file.set_times(times).expect("and times");
    drop(file);
    let seen = fs::metadata(other.path("tar")).expect("the other sees it");
    assert_eq!(seen.mode() & 0o7777, 0o640);
    assert_eq!((seen.mtime(), seen.mtime_nsec()), (1_000_000_007, 9));
    assert_eq!((seen.atime(), seen.atime_nsec()), (1_000_000_007, 9));
    assert_eq!(seen.ino(), fs::metadata(one.path("tar")).expect("it is there").ino());
    let mut text = String::new();
    File::open(other.path("tar")).and_then(|mut f| f.read_to_string(&mut text)).expect("reads");
    assert_eq!(text, "from an archive");
}

/// A list as the kernel writes it: by tag, permissions and id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

#[test]
fn access_lists_are_kept_inherited_and_shown_in_the_mode() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    const ACCESS: &str = "system.posix_acl_access";
    const DEFAULT: &str = "system.posix_acl_default";
    let Some((one, other)) = two() else { return };
    let none = u32::MAX;
    let list =
        |mask| acl(&[(1, 7, none), (2, 6, 1234), (4, 5, none), (16, mask, none), (32, 0, none)]);
    let folder = one.path("folder");
    fs::create_dir(&folder).expect("it is made");
    let plain = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&folder, DEFAULT, &list(7), plain).expect("it is set");
    // Made at once, and made for later: both inherit.
    fs::create_dir(folder.join("sub")).expect("it is made");
    fs::write(folder.join("file"), b"bytes").expect("it is written");
    let get = |path: &std::path::Path, name: &str| {
        let mut value = vec![0; 256];
        let length = rustix::fs::getxattr(path, name, &mut value[..]).map_err(|_| ())?;
        value.truncate(length);
        Ok::<_, ()>(value)
    };
    let mode = |path: &std::path::Path| fs::metadata(path).expect("it is there").mode() & 0o7777;
    let there = other.path("folder");
    assert_eq!(get(&there.join("sub"), DEFAULT), Ok(list(7)));
    assert_eq!(mode(&there.join("sub")), 0o770, "the umask does not count");
    let cut = acl(&[(1, 6, none), (2, 6, 1234), (4, 5, none), (16, 6, none), (32, 0, none)]);
    assert_eq!(get(&there.join("file"), ACCESS), Ok(cut));
    assert_eq!(mode(&there.join("file")), 0o660);
    // The mode changes the list, and the list the mode.
    let file = folder.join("file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("it is set");
    let masked = acl(&[(1, 6, none), (2, 6, 1234), (4, 5, none), (16, 4, none), (32, 0, none)]);
    assert_eq!(get(&file, ACCESS), Ok(masked));
    rustix::fs::setxattr(&file, ACCESS, &list(1), plain).expect("it is set");
    assert_eq!(mode(&file), 0o710);
    let minimal = acl(&[(1, 6, none), (4, 4, none), (32, 4, none)]);
    rustix::fs::setxattr(&file, ACCESS, &minimal, plain).expect("it is set");
    assert_eq!((mode(&file), get(&file, ACCESS)), (0o644, Err(())), "a mode says it all");
}

mod locks {
    use std::os::fd::AsFd;

    use rustix::fs::{FlockOperation, fcntl_lock, flock};
    use rustix::io::Errno;

    use super::*;

    fn open(mount: &TestMount, name: &str) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(mount.path(name)).expect("it opens")
    }

    fn set(file: impl AsFd, operation: FlockOperation) -> Result<(), Errno> {
        flock(file, operation)
    }

    #[test]
    fn a_whole_file_is_locked_for_all_mounts() {
        let Some((one, other)) = two() else { return };
        let (a, b) = (open(&one, "file"), open(&other, "file"));
        set(&a, FlockOperation::NonBlockingLockShared).expect("it is free");
        set(&b, FlockOperation::NonBlockingLockShared).expect("readers share");
        let refused = set(&b, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(refused, Err(Errno::AGAIN));
        set(&a, FlockOperation::Unlock).expect("it was had");
        set(&b, FlockOperation::NonBlockingLockExclusive).expect("it is free");
        assert_eq!(set(&a, FlockOperation::NonBlockingLockShared), Err(Errno::AGAIN));
        drop(b);
        // The last close gives it up, a little later.
        set(&a, FlockOperation::LockExclusive).expect("it comes");
    }

    #[test]
    fn a_close_ends_the_locks_of_its_process() {
        let Some((one, other)) = two() else { return };
        let (a, b) = (open(&one, "file"), open(&other, "file"));
        fcntl_lock(&a, FlockOperation::NonBlockingLockExclusive).expect("it is free");
        let refused = fcntl_lock(&b, FlockOperation::NonBlockingLockExclusive);
        assert!(matches!(refused, Err(Errno::AGAIN | Errno::ACCESS)), "{refused:?}");
        // Any descriptor of the file, as POSIX has it.
        drop(open(&one, "file"));
        fcntl_lock(&b, FlockOperation::NonBlockingLockExclusive).expect("it is free");
    }

    #[test]
    fn who_gets_a_lock_sees_what_was_written_under_it() {
        use std::os::unix::fs::FileExt;
        let Some((one, other)) = two() else { return };
        let (a, b) = (open(&one, "file"), open(&other, "file"));
        for round in 0..20_u32 {
            for file in [&a, &b] {
                fcntl_lock(file, FlockOperation::LockExclusive).expect("it comes");
                let mut bytes = [0; 4];
                let read = file.read_at(&mut bytes, 0).expect("it is read");
                let number = if read == 0 { 0 } else { u32::from_ne_bytes(bytes) };
                assert_eq!(number, 2 * round + u32::from(std::ptr::eq(file, &b)));
                file.write_all_at(&(number + 1).to_ne_bytes(), 0).expect("it is written");
                fcntl_lock(file, FlockOperation::Unlock).expect("it is had");
            }
        }
    }

    #[test]
    fn counters_under_a_lock_lose_nothing() {
        let Some((one, other)) = two() else { return };
        const ROUNDS: u32 = 50;
        fs::write(one.path("counter"), b"0").expect("it is made");
        let count = |path: std::path::PathBuf, lock: std::path::PathBuf| {
            for _ in 0..ROUNDS {
                let mut options = OpenOptions::new();
                options.write(true).create(true).truncate(false);
                let guard = options.open(&lock).expect("it opens");
                set(&guard, FlockOperation::LockExclusive).expect("it comes");
                let text = fs::read_to_string(&path).expect("it is read");
                let number: u32 = text.parse().expect("a number");
                fs::write(&path, (number + 1).to_string()).expect("it is written");
            }
        };
        let places = [&one, &other].map(|mount| (mount.path("counter"), mount.path("lock")));
        std::thread::scope(|scope| {
            for (path, lock) in places {
                scope.spawn(move || count(path, lock));
            }
        });
        let text = fs::read_to_string(one.path("counter")).expect("it is read");
        assert_eq!(text, (2 * ROUNDS).to_string());
    }
}
