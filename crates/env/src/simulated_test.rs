use std::cell::RefCell;

use bytes::Bytes;
use tokio::time::sleep;

use super::*;
use crate::{Address, Connection, Frame, OpenMode, Payload};

const SECOND: Duration = Duration::from_secs(1);

fn text(head: impl Into<String>) -> Frame {
    Frame { head: Bytes::from(head.into()), payload: Payload::empty() }
}

/// Answers every frame with itself, for ever.
async fn echo(env: Env, at: Address) {
    let mut listener = env.listen(at).await.unwrap();
    while let Some(mut connection) = listener.accept().await {
        spawn_local(async move {
            while let Some(frame) = connection.receiver.recv().await {
                if connection.sender.send(frame).is_err() {
                    return;
                }
            }
        });
    }
}

/// An echo server on machine 2, and a connection to it from machine 1.
async fn echo_world(simulation: &Simulation) -> (SimProcess, Connection) {
    let (client, server) = (simulation.machine(1), simulation.machine(2));
    let at = server.address(7);
    let process = simulation.spawn_process(&server, "echo", |env| echo(env, at.clone()));
    sleep(SECOND / 10).await;
    let connection = client.env().connect(at).await.unwrap();
    (process, connection)
}

async fn answer(connection: &mut Connection, head: &str) -> Option<Bytes> {
    connection.sender.send(text(head)).ok()?;
    connection.receiver.recv().await.map(|frame| frame.head)
}

#[test]
fn frames_arrive_in_order_and_take_time() {
    run(1, async |simulation| {
        let (_server, mut connection) = echo_world(&simulation).await;
        let begin = simulation.elapsed();
        for number in 0..1000 {
            connection.sender.send(text(number.to_string())).unwrap();
        }
        for number in 0..1000 {
            assert_eq!(connection.receiver.recv().await.unwrap().head, number.to_string());
        }
        assert!(simulation.elapsed() > begin && simulation.elapsed() < begin + SECOND);
    });
}

/// Everything at once: several servers, faults, disks.
fn eventful(seed: u64) -> (u64, Vec<String>) {
    run(seed, async |simulation| {
        let seen = Rc::new(RefCell::new(Vec::new()));
        for number in 1..=3 {
            let machine = simulation.machine(number);
            machine.add_disk("/disk", 1 << 20);
            let at = machine.address(7);
            simulation.spawn_process(&machine, "echo", |env| echo(env, at));
        }
        for number in 1..=3 {
            let to = simulation.machine(number % 3 + 1).address(7);
            let seen = seen.clone();
            simulation.spawn_process(&simulation.machine(number), "talk", |env| async move {
                let folder = env.folder("/disk".as_ref()).unwrap();
                let file = folder.open("log", OpenMode::Create).unwrap();
                for round in 0.. {
                    let Ok(mut connection) = env.connect(to.clone()).await else { continue };
                    let head = format!("{number} {round} {}", env.random_below(100));
                    let answer = answer(&mut connection, &head).await;
                    file.write_at(&[head.as_bytes()], round * 50).unwrap();
                    let _ = file.sync_data().await;
                    seen.borrow_mut().push(format!("{answer:?} {:?}", env.now()));
                }
            });
        }
        for round in 0..20 {
            sleep(Duration::from_millis(simulation.random_below(500))).await;
            match round % 5 {
                0 => simulation.partition(1, 2),
                1 => simulation.reset_connections(2, 3),
                2 => simulation.machine(3).power_cut(),
                3 => simulation.machine(3).power_on(),
                _ => simulation.heal_all(),
            }
        }
        let seen = seen.take();
        (simulation.trace(), seen)
    })
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 1..5 {
        let (first, second) = (eventful(seed), eventful(seed));
        assert!(!first.1.is_empty());
        assert_eq!(first, second);
        assert_ne!(first.0, eventful(seed + 100).0);
    }
}

#[test]
fn a_killed_process_says_nothing_more_and_its_peer_sees_the_end() {
    run(3, async |simulation| {
        let (server, mut connection) = echo_world(&simulation).await;
        assert_eq!(answer(&mut connection, "before").await.unwrap(), "before");
        server.kill();
        assert!(!server.is_alive());
        server.ended().await;
        assert_eq!(answer(&mut connection, "after").await, None);
        sleep(SECOND).await;
        assert!(connection.sender.send(text("")).is_err());
        let refused = simulation.machine(1).env().connect(simulation.machine(2).address(7)).await;
        assert_eq!(refused.err().unwrap().kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

/// Destructors run at a kill, whatever refers to whatever, and reach nothing.
#[test]
fn a_kill_drops_all_tasks_and_their_last_words() {
    struct LastWords(Rc<Cell<u32>>, Option<Connection>, Rc<RefCell<Option<Rc<LastWords>>>>);
    impl Drop for LastWords {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
            if let Some(connection) = &self.1 {
                assert!(connection.sender.send(text("last words")).is_err());
            }
        }
    }
    run(4, async |simulation| {
        let (_server, _) = echo_world(&simulation).await;
        let dropped = Rc::new(Cell::new(0));
        let counter = dropped.clone();
        let at = simulation.machine(2).address(7);
        let process = simulation.spawn_process(&simulation.machine(3), "talk", |env| async move {
            for _ in 0..3 {
                let connection = env.connect(at.clone()).await.unwrap();
                let held = LastWords(counter.clone(), Some(connection), Rc::default());
                spawn_local(async move {
                    let _held = held;
                    std::future::pending::<()>().await;
                });
            }
            let cycle = Rc::new(LastWords(counter, None, Rc::default()));
            *cycle.2.borrow_mut() = Some(cycle.clone());
            std::future::pending::<()>().await;
        });
        sleep(SECOND).await;
        process.kill();
        assert_eq!(dropped.get(), 3);
    });
}

#[test]
fn a_paused_process_does_nothing_and_goes_on_where_it_was() {
    run(5, async |simulation| {
        let (server, mut connection) = echo_world(&simulation).await;
        server.pause();
        connection.sender.send(text("hello")).unwrap();
        let silence = tokio::time::timeout(60 * SECOND, connection.receiver.recv()).await;
        assert!(silence.is_err(), "a paused process neither answers nor closes");
        // Its kernel still accepts.
        let mut second =
            simulation.machine(1).env().connect(simulation.machine(2).address(7)).await.unwrap();
        server.resume();
        assert_eq!(connection.receiver.recv().await.unwrap().head, "hello");
        assert_eq!(answer(&mut second, "there").await.unwrap(), "there");
    });
}

#[test]
fn a_process_ends_with_its_main_and_says_all_it_had_to_say() {
    run(6, async |simulation| {
        let at = simulation.machine(2).address(9);
        let listening = at.clone();
        let process = simulation.spawn_process(&simulation.machine(2), "short", |env| async move {
            let mut listener = env.listen(listening).await.unwrap();
            let connection = listener.accept().await.unwrap();
            for number in 0..50 {
                connection.sender.send(text(number.to_string())).unwrap();
            }
            spawn_local(std::future::pending::<()>());
        });
        sleep(SECOND).await;
        let mut connection = simulation.machine(1).env().connect(at).await.unwrap();
        process.ended().await;
        for number in 0..50 {
            assert_eq!(connection.receiver.recv().await.unwrap().head, number.to_string());
        }
        assert!(connection.receiver.recv().await.is_none());
    });
}

#[test]
fn a_partition_has_a_direction_and_an_end() {
    run(7, async |simulation| {
        let (_server, mut connection) = echo_world(&simulation).await;
        simulation.partition(2, 1);
        connection.sender.send(text("heard")).unwrap();
        sleep(5 * SECOND).await;
        assert_eq!(connection.sender.queued_bytes(), 0, "the way there is open");
        let other = simulation.machine(1).env().connect(simulation.machine(2).address(7)).await;
        assert_eq!(other.err().unwrap().kind(), std::io::ErrorKind::TimedOut);
        simulation.heal(2, 1);
        assert_eq!(connection.receiver.recv().await.unwrap().head, "heard");
        // Held for too long, the sender gives up; the other side learns it after the end.
        simulation.partition(1, 2);
        connection.sender.send(text("lost")).unwrap();
        assert!(connection.receiver.recv().await.is_none());
        assert!(connection.sender.send(text("more")).is_err());
    });
}

#[test]
fn a_black_hole_tells_nobody() {
    run(8, async |simulation| {
        let (_server, mut connection) = echo_world(&simulation).await;
        simulation.black_hole(1, 2);
        connection.sender.send(text("held")).unwrap();
        let silence = tokio::time::timeout(600 * SECOND, connection.receiver.recv()).await;
        assert!(silence.is_err());
        simulation.heal_all();
        assert_eq!(connection.receiver.recv().await.unwrap().head, "held");
        simulation.reset_connections(2, 1);
        assert!(connection.receiver.recv().await.is_none());
    });
}

#[test]
fn an_unread_connection_holds_the_sender_back() {
    run(9, async |simulation| {
        let (server, mut connection) = echo_world(&simulation).await;
        server.pause();
        for number in 0..1000 {
            connection.sender.send(text(format!("{number:03}"))).unwrap();
        }
        sleep(SECOND).await;
        // The channel holds 256, and one frame is with the pump.
        assert_eq!(connection.sender.queued_bytes(), (1000 - 257) * 3);
        server.resume();
        for number in 0..1000 {
            let head = connection.receiver.recv().await.unwrap().head;
            assert_eq!(head, format!("{number:03}"));
        }
    });
}

#[test]
fn a_machine_without_power_is_silent_until_it_is_back() {
    run(10, async |simulation| {
        let (server, mut connection) = echo_world(&simulation).await;
        let machine = simulation.machine(2);
        machine.power_cut();
        assert!(!server.is_alive() && !machine.is_up());
        let env = simulation.machine(1).env();
        let error = env.connect(machine.address(7)).await.err().unwrap();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
        connection.sender.send(text("anyone")).unwrap();
        let silence = tokio::time::timeout(5 * SECOND, connection.receiver.recv()).await;
        assert!(silence.is_err());
        machine.power_on();
        // Back, it knows nothing of the connection and says so.
        assert!(connection.receiver.recv().await.is_none());
        let error = env.connect(machine.address(7)).await.err().unwrap();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn clocks_drift_and_jump() {
    run(11, async |simulation| {
        let machine = simulation.machine(1);
        let env = machine.env();
        let (before, wall) = (env.now(), env.wall_time());
        sleep(1000 * SECOND).await;
        assert_eq!(env.now() - before, 1000 * SECOND);
        machine.set_drift(20_000_000);
        machine.jump_wall_time(-5000);
        let before = env.now();
        sleep(1000 * SECOND).await;
        assert_eq!(env.now() - before, 1020 * SECOND);
        assert_eq!(env.wall_time().seconds - wall.seconds, 2000 - 5000);
    });
}

#[test]
#[should_panic(expected = "panic")]
fn a_panic_in_a_task_of_a_process_ends_the_simulation() {
    run(12, async |simulation| {
        simulation.spawn_process(&simulation.machine(1), "bad", |_| async {
            spawn_local(async { panic!("an invariant of the role") });
            std::future::pending::<()>().await;
        });
        sleep(SECOND).await;
    });
}

// Disks.

struct DiskWorld {
    machine: SimMachine,
    disk: SimDisk,
    folder: crate::Folder,
}

impl DiskWorld {
    fn new(simulation: &Simulation) -> Self {
        let machine = simulation.machine(1);
        let disk = machine.add_disk("/disk", 64 << 20);
        let folder = machine.env().folder("/disk".as_ref()).unwrap();
        Self { machine, disk, folder }
    }

    fn power_cut(&self) {
        self.machine.power_cut();
        self.machine.power_on();
    }
}

/// Runs `body` with many seeds and gathers what it saw.
fn outcomes<T: Ord>(body: impl AsyncFn(&Simulation, DiskWorld) -> T) -> Vec<T> {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        seen.insert(run(seed, async |simulation| {
            let world = DiskWorld::new(&simulation);
            body(&simulation, world).await
        }));
    }
    seen.into_iter().collect()
}

#[test]
fn a_kill_keeps_all_and_a_power_cut_what_was_synced() {
    let seen = outcomes(async |simulation, world| {
        let process = simulation.spawn_process(&world.machine, "writer", |env| async move {
            let folder = env.folder("/disk".as_ref()).unwrap();
            let file = folder.open("file", OpenMode::CreateNew).unwrap();
            file.write_at(&[b"synced"], 0).unwrap();
            file.sync_data().await.unwrap();
            folder.sync_folder("").await.unwrap();
            file.write_at(&[b"UNSYNC"], 0).unwrap();
            std::future::pending::<()>().await;
        });
        sleep(SECOND).await;
        process.kill();
        assert_eq!(world.folder.read_file("file").unwrap(), b"UNSYNC");
        world.power_cut();
        world.folder.read_file("file").unwrap()
    });
    assert_eq!(seen, [b"UNSYNC", b"synced"]);
}

#[test]
fn names_that_were_not_synced_may_be_gone() {
    let seen = outcomes(async |_, world| {
        world.folder.open("first", OpenMode::Create).unwrap();
        world.folder.sync_folder("").await.unwrap();
        world.folder.open("second", OpenMode::Create).unwrap();
        world.folder.rename("first", "third").unwrap();
        world.power_cut();
        world.folder.list("").unwrap().join(" ")
    });
    assert_eq!(seen, ["first", "first second", "second third", "third"]);
}

#[test]
fn a_replaced_file_is_the_old_or_the_new_one() {
    let seen = outcomes(async |simulation, world| {
        world.folder.create_folder("a").unwrap();
        world.folder.replace_file("a/file", b"old").await.unwrap();
        let folder = world.folder.clone();
        let replace = spawn_local(async move { folder.replace_file("a/file", b"newer").await });
        sleep(Duration::from_millis(simulation.random_below(16))).await;
        world.power_cut();
        let is_done = replace.is_finished();
        let content = world.folder.read_file("a/file").unwrap();
        assert!(!is_done || content == b"newer");
        content
    });
    assert_eq!(seen, [&b"newer"[..], b"old"]);
}

#[test]
fn pages_come_through_each_on_its_own_and_may_be_torn() {
    let seen = outcomes(async |_, world| {
        let file = world.folder.open("file", OpenMode::Create).unwrap();
        world.folder.sync_folder("").await.unwrap();
        file.write_at(&[&[1; 8192]], 0).unwrap();
        file.sync_data().await.unwrap();
        file.write_at(&[&[2; 8192]], 0).unwrap();
        world.power_cut();
        let bytes = world.folder.read_file("file").unwrap();
        assert_eq!(bytes.len(), 8192);
        assert!(bytes.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
        bytes.chunks(512).map(|sector| sector[0]).collect::<Vec<_>>()
    });
    assert!(seen.contains(&vec![1; 16]) && seen.contains(&vec![2; 16]));
    assert!(seen.contains(&[[1; 8], [2; 8]].concat()) && seen.len() > 10);
}

#[test]
fn a_cut_is_done_with_its_length_or_not_at_all() {
    let seen = outcomes(async |_, world| {
        let file = world.folder.open("file", OpenMode::Create).unwrap();
        file.write_at(&[&[1; 10_000]], 0).unwrap();
        world.folder.sync_all().await.unwrap();
        file.set_length(5_000).unwrap();
        file.set_length(10_000).unwrap();
        world.power_cut();
        let bytes = world.folder.read_file("file").unwrap();
        assert!(bytes[..5_000].iter().all(|byte| *byte == 1));
        (bytes.len(), bytes.get(5_000).copied(), bytes.get(9_999).copied())
    });
    let expect = [(5_000, None, None), (10_000, Some(0), Some(0)), (10_000, Some(1), Some(1))];
    assert_eq!(seen, expect);
}

#[test]
fn a_failed_sync_loses_for_good_what_it_did_not_save() {
    let seen = outcomes(async |_, world| {
        let file = world.folder.open("file", OpenMode::Create).unwrap();
        file.write_at(&[b"old"], 0).unwrap();
        world.folder.sync_all().await.unwrap();
        file.write_at(&[b"new"], 0).unwrap();
        world.disk.fail_syncs(1);
        assert!(file.sync_data().await.is_err());
        file.sync_data().await.unwrap();
        assert_eq!(world.folder.read_file("file").unwrap(), b"new");
        world.power_cut();
        world.folder.read_file("file").unwrap()
    });
    assert_eq!(seen, [b"old"]);
}

#[test]
fn what_is_written_during_a_sync_is_not_saved_by_it() {
    let seen = outcomes(async |_, world| {
        let file = world.folder.open("file", OpenMode::Create).unwrap();
        world.folder.sync_folder("").await.unwrap();
        file.write_at(&[b"one"], 0).unwrap();
        let sync = file.sync_data();
        file.write_at(&[b"two"], 0).unwrap();
        sync.await.unwrap();
        world.power_cut();
        world.folder.read_file("file").unwrap()
    });
    assert_eq!(seen, [b"one", b"two"]);
}

#[test]
fn disks_fill_rot_and_vanish() {
    run(20, async |simulation| {
        let world = DiskWorld::new(&simulation);
        let file = world.folder.open("a", OpenMode::Create).unwrap();
        file.write_at(&[&[0x55; 3 << 20]], 0).unwrap();
        world.disk.set_size(4 << 20);
        let error = file.write_at(&[&[0x55; 2 << 20]], 3 << 20).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        assert_eq!(file.length().unwrap(), 4 << 20);
        assert_eq!(world.folder.space().unwrap().free, 0);
        file.punch(4096, 1 << 20).unwrap();
        assert_eq!(world.folder.space().unwrap().free, 1 << 20);
        assert_eq!(&file.read(4095, 2).await.unwrap()[..], [0x55, 0]);
        let (path, at) = world.disk.flip_random_bit("").unwrap();
        let byte = world.folder.read_file(&path).unwrap()[usize::try_from(at).unwrap()];
        assert_eq!((byte ^ 0x55).count_ones(), 1);
        world.disk.set_gone(true);
        assert!(file.read_at(&mut [0], 0).is_err() && file.sync_data().await.is_err());
        assert!(world.folder.open("b", OpenMode::Create).is_err());
    });
}

#[test]
fn a_folder_has_one_holder_at_a_time() {
    run(21, async |simulation| {
        let world = DiskWorld::new(&simulation);
        let take = |env: Env| async move {
            let folder = env.folder("/disk".as_ref()).unwrap();
            assert!(folder.take_exclusively().unwrap());
            std::future::pending::<()>().await;
        };
        let first = simulation.spawn_process(&world.machine, "first", take);
        sleep(SECOND).await;
        assert!(!world.folder.take_exclusively().unwrap());
        first.kill();
        assert!(world.folder.take_exclusively().unwrap());
        assert!(world.machine.env().folder("/other".as_ref()).is_err());
        assert!(world.folder.open("../x", OpenMode::Create).is_err());
    });
}

/// Holds frames that end with `h` under number 1, loses those that end with `x`.
fn watch_ends(simulation: &Simulation, seen: &Rc<Cell<u32>>) {
    let seen = seen.clone();
    simulation.watch_frames(move |frame| {
        seen.set(seen.get() + 1);
        match (frame.to, frame.head.last()) {
            ((2, "echo"), Some(b'h')) => Passage::Hold(1),
            (_, Some(b'x')) => Passage::Lose,
            _ => Passage::Pass,
        }
    });
}

#[test]
fn a_held_frame_keeps_its_direction_waiting_and_outlives_its_sender() {
    run(5, async |simulation| {
        let (_server, mut connection) = echo_world(&simulation).await;
        let seen = Rc::new(Cell::new(0));
        watch_ends(&simulation, &seen);
        assert_eq!(answer(&mut connection, "a").await.unwrap(), "a");
        connection.sender.send(text("h")).unwrap();
        connection.sender.send(text("b")).unwrap();
        sleep(100 * SECOND).await;
        assert_eq!(seen.get(), 3, "a, its answer, and the held frame, once");
        simulation.release_frames(2);
        sleep(SECOND).await;
        assert_eq!(seen.get(), 3);
        simulation.release_frames(1);
        assert_eq!(connection.receiver.recv().await.unwrap().head, "h");
        assert_eq!(connection.receiver.recv().await.unwrap().head, "b");

        let (told, heard) = (Rc::new(RefCell::new(Vec::new())), simulation.machine(2).address(8));
        let (tell, to) = (told.clone(), heard.clone());
        let hear = |env: Env| async move {
            let mut connection = env.listen(heard).await.unwrap().accept().await.unwrap();
            while let Some(frame) = connection.receiver.recv().await {
                tell.borrow_mut().push(frame.head);
            }
            std::future::pending::<()>().await;
        };
        let talk = |env: Env| async move {
            let connection = env.connect(to).await.unwrap();
            connection.sender.send(text("h")).unwrap();
            std::future::pending::<()>().await;
        };
        simulation.spawn_process(&simulation.machine(2), "echo", hear);
        let talker = simulation.spawn_process(&simulation.machine(3), "talk", talk);
        sleep(SECOND).await;
        talker.kill();
        sleep(SECOND).await;
        assert!(told.borrow().is_empty());
        simulation.release_frames(1);
        sleep(SECOND).await;
        assert_eq!(*told.borrow(), ["h"]);
    });
}

#[test]
fn a_lost_frame_breaks_its_connection() {
    run(6, async |simulation| {
        let (_server, mut connection) = echo_world(&simulation).await;
        watch_ends(&simulation, &Rc::default());
        assert_eq!(answer(&mut connection, "x").await, None);
        assert!(connection.sender.send(text("a")).is_err());
        let mut again =
            simulation.machine(1).env().connect(simulation.machine(2).address(7)).await.unwrap();
        assert_eq!(answer(&mut again, "a").await.unwrap(), "a");
    });
}

#[test]
fn an_unlucky_disk_keeps_nothing_that_was_not_synced() {
    for seed in 0..20 {
        run(seed, async |simulation| {
            let world = DiskWorld::new(&simulation);
            simulation.machine(1).disk("/disk").unwrap().set_unlucky(true);
            let env = simulation.machine(1).env();
            let folder = env.folder("/disk".as_ref()).unwrap();
            let file = folder.open("file", OpenMode::Create).unwrap();
            folder.sync_folder("").await.unwrap();
            file.write_at(&[&[7; 9000]], 0).unwrap();
            drop((file, folder));
            world.power_cut();
            let bytes = simulation.machine(1).disk("/disk").unwrap().content("file");
            assert_eq!(bytes, Some(Vec::new()), "seed {seed}");
        });
    }
}
