//! The mount of a real cluster, through the program and the kernel.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{Cluster, kill};

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

/// What one mount did is there for the other when the call returns: names, sizes, times, and bytes that
/// the other's kernel has in its pages already.
#[test] // Proves: N-1.
fn two_mounts_see_at_once_what_the_other_did() {
    let cluster = Cluster::started(3);
    let Some(one) = Mount::start(&cluster, "one", &[]) else { return };
    let Some(other) = Mount::start(&cluster, "other", &[]) else { return };
    fs::create_dir(one.path("d")).expect("it is made");
    fs::write(one.path("d/file"), pattern(20_000)).expect("it is written");
    let open = File::open(other.path("d/file")).expect("it opens");
    let mut read = vec![0; 20_000];
    open.read_exact_at(&mut read, 0).expect("it is read");
    assert!(read == pattern(20_000));
    for round in 0..30_u8 {
        // Absent, and known to be; then there, with its size; then gone by another name.
        let (here, there) =
            (one.path(format!("d/new-{round}")), other.path(format!("d/new-{round}")));
        assert!(!there.exists());
        fs::write(&here, vec![round; usize::from(round)]).expect("it is written");
        assert_eq!(fs::metadata(&there).expect("it is there").len(), u64::from(round));
        fs::rename(&there, other.path(format!("d/moved-{round}"))).expect("it is renamed");
        assert!(!here.exists());
        assert_eq!(fs::read_dir(one.path("d")).expect("it lists").count(), usize::from(round) + 2);
        // In place, also larger than what stands in a record.
        let writer = OpenOptions::new().write(true).open(one.path("d/file")).expect("it opens");
        writer.write_all_at(&vec![round; 9_000], 5_000).expect("it is written");
        if round % 2 == 0 {
            writer.sync_all().expect("it is stable");
        }
        drop(writer);
        open.read_exact_at(&mut read, 0).expect("it is read");
        assert!(read[5_000..14_000].iter().all(|byte| *byte == round), "round {round}");
        assert!(read[..5_000] == pattern(20_000)[..5_000]);
        let times = [one.path("d/file"), other.path("d/file")];
        let [here, there] = times.map(|path| fs::metadata(path).expect("it is there"));
        assert_eq!((here.mtime(), here.mtime_nsec()), (there.mtime(), there.mtime_nsec()));
    }
    // Bytes that wait in the other mount are there for who looks, reads or lists.
    let writer = OpenOptions::new().write(true).open(one.path("d/file")).expect("it opens");
    for round in 0..20_u8 {
        writer.write_all_at(&[round; 100], 19_990 + u64::from(round)).expect("it is written");
        assert_eq!(open.metadata().expect("it is there").len(), 20_090 + u64::from(round));
        writer.write_all_at(&[round; 100], 500).expect("it is written");
        open.read_exact_at(&mut read[..100], 500).expect("it is read");
        assert_eq!(read[..100], [round; 100], "round {round}");
    }
    drop(writer);
    // A cut, and an attribute.
    fs::File::options()
        .write(true)
        .open(one.path("d/file"))
        .and_then(|f| f.set_len(7))
        .expect("cut");
    assert_eq!(open.metadata().expect("it is there").len(), 7);
    fs::set_permissions(one.path("d/file"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("it is set");
    assert_eq!(open.metadata().expect("it is there").mode() & 0o777, 0o600);
}

/// A file that one mount removes stays as long as the other has it open, and goes with that close.
#[test] // Proves: N-4.
fn a_file_removed_by_one_mount_stays_while_the_other_has_it_open() {
    let cluster = Cluster::started(3);
    let Some(one) = Mount::start(&cluster, "one", &[]) else { return };
    let Some(other) = Mount::start(&cluster, "other", &[]) else { return };
    fs::write(one.path("removed"), pattern(300_000)).expect("it is written");
    fs::write(one.path("replaced"), pattern(100)).expect("it is written");
    let open = |name| OpenOptions::new().read(true).write(true).open(other.path(name));
    let files = ["removed", "replaced"].map(|name| open(name).expect("it opens"));
    fs::remove_file(one.path("removed")).expect("it is removed");
    fs::write(one.path("new"), b"new").expect("it is written");
    fs::rename(one.path("new"), one.path("replaced")).expect("it is replaced");
    assert!(!other.path("removed").exists());
    assert_eq!(fs::read(other.path("replaced")).expect("it is read"), b"new");
    for (file, length) in files.iter().zip([300_000, 100]) {
        let mut read = vec![0; length];
        file.read_exact_at(&mut read, 0).expect("it is still there");
        assert!(read == pattern(length));
        file.write_all_at(b"late", 10).expect("it is written");
        file.sync_all().expect("it is stable");
        file.read_exact_at(&mut read[..4], 10).expect("it is read");
        assert_eq!(&read[..4], b"late");
    }
    drop(files);
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

/// Numbered files written by a process of its own until `stop` is there.
///
/// Not by a thread of the test: a process that is started closes what it inherits, and a close
/// waits for the cluster, which the test starts.
fn start_writer(cluster: &Cluster, folder: &Path) -> Child {
    for kind in 0..3 {
        fs::write(cluster.path(&format!("source-{kind}")), pattern(100 + kind * 100_000))
            .expect("it is written");
    }
    let script = "count=0; while [ ! -e \"$1/stop\" ] || [ $count = 0 ]; do \
        dd if=\"$1/source-$((count % 3))\" of=\"$2/file-$count\" bs=1M conv=fsync status=none || exit 1; \
        count=$((count + 1)); done; echo $count";
    let mut command = Command::new("sh");
    command.args(["-c", script, "writer"]).arg(cluster.path("")).arg(folder);
    command.stdout(Stdio::piped()).spawn().expect("a shell is there")
}

fn check_all(folder: &Path, count: usize) {
    for index in 0..count {
        let read = fs::read(folder.join(format!("file-{index}"))).expect("it is read");
        assert!(read == pattern(100 + index % 3 * 100_000), "file-{index}");
    }
}

#[test]
fn a_mount_survives_the_kill_of_owners_disks_leader_and_a_restart_of_all() {
    let cluster = Cluster::started(3);
    let Some(mount) = Mount::start(&cluster, "mnt", &[]) else { return };
    let folder = mount.path("work");
    fs::create_dir(&folder).expect("it is made");
    let before = folder.join("open-all-the-time");
    let kept = File::create(&before).expect("it is made");
    let writer = start_writer(&cluster, &folder);
    // Each server's processes in turn: with the LCs go the owners, with one of the coordinators the
    // leader.
    for role in ["lc", "io", "coordinator"] {
        for server in 1..=3 {
            let pids = cluster.pids(server, role);
            assert!(!pids.is_empty(), "{role} of {server} runs");
            pids.iter().for_each(|pid| kill(*pid, "KILL"));
            cluster.wait_status("another process in its place, and health", |status| {
                let now = common::pids_in(status, server, role);
                let is_new = !now.is_empty() && now.iter().all(|pid| !pids.contains(pid));
                is_new && status["health"] == "ok"
            });
        }
    }
    // And all at once.
    cluster.ok(&["down"]);
    cluster.up(3);
    fs::write(cluster.path("stop"), b"").expect("it is written");
    let output = writer.wait_with_output().expect("it ends");
    assert!(output.status.success(), "the writer never fails");
    let count = String::from_utf8(output.stdout).expect("digits").trim().parse().expect("digits");
    check_all(&folder, count);
    kept.write_all_at(b"still open", 0).expect("it is written");
    kept.sync_all().expect("it is stable");
    drop(kept);
    // With nothing known but what the cluster has.
    let Some(other) = Mount::start(&cluster, "other", &[]) else { return };
    check_all(&other.path("work"), count);
    assert_eq!(fs::read(other.path("work/open-all-the-time")).expect("it is read"), b"still open");
    assert_eq!(fs::read_dir(other.path("work")).expect("it lists").count(), count + 1);
}

#[test]
fn a_soft_mount_of_a_lost_cluster_fails_and_a_killed_process_leaves_a_hard_one() {
    let cluster = Cluster::started(3);
    let Some(mount) = Mount::start(&cluster, "mnt", &[]) else { return };
    fs::write(mount.path("file"), b"bytes").expect("it is written");
    cluster.ok(&["down"]);
    let mut reader = Command::new("cat")
        .arg(mount.path("file"))
        .stdout(Stdio::null())
        .spawn()
        .expect("cat is there");
    // It waits for the cluster; nothing else ends it.
    assert!(reader.try_wait().expect("it can be asked").is_none());
    reader.kill().expect("it can be killed");
    // Never ends if the kernel holds the reader.
    let status = reader.wait().expect("it ends");
    assert!(!status.success());
    cluster.up(3);
    assert_eq!(fs::read(mount.path("file")).expect("the cluster is back"), b"bytes");
}

#[test]
fn mount_finds_the_helper_by_its_name() {
    let cluster = Cluster::started(3);
    if File::open("/dev/fuse").is_err() {
        println!("skipped: no /dev/fuse");
        return;
    }
    let helper = cluster.path("mount.fuse.braid");
    symlink(env!("CARGO_BIN_EXE_braid"), &helper).expect("it is linked");
    let directory = cluster.path("mnt");
    fs::create_dir(&directory).expect("a folder can be made");
    let output = Command::new(&helper)
        .arg(cluster.path("braid-data/client.toml"))
        .arg(&directory)
        .args(["-n", "-o", "rw,nofail,ttl=100", "-t", "fuse.braid"])
        .output()
        .expect("it runs");
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("not permitted") || error.contains("fusermount3") {
        println!("skipped: {error}");
        return;
    }
    assert!(output.status.success(), "{error}");
    let mount = Mount { directory };
    fs::write(mount.path("file"), b"bytes").expect("it is written");
    assert_eq!(cluster.ok(&["cat", "/file"]), "bytes");
    // `mount -o remount,ro` calls the helper too. Found by pjdfstest: it mounted once more.
    let remount = |options: &str| {
        let mut command = Command::new(&helper);
        command.arg(cluster.path("braid-data/client.toml")).arg(&mount.directory);
        command.args(["-o", options]).status().expect("it runs")
    };
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root may remount");
    }
    assert!(remount("remount,ro").success());
    let error = fs::write(mount.path("file"), b"more").expect_err("it is read only");
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert!(remount("remount,rw").success());
    fs::write(mount.path("file"), b"more").expect("it is written");
}

#[test]
fn up_mounts_the_store_and_down_ends_that_first() {
    let cluster = Cluster::started(3);
    let Some(first) = Mount::start(&cluster, "mounted", &[]) else { return };
    drop(first);
    let mounted = cluster.path("mounted");
    let place = mounted.to_str().expect("a folder of the test");
    cluster.ok(&["down"]);
    let told = cluster.ok(&["up", "--detach", "--mount", place]);
    assert!(told.contains("mounted at"), "{told}");
    let bytes = pattern(1 << 20);
    fs::write(mounted.join("file"), &bytes).expect("written through the mount");
    // Written, and nobody asked for it to be stored: the end of the mount does.
    cluster.ok(&["down"]);
    assert!(!mounted.join("file").exists(), "the mount is gone");
    let error = cluster.fails(2, &["up", "--detach", "--servers", "4"]);
    assert!(error.contains("has 3 servers, not 4"), "{error}");
    cluster.ok(&["up", "--detach", "--servers", "3"]);
    cluster.ok(&["get", "/file", "back"]);
    assert!(fs::read(cluster.path("back")).expect("it was fetched") == bytes);
    assert_eq!(cluster.ok(&["find", "/", "-name", "f*", "-type", "f"]), "/file\n");
}

/// Mode `memory`: all local controllers die in the middle of writes. What an fsync said is there, and
/// what is not there, an fsync says.
#[test] // Proves: W-9, G-5.
fn what_was_answered_from_memory_is_there_or_told() {
    let cluster = Cluster::started(3);
    cluster.ok(&["policy", "set", "scratch", "--match", "/scratch/**", "--ack", "memory"]);
    cluster.ok(&["mkdir", "/scratch"]);
    let Some(mount) = Mount::start(&cluster, "mnt", &[]) else { return };
    let file = File::create(mount.path("scratch/x")).expect("it is made");
    let before = pattern(300_000);
    file.write_all_at(&before, 0).expect("it is written");
    file.sync_all().expect("it is on the disks");
    let after: Vec<u8> = before.iter().map(|byte| byte ^ 0x55).collect();
    for round in 0..3 {
        file.write_all_at(&after, 0).expect("it is answered");
        for server in 1..=3 {
            cluster.pids(server, "lc").into_iter().for_each(|pid| kill(pid, "KILL"));
        }
        if let Err(error) = file.sync_all() {
            assert_eq!(error.raw_os_error(), Some(5), "round {round}");
            file.write_all_at(&after, 0).expect("it is answered again");
            file.sync_all().expect("told once, and now it is on the disks");
        }
        cluster.ok(&["get", "--quiet", "/scratch/x", "back"]);
        assert!(fs::read(cluster.path("back")).expect("it was got") == after, "round {round}");
        file.write_all_at(&before, 0).expect("it is answered");
        file.sync_all().expect("it is on the disks");
    }
}

/// A mount whose process the test has.
struct OwnMount {
    mount: Mount,
    process: Child,
}

impl OwnMount {
    fn start(cluster: &Cluster, name: &str) -> Self {
        let directory = cluster.path(name);
        fs::create_dir_all(&directory).expect("a folder can be made");
        let place = directory.to_str().expect("a folder of the test");
        let outside = fs::metadata(&directory).expect("it is there").dev();
        let mut command = cluster.command(&["mount", "--foreground", place]);
        let process = command.stderr(Stdio::null()).spawn().expect("it starts");
        let mount = Mount { directory };
        let mut looks = 0..600;
        while fs::metadata(&mount.directory).is_ok_and(|found| found.dev() == outside) {
            assert!(looks.next().is_some(), "it is not mounted");
            let _ = Command::new("sleep").arg("0.05").status();
        }
        Self { mount, process }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).expect("a process number")
    }
}

impl Drop for OwnMount {
    fn drop(&mut self) {
        let pid = self.pid();
        kill(pid, "CONT");
        let _ = Command::new("umount").arg("-l").arg(&self.mount.directory).status();
        let _ = self.process.wait();
    }
}

/// Which server owns the directory of a path, as `where` tells.
fn owner_of(cluster: &Cluster, path: &str) -> u64 {
    let text = cluster.ok(&["where", path]);
    let line = text.lines().find_map(|line| line.strip_prefix("owner: server "));
    let number = line.and_then(|rest| rest.split(' ').next());
    number.and_then(|number| number.parse().ok()).expect("somebody owns it")
}

#[test] // Proves: O-6, O-4.
fn a_mount_owns_what_it_makes_and_others_go_on_without_it() {
    let cluster = Cluster::started(3);
    if Mount::start(&cluster, "trial", &[]).is_none() {
        return;
    }
    let survivor = Mount::start(&cluster, "survivor", &["-o", "ttl=0"]).expect("it mounts");
    let dying = OwnMount::start(&cluster, "dying");
    let sleeping = OwnMount::start(&cluster, "sleeping");
    for (mount, name) in [(&dying, "of-the-dying"), (&sleeping, "of-the-sleeping")] {
        let folder = mount.mount.path(name);
        fs::create_dir(&folder).expect("it is made");
        fs::write(folder.join("file"), pattern(300_000)).expect("it is written");
        let file = File::open(folder.join("file")).expect("it opens");
        file.sync_all().expect("it is stable");
        assert!(3 < owner_of(&cluster, &format!("/{name}")), "a server owns what a mount made");
    }
    cluster.wait_status("three mounts", |status| {
        status["health"] == "ok" && status["mounts"].as_array().is_some_and(|all| all.len() == 3)
    });

    kill(dying.pid(), "KILL");
    let begun = tokio::time::Instant::now();
    let read = fs::read(survivor.path("of-the-dying/file")).expect("it is read");
    assert!(read == pattern(300_000), "a closed file is whole");
    fs::write(survivor.path("of-the-dying/more"), b"more").expect("it is written");
    println!("after the kill of its owner: {:?}", begun.elapsed());

    kill(sleeping.pid(), "STOP");
    let begun = tokio::time::Instant::now();
    fs::write(survivor.path("of-the-sleeping/file"), b"new").expect("it is written");
    println!("while its owner stands still: {:?}", begun.elapsed());
    kill(sleeping.pid(), "CONT");
    let read = fs::read(sleeping.mount.path("of-the-sleeping/file")).expect("it is read");
    assert_eq!(read, b"new", "a mount that wakes shows what was before");
    fs::write(sleeping.mount.path("of-the-sleeping/more"), b"more").expect("it is written");
    assert_eq!(fs::read(survivor.path("of-the-sleeping/more")).expect("it is read"), b"more");
    cluster.wait_status("nothing is left of the dead one", |status| {
        status["health"] == "ok" && status["mounts"].as_array().is_some_and(|all| all.len() == 2)
    });
}

/// A file system that only one mount uses is owned by it, also its root, and all of it goes back to
/// servers when the mount ends.
#[test] // Proves: O-6.
fn what_one_mount_uses_moves_to_it() {
    let cluster = Cluster::started(3);
    cluster.ok(&["mkdir", "/before"]);
    let Some(mount) = Mount::start(&cluster, "mnt", &["-o", "ttl=0"]) else { return };
    let mounts = cluster.json(&["status", "--json"])["mounts"].clone();
    let id = mounts[0]["id"].as_u64().expect("a number");
    let mut looks = 0..600;
    // `where` asks, too; the mount must be seen to be alone in between.
    loop {
        for _ in 0..40 {
            fs::write(mount.path("before/file"), b"x").expect("it is written");
            let _ = Command::new("sleep").arg("0.1").status();
        }
        if owner_of(&cluster, "/before") == id && owner_of(&cluster, "/") == id {
            break;
        }
        assert!(looks.next().is_some(), "they do not move");
    }
    drop(mount);
    cluster.wait_status("the mount is gone", |status| {
        status["health"] == "ok" && status["mounts"].as_array().is_some_and(Vec::is_empty)
    });
    assert_eq!(cluster.ok(&["cat", "/before/file"]), "x");
    assert!(owner_of(&cluster, "/before") <= 3);
}
