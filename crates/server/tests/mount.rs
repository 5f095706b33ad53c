//! The mount of a real cluster, through the program and the kernel.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Cluster;

/// A mount that ends with the test.
struct Mount {
    directory: PathBuf,
}

impl Mount {
    /// Mounts; `None`, and a printed reason, where this machine cannot.
    fn start(cluster: &Cluster, name: &str, options: &[&str]) -> Option<Self> {
        let is_there = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        if let Err(error) = is_there {
            println!("skipped: /dev/fuse: {error}");
            return None;
        }
        let directory = cluster.path(name);
        fs::create_dir_all(&directory).expect("a folder can be made");
        let place = directory.to_str().expect("a folder of the test");
        let mut arguments = vec!["mount", place];
        arguments.extend(options);
        let output = cluster.run(&arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        if error.contains("not permitted") || error.contains("fusermount3") {
            println!("skipped: {error}");
            return None;
        }
        assert!(output.status.success(), "{error}");
        Some(Self { directory })
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.directory).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            let _ = Command::new("umount").arg("-l").arg(&self.directory).status();
        }
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

#[test]
fn a_mount_is_a_file_system() {
    let cluster = Cluster::started(3);
    let Some(mount) = Mount::start(&cluster, "mnt", &[]) else { return };
    for size in [0, 5, 4096, 4097, 3_000_000] {
        fs::write(mount.path(format!("f{size}")), pattern(size)).expect("it is written");
        let read = fs::read(mount.path(format!("f{size}"))).expect("it is read");
        assert!(read == pattern(size), "size {size}");
    }
    fs::create_dir(mount.path("d")).expect("it is made");
    symlink("../f5", mount.path("d/link")).expect("it is made");
    assert_eq!(fs::read(mount.path("d/link")).expect("it is read"), pattern(5));
    fs::hard_link(mount.path("f5"), mount.path("d/same")).expect("it is linked");
    assert_eq!(fs::metadata(mount.path("f5")).expect("it is there").nlink(), 2);
    fs::rename(mount.path("f4096"), mount.path("d/moved")).expect("it is renamed");
    fs::remove_file(mount.path("f5")).expect("it is removed");
    rustix::fs::setxattr(mount.path("d/moved"), "user.x", b"y", rustix::fs::XattrFlags::empty())
        .expect("it is set");
    let file = File::create(mount.path("sparse")).expect("it is made");
    file.write_all_at(b"far", 50_000_000).expect("it is written");
    file.set_len(50_000_002).expect("it is cut");
    drop(file);
    let mut log = OpenOptions::new().append(true).open(mount.path("d/moved")).expect("it opens");
    log.write_all(b"tail").expect("it is appended");
    log.sync_all().expect("it is stable");
    drop(log);
    // Another mount, and the command line, see the same.
    let Some(other) = Mount::start(&cluster, "other", &["-o", "ttl=0"]) else { return };
    let moved = fs::read(other.path("d/moved")).expect("it is read");
    assert!(moved == [pattern(4096), b"tail".to_vec()].concat());
    assert_eq!(fs::metadata(other.path("sparse")).expect("it is there").len(), 50_000_002);
    assert_eq!(fs::read(other.path("d/same")).expect("it is read"), pattern(5));
    let mut value = [0; 8];
    let len = rustix::fs::getxattr(other.path("d/moved"), "user.x", &mut value[..]);
    assert_eq!(&value[..len.expect("it is there")], b"y");
    assert_eq!(cluster.ok(&["cat", "/d/same"]).len(), 5);
    fs::remove_dir_all(other.path("d")).expect("it is removed");
    assert!(!cluster.ok(&["ls", "/"]).lines().any(|line| line == "d" || line == "d/"));
}

#[test]
fn bad_options_are_refused_with_a_reason() {
    let cluster = Cluster::started(3);
    let folder = cluster.path("mnt");
    fs::create_dir(&folder).expect("a folder can be made");
    let place = folder.to_str().expect("a folder of the test");
    if File::open("/dev/fuse").is_err() {
        println!("skipped: no /dev/fuse");
        return;
    }
    let error = cluster.fails(2, &["mount", place, "-o", "sofft"]);
    assert!(error.contains("sofft"), "{error}");
    let error = cluster.fails(1, &["mount", "/nowhere/at/all"]);
    assert!(error.contains("/nowhere/at/all"), "{error}");
}
