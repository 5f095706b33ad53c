use std::time::Duration;

use super::*;
use crate::{Frame, OpenMode};
use bytes::Bytes;

fn run<F: Future>(future: F) -> F::Output {
    super::run(future).unwrap()
}

#[test]
#[should_panic(expected = "panic")]
fn a_panic_of_a_task_is_not_swallowed() {
    run(async {
        tokio::task::spawn_local(async { panic!("an invariant of the role") });
        std::future::pending::<()>().await;
    });
}

fn frame(head: &'static [u8], payload: Vec<u8>) -> Frame {
    Frame { head: Bytes::from_static(head), payload: Bytes::from(payload).into() }
}

fn loopback() -> Address {
    Address::Tcp("127.0.0.1:0".parse().unwrap())
}

async fn check_frames_arrive(at: Address) {
    let env = env(Inherited::new());
    let mut listener = env.listen(at).await.unwrap();
    let mut client = env.connect(listener.address.clone()).await.unwrap();
    let mut server = listener.accept().await.unwrap();
    let sizes = [0, 1, 100, 5_000, 16_384, 65_535, 65_536, 1 << 20, 3, (4 << 20) + 7, 0];
    for (index, size) in sizes.into_iter().enumerate() {
        let payload: Vec<u8> = (0..size).map(|at| (at * 31 + index) as u8).collect();
        client.sender.send(frame(b"to the server", payload)).unwrap();
    }
    for (index, size) in sizes.into_iter().enumerate() {
        let got = server.receiver.recv().await.unwrap();
        assert_eq!(&got.head[..], b"to the server");
        let payload = got.payload.into_bytes();
        assert_eq!(payload.len(), size);
        assert!(payload.iter().enumerate().all(|(at, byte)| *byte == (at * 31 + index) as u8));
    }
    // Several pieces, a long head, and what was sent before the sender went away.
    let mut answer = frame(b"", vec![1; 20_000]);
    answer.head = vec![7; 100_000].into();
    answer.payload.push(vec![2; 30_000].into());
    server.sender.send(answer).unwrap();
    drop(server.sender);
    let got = client.receiver.recv().await.unwrap();
    assert_eq!((got.head.len(), got.payload.len()), (100_000, 50_000));
    assert!(client.receiver.recv().await.is_none());
    assert!(server.receiver.recv().await.is_none());
}

#[test]
fn frames_arrive_over_tcp() {
    run(check_frames_arrive(loopback()));
}

#[test]
fn frames_arrive_over_a_unix_socket_and_a_stale_one_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let at = Address::Unix(folder.path().join("socket"));
    run(check_frames_arrive(at.clone()));
    run(check_frames_arrive(at));
}

#[test]
fn a_file_where_a_socket_should_be_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    std::fs::write(&path, "bytes").unwrap();
    run(async {
        assert!(env(Inherited::new()).listen(Address::Unix(path.clone())).await.is_err());
    });
    assert_eq!(std::fs::read(&path).unwrap(), b"bytes");
}

#[test]
fn an_inherited_socket_is_taken_over() {
    let bound = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = Address::Tcp(bound.local_addr().unwrap());
    run(async {
        let env = env(Inherited::from([(at.clone(), bound.into())]));
        let mut listener = env.listen(at.clone()).await.unwrap();
        let _client = env.connect(at).await.unwrap();
        assert!(listener.accept().await.is_some());
    });
}

#[test]
fn an_accepted_socket_moves_to_another_thread_with_its_first_frame() {
    run(async {
        let mut listener = listen_raw(loopback(), &mut Inherited::new()).unwrap();
        let client = env(Inherited::new()).connect(listener.address.clone()).await.unwrap();
        client.sender.send(frame(b"which thread", vec![1; 9])).unwrap();
        let mut accepted = listener.accept().await;
        assert_eq!(&accepted.peek_head().await.unwrap()[..], b"which thread");
        let descriptor = accepted.into_descriptor().unwrap();
        let other = std::thread::spawn(move || {
            run(async move {
                let mut connection = connection_from_fd(descriptor).unwrap();
                connection.receiver.recv().await.unwrap().head
            })
        });
        assert_eq!(&other.join().unwrap()[..], b"which thread");
    });
}

async fn check_refused(bytes: &[u8]) {
    let env = env(Inherited::new());
    let mut listener = env.listen(loopback()).await.unwrap();
    let Address::Tcp(at) = listener.address else { panic!("it is TCP") };
    let mut socket = tokio::net::TcpStream::connect(at).await.unwrap();
    let mut server = listener.accept().await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut socket, bytes).await.unwrap();
    assert!(server.receiver.recv().await.is_none());
    assert!(server.sender.send(Frame::default()).is_err());
}

fn header(magic: &[u8], head: u32, payload: u32, crc: u32) -> Vec<u8> {
    let numbers = [head, payload, crc].map(u32::to_le_bytes).concat();
    [magic, &numbers].concat()
}

#[test]
fn what_is_no_frame_closes_the_connection() {
    run(async {
        check_refused(b"GET / HTTP/1.1\r\n\r\n").await;
        check_refused(&header(b"BRD1", (4 << 20) + 1, 0, 0)).await;
        check_refused(&header(b"BRD1", 0, (16 << 20) + 1, 0)).await;
        check_refused(&[header(b"BRD1", 4, 0, 1), b"head".to_vec()].concat()).await;
    });
}

#[test]
fn a_peer_killed_within_a_frame_ends_the_connection() {
    run(async {
        let env = env(Inherited::new());
        let mut listener = env.listen(loopback()).await.unwrap();
        let Address::Tcp(at) = listener.address else { panic!("it is TCP") };
        let mut socket = tokio::net::TcpStream::connect(at).await.unwrap();
        let mut server = listener.accept().await.unwrap();
        let crc = crc_fast::crc32_iscsi(b"head");
        let bytes = [header(b"BRD1", 4, 1 << 20, crc), b"head".to_vec(), vec![0; 99_999]].concat();
        tokio::io::AsyncWriteExt::write_all(&mut socket, &bytes).await.unwrap();
        drop(socket);
        assert!(server.receiver.recv().await.is_none());
    });
}

#[test]
fn an_unread_connection_holds_the_other_side_back() {
    run(async {
        let env = env(Inherited::new());
        let mut listener = env.listen(loopback()).await.unwrap();
        let client = env.connect(listener.address.clone()).await.unwrap();
        let mut server = listener.accept().await.unwrap();
        let total = 600;
        for _ in 0..total {
            client.sender.send(frame(b"", vec![0; 256 << 10])).unwrap();
        }
        let mut before = usize::MAX;
        while client.sender.queued_bytes() < before {
            before = client.sender.queued_bytes();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(before > 0, "the receiver took all without being read");
        for _ in 0..total {
            server.receiver.recv().await.unwrap();
        }
        assert_eq!(client.sender.queued_bytes(), 0);
    });
}

#[test]
fn close_ends_both_sides() {
    run(async {
        let env = env(Inherited::new());
        let mut listener = env.listen(loopback()).await.unwrap();
        let mut client = env.connect(listener.address.clone()).await.unwrap();
        let mut server = listener.accept().await.unwrap();
        client.sender.close();
        assert!(client.receiver.recv().await.is_none());
        assert!(server.receiver.recv().await.is_none());
        assert!(client.sender.send(Frame::default()).is_err());
        drop(listener);
    });
}

#[test]
fn files_keep_what_is_written() {
    let place = tempfile::tempdir().unwrap();
    run(async {
        let folder = env(Inherited::new()).folder(place.path()).unwrap();
        folder.create_folder("a/b").unwrap();
        folder.create_folder("a/b").unwrap();
        let file = folder.open("a/b/file", OpenMode::CreateNew).unwrap();
        assert!(folder.open("a/b/file", OpenMode::CreateNew).is_err());
        let pieces: Vec<&[u8]> = (0..3000).map(|_| &b"piece"[..]).collect();
        file.write_at(&[], 0).unwrap();
        file.write_at(&[b"", b""], 0).unwrap();
        file.write_at(&pieces, 10).unwrap();
        assert_eq!(file.length().unwrap(), 15_010);
        file.start_writeback(0, 15_010);
        file.sync_data().await.unwrap();
        assert_eq!(&file.read(10, 7).await.unwrap()[..], b"piecepi");
        assert_eq!(file.read(15_000, 100).await.unwrap().len(), 10);
        assert_eq!(file.read(99_000, 100).await.unwrap().len(), 0);
        let mut buffer = [1; 20];
        assert_eq!(file.read_at(&mut buffer, 15_000).unwrap(), 10);
        file.punch(10, 15_000).unwrap();
        assert!(file.read(0, 20_000).await.unwrap().iter().all(|byte| *byte == 0));
        assert_eq!(file.length().unwrap(), 15_010);
        file.set_length(3).unwrap();
        folder.rename("a/b/file", "a/other").unwrap();
        folder.sync_folder("a").await.unwrap();
        folder.sync_all().await.unwrap();
        assert_eq!(folder.list("a").unwrap(), ["b", "other"]);
        assert_eq!(folder.list("").unwrap(), ["a"]);
        assert_eq!(folder.length("a/other").unwrap(), Some(3));
        assert_eq!(folder.length("a/none").unwrap(), None);
        folder.replace_file("small", b"content").await.unwrap();
        assert_eq!(folder.read_file("small").unwrap(), b"content");
        folder.remove("small").unwrap();
        let space = folder.space().unwrap();
        assert!(space.free <= space.total && space.total > 0);
    });
}

#[test]
fn paths_do_not_leave_the_folder() {
    let place = tempfile::tempdir().unwrap();
    run(async {
        let folder = env(Inherited::new()).folder(place.path()).unwrap();
        for path in ["..", "a/../../b", "/etc/passwd", ""] {
            assert!(folder.open(path, OpenMode::Read).is_err());
            assert!(folder.remove(path).is_err());
        }
        assert!(env(Inherited::new()).folder(&place.path().join("missing")).is_err());
    });
}

#[test]
fn a_folder_has_one_holder() {
    let place = tempfile::tempdir().unwrap();
    run(async {
        let env = env(Inherited::new());
        let first = env.folder(place.path()).unwrap();
        let second = env.folder(place.path()).unwrap();
        assert!(first.take_exclusively().unwrap());
        assert!(first.take_exclusively().unwrap());
        assert!(!second.take_exclusively().unwrap());
        drop(first);
        assert!(second.take_exclusively().unwrap());
    });
}

#[test]
fn clocks_and_randomness_answer() {
    let env = env(Inherited::new());
    let before = env.now();
    assert!(before.0 > 0 && env.now() >= before);
    assert!(env.wall_time().seconds > 1_600_000_000);
    let numbers: std::collections::BTreeSet<u64> = (0..100).map(|_| env.random()).collect();
    assert_eq!(numbers.len(), 100);
}
