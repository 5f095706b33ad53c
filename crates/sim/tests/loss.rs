//! Ring 2: loss that is told, as scripts; see `holes.rs`.

#[path = "common/found.rs"]
mod found;

use std::time::Duration;

use braid_client::{AttributeChanges, EntryAttributes, Error, PutOptions};
use braid_sim::scripted::{Failed, Role, Script, block};
use braid_terms::GroupLayout;
use braid_wire::io::IoRequest;
use braid_wire::lcc::{DeviceNews, DirectoryOp, LccRefusal};

const SLOW: Duration = Duration::from_secs(3);

fn blocks(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| block(*byte)).collect()
}

/// A device on servers 1, 2 and 3 that X made at `owner`, with one block for each byte, all stable.
async fn device_of(script: &Script, owner: u32, bytes: &[u8]) -> GroupLayout {
    let device = script.device(&[1, 2, 3]);
    script.write_at_last(owner, &device, 0, &blocks(bytes)).await;
    script.stable_everywhere(owner, &device).await;
    device
}

/// Hole 21: answered writes are lost and nobody is told.
///
/// 1. A client has a file open twice and writes to it; the writes are held.
/// 2. All machines lose their power; the journals had nothing of them on the media.
/// 3. The new owner finds no trace. Both handles are told at their next sync, once, and what is written
///    from then on is synced as ever.
#[test] // Proves: W-9.
fn hole_21_a_sync_says_that_answered_writes_are_lost() {
    Script::run(60, 5, "raid5/2+1", async |script| {
        let client = script.client();
        let options = PutOptions { stable: true, ..PutOptions::default() };
        client.put_bytes("/f", vec![1; 100_000].into(), options).await.expect("a file");
        let [first, second] = [client.open("/f").await, client.open("/f").await];
        let (first, second) = (first.expect("it is there"), second.expect("it is there"));
        first.write(0, vec![2; 50_000].into()).await.expect("a held write");
        first.sync().await.expect("nothing is wrong yet");
        script.set_sync_time(&script.servers(), SLOW);
        first.write(0, vec![3; 50_000].into()).await.expect("a held write");
        script.power_cut(&script.servers());
        script.power_on(&script.servers());
        script.until("it can be read", async |_| first.read(0, 1).await.is_ok()).await;
        assert_eq!(first.read(0, 1).await.expect("it was read")[0], 2, "nothing was on the media");
        for handle in [&first, &second] {
            let told = handle.sync().await;
            assert!(matches!(told, Err(Error::HeldLost { .. })), "{told:?}");
            handle.sync().await.expect("told once");
        }
        first.write(0, vec![4; 50_000].into()).await.expect("a held write");
        first.sync().await.expect("nothing is wrong with this one");
    });
}

/// Hole 21, of names, and by an owner of later.
///
/// 1. A file is made in a directory: held. All machines lose their power.
/// 2. N owns the directory and makes another file; it dies, and N2 owns it.
/// 3. A sync of the directory says that the first one is lost, though N2 never saw a trace of it.
#[test] // Proves: W-9.
fn hole_21_later_owners_know_what_earlier_ones_lost() {
    Script::run(61, 5, "raid5/2+1", async |script| {
        let client = script.client();
        client.mkdir("/d", &EntryAttributes::default()).await.expect("a directory");
        client.root().sync().await.expect("it is synced");
        let directory = client.directory("/d").await.expect("it is there");
        directory.sync().await.expect("it is synced");
        script.set_sync_time(&script.servers(), SLOW);
        let put = async |name: &str, stable| {
            let options = PutOptions { stable, ..PutOptions::default() };
            let other = script.cluster.client(1).await.expect("another client");
            let own = if stable { &other } else { client };
            own.put_bytes(name, vec![7; 10].into(), options).await
        };
        put("/d/one", false).await.expect("a held one");
        script.power_cut(&script.servers());
        script.power_on(&script.servers());
        put("/d/two", true).await.expect("by another client, and stable");
        for server in script.servers() {
            script.cluster.kill(server, Role::Lc);
            script.cluster.start_process(server, Role::Lc);
        }
        put("/d/three", true).await.expect("by another client, and stable");
        let told = directory.sync().await;
        assert!(matches!(told, Err(Error::HeldLost { .. })), "{told:?}");
        let names = client.list("/d", false).await.expect("it is listed").all().await;
        assert_eq!(names.expect("it is listed").len(), 2);
    });
}

/// The removal of a directory may be answered before it is on any disk, as changes within one directory
/// are: a sync of its parent says where a power cut took it. What is back can be used, and removed.
///
/// 1. Six directories in one are removed while all disks sync slowly, and all machines lose their power.
/// 2. Some are there again: their parent decided alone, and forgot it.
/// 3. A sync of the parent says so. The first that is back takes a file; all go for good.
#[test] // Proves: W-7, W-9.
fn a_sync_says_that_the_removal_of_a_directory_is_lost() {
    Script::run(64, 5, "raid5/2+1", async |script| {
        let client = script.client();
        client.mkdir("/d", &EntryAttributes::default()).await.expect("a directory");
        let below: Vec<String> = (0..6).map(|n| format!("/d/{n}")).collect();
        for path in &below {
            client.mkdir(path, &EntryAttributes::default()).await.expect("a directory");
            let made = client.directory(path).await.expect("made");
            made.sync().await.expect("it is synced");
        }
        client.root().sync().await.expect("it is synced");
        let directory = client.directory("/d").await.expect("it is there");
        directory.sync().await.expect("it is synced");
        script.set_sync_time(&script.servers(), SLOW);
        for path in &below {
            client.rmdir(path).await.expect("it is empty");
        }
        script.power_cut(&script.servers());
        script.power_on(&script.servers());
        script.set_sync_time(&script.servers(), Duration::ZERO);
        let mut back = Vec::new();
        for path in &below {
            match client.lookup(path).await {
                Ok(_) => back.push(path),
                Err(Error::NotFound { .. }) => {}
                Err(error) => panic!("{path}: {error}"),
            }
        }
        let told = directory.sync().await;
        assert_eq!(back.is_empty(), told.is_ok(), "{back:?}: {told:?}");
        assert!(!back.is_empty(), "the power cut took nothing: this shows nothing");
        for (nth, path) in back.into_iter().enumerate() {
            if nth == 0 {
                let file = format!("{path}/file");
                let put = client.put_bytes(&file, vec![7; 10].into(), PutOptions::default()).await;
                put.expect("it is a directory as any");
                client.unlink(&file).await.expect("it is there");
            }
            client.rmdir(path).await.expect("it is empty");
        }
        directory.sync().await.expect("all is told");
        script.healed().await;
    });
}

/// Names that a power cut took are shown by an owner that lives on, and are gone later.
///
/// 1. X at server 4 owns a directory with copies at servers 2 and 3, and makes a file there: held.
/// 2. Those servers lose their power, with what they held, and are back at once.
/// 3. X has the name in its memory. It must not show it any more.
#[test] // Proves: W-9.
fn an_owner_does_not_show_what_restarted_portions_lost() {
    Script::run(63, 5, "raid5/2+1", async |script| {
        let directory = script.directory(&[2, 3], 4, &script.root()).await;
        script.names_at_last(4, &directory, DirectoryOp::SYNC).await.expect("all can sync");
        script.set_sync_time(&[2, 3], SLOW);
        script.make(4, &directory, "f").await;
        assert!(script.entry(4, &directory, "f").await.is_some(), "it was answered");
        script.power_cut(&[2, 3]);
        script.power_on(&[2, 3]);
        for server in [2, 3] {
            let answers =
                async |script: &Script| script.ask_io(server, &IoRequest::Status).await.is_some();
            script.until("its I/O server is back", answers).await;
        }
        for _ in 0..50 {
            assert_eq!(script.entry(4, &directory, "f").await, None, "it was lost");
        }
        script.make(4, &directory, "f").await;
        assert!(script.entry(4, &directory, "f").await.is_some(), "this one counts");
    });
}

/// A power cut takes a file's bytes as a whole, and leaves its record (simulator, seed 2353 of three servers).
///
/// 1. The bytes of a file are held, its record is on the disks: with its size, or marked open, without.
/// 2. The servers with its bytes lose their power: no portion knows of the device.
/// 3. The one that is open is empty, the other says that its bytes are lost. Neither hangs; both can be
///    looked at, synced, and written anew, or cut, or removed.
#[test] // Proves: N-2, N-4.
fn a_file_of_which_all_bytes_are_lost_can_be_used() {
    for (seed, is_open) in [(64, false), (65, true)] {
        Script::run(seed, 6, "raid5/2+1", async |script| {
            let root = script.root();
            let names: Vec<_> = root.disks.iter().map(|disk| disk.0).collect();
            let others: Vec<_> =
                script.servers().into_iter().filter(|server| !names.contains(server)).collect();
            let (cut, owner) = (&others[..3], others[3]);
            let (written, truncated) = (script.device(cut), script.device(cut));
            script.set_sync_time(cut, SLOW);
            for (device, name) in [(&written, "f"), (&truncated, "g")] {
                script.write(owner, device, 0, blocks(&[1, 2])).await.expect("held");
                script.name(device, if is_open { 0 } else { 8192 }, name).await;
                let news = DeviceNews { device: device.group(), length: None, writers: 1 };
                let changes =
                    AttributeChanges { device: Some(news), ..AttributeChanges::default() };
                if is_open {
                    let id = script.entry(owner, &root, name).await.expect("it was made");
                    let op = DirectoryOp::SetAttributes {
                        operation: script.operation(),
                        id,
                        changes,
                        stable: true,
                    };
                    script.names_at_last(owner, &root, op).await.expect("it is there");
                }
            }
            script.power_cut(cut);
            script.cluster.kill(owner, Role::Lc);
            script.power_on(cut);
            let client = script.client();
            let size = if is_open { 0 } else { 8192 };
            for name in ["/f", "/g"] {
                let node = client.stat(name).await.expect("it can be looked at");
                assert_eq!(node.attributes.size, size, "{name}");
                let file = client.open(name).await.expect("it is there");
                let read = file.read(0, 10).await;
                let is_right = match &read {
                    Ok(bytes) => is_open && bytes.is_empty(),
                    Err(error) => !is_open && matches!(error, Error::Lost { .. }),
                };
                assert!(is_right, "{name}: {read:?}");
                file.sync().await.expect("nothing that this process was told of is lost");
            }
            let file = client.open("/f").await.expect("it is there");
            file.write(4096, vec![7; 9].into()).await.expect("it is made anew");
            file.sync().await.expect("all can sync");
            let read = client.get_bytes("/f").await.expect("it can be read");
            assert!(read[..4096] == block(0) && read[4096..] == [7; 9], "{} bytes", read.len());
            let file = client.open("/g").await.expect("it is there");
            file.truncate(0).await.expect("it can be cut");
            assert_eq!(file.size().await.expect("it can be looked at"), 0);
            assert_eq!(file.append(vec![8; 5000].into()).await.expect("all is there"), 0);
            for name in ["/f", "/g"] {
                client.unlink(name).await.expect("it can be removed");
            }
            script.cluster.start_process(owner, Role::Lc);
        });
    }
}

/// Rules that these scripts guard, taken out: the script must fail.
#[test] // Proves: W-9, S-3.
fn each_planted_bug_is_found() {
    found::each_is_found(&[
        ("W-9/loss-is-not-told", hole_21_a_sync_says_that_answered_writes_are_lost),
        ("W-9/loss-is-not-told", a_sync_says_that_the_removal_of_a_directory_is_lost),
        ("S-3/synced-without-a-sync", hole_21_a_sync_says_that_answered_writes_are_lost),
        ("W-9/what-was-lost-is-shown", an_owner_does_not_show_what_restarted_portions_lost),
    ]);
}

/// More than m portions lose what they held, and their owner lives on.
///
/// 1. X at server 4 owns a device; a write {D1, P} is held and answered.
/// 2. The machines of D1 and P lose their power and are back at once. Neither has the write; one of
///    them may be removed, the other not.
/// 3. X gives the group up; who opens it serves what is left, and a sync says what is lost.
#[test] // Proves: W-9, W-6.
fn an_owner_that_outlives_a_loss_gives_the_group_up() {
    Script::run(62, 5, "raid5/2+1", async |script| {
        let device = device_of(&script, 4, &[1, 2]).await;
        script.set_sync_time(&[1, 2, 3], SLOW);
        script.write(4, &device, 0, block(3)).await.expect("a held write");
        let decided = script.describe(4, &device).await.expect("X owns it").decided;
        script.power_cut(&[1, 3]);
        script.power_on(&[1, 3]);
        let read = script.read_at_last(4, &device, 0, 8192).await;
        assert!(read == blocks(&[1, 2]), "the write is nowhere any more");
        let told = script.sync_of(4, &device, decided).await;
        assert_eq!(told, Err(Failed::Refused(LccRefusal::HeldLost)));
        script.check_all_ways(4, &device, &blocks(&[1, 2])).await;
    });
}
