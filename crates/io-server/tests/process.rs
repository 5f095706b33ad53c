//! Ring 4: the whole process over real sockets, with a coordinator that knows one LCC.
#![allow(clippy::unwrap_used)]

mod common;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use braid_env::{Address, Env, Payload, machine};
use braid_io_server::{IoConfig, IoFatal, run as run_server};
use braid_terms::{ClusterMap, Incarnation, JournalPosition, ServerId, ServerInfo, WriteNumber};
use braid_wire::coordinator::*;
use braid_wire::io::*;
use braid_wire::rpc::{Client, Handler, Hello, HelloReply, Peer, Role, serve};
use bytes::Bytes;
use common::*;

const NONE: WriteNumber = WriteNumber::NONE;
const DEADLINE: Duration = Duration::from_secs(5);

/// Answers what an I/O server asks.
struct FakeCoordinator {
    leader: Cell<Option<SocketAddr>>,
    lccs: RefCell<Vec<Option<Incarnation>>>,
    maps_asked: Cell<u32>,
    renewals: Cell<u32>,
    valid: Cell<bool>,
}

impl FakeCoordinator {
    fn map(&self) -> Box<ClusterMap> {
        let address = "127.0.0.1:1".parse().unwrap();
        let server = ServerInfo {
            id: ServerId(1),
            name: "one".to_owned(),
            lc_address: address,
            coordinator_address: address,
            main_address: address,
            state: Default::default(),
            is_mount: false,
            lc: None,
            lccs: self.lccs.borrow().clone(),
        };
        let servers = [(ServerId(1), server)].into();
        Box::new(ClusterMap { version: 1, servers, ..ClusterMap::default() })
    }
}

impl Handler<Coordinator> for FakeCoordinator {
    type Session = ();

    fn hello(&self, _: &Hello) -> Result<(), HelloReply> {
        Ok(())
    }

    async fn handle(
        self: Rc<Self>,
        _: Rc<()>,
        request: CoordinatorRequest,
        _: Bytes,
    ) -> (Result<CoordinatorReply, CoordinatorRefusal>, Payload) {
        if let Some(leader) = self.leader.get() {
            let leader = Some((ServerId(2), leader));
            return (Err(CoordinatorRefusal::NotLeader { leader }), Payload::empty());
        }
        let reply = match request {
            CoordinatorRequest::RegisterIo { identity: 77, .. } => {
                Ok(CoordinatorReply::Registered {
                    incarnation: Incarnation(4),
                    lccs: Vec::new(),
                    map: self.map(),
                })
            }
            CoordinatorRequest::RenewIo { io: Incarnation(4), bytes_total, .. } => {
                assert!(0 < bytes_total);
                self.renewals.set(self.renewals.get() + 1);
                if self.valid.get() {
                    Ok(CoordinatorReply::Renewed {
                        term: 1,
                        map: None,
                        disks: Vec::new(),
                        servers: Vec::new(),
                        tell_holdings: false,
                        facts_version: 0,
                    })
                } else {
                    Err(CoordinatorRefusal::InvalidIncarnation)
                }
            }
            CoordinatorRequest::Map { linearizable: true } => {
                self.maps_asked.set(self.maps_asked.get() + 1);
                Ok(CoordinatorReply::Map(self.map()))
            }
            other => panic!("{other:?}"),
        };
        (reply, Payload::empty())
    }
}

async fn coordinator(env: &Env, leader: Option<SocketAddr>) -> (SocketAddr, Rc<FakeCoordinator>) {
    let fake = Rc::new(FakeCoordinator {
        leader: Cell::new(leader),
        lccs: RefCell::default(),
        maps_asked: Cell::new(0),
        renewals: Cell::new(0),
        valid: Cell::new(true),
    });
    let listener = env.listen(Address::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
    let Address::Tcp(address) = listener.address else { panic!("not TCP") };
    tokio::task::spawn_local(serve::<Coordinator, _>(listener, fake.clone()));
    (address, fake)
}

#[test] // Proves: O-5.
fn the_process_registers_serves_and_accepts_only_valid_writers() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let env = machine::env(Default::default());
        format(&env, folder.path()).await;
        let (leader_at, leader) = coordinator(&env, None).await;
        let (follower_at, _follower) = coordinator(&env, Some(leader_at)).await;
        let socket = folder.path().join("io.socket");
        let config = IoConfig {
            listen: vec![Address::Unix(socket.clone())],
            coordinators: vec!["127.0.0.1:1".parse().unwrap(), follower_at],
            ..config(folder.path())
        };
        let server = tokio::task::spawn_local(run_server(env.clone(), config));
        let hello = Hello::new(IDENTITY.cluster, Role::Io, 0, Peer::Unknown);
        let client = loop {
            match Client::<Io>::connect(&env, Address::Unix(socket.clone()), hello.clone()).await {
                Ok(client) => break client,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let status = client.call(&IoRequest::Status, Payload::empty(), DEADLINE).await.unwrap().0;
        let Ok(IoReply::Status(status)) = status else { panic!("{status:?}") };
        assert!(0 < status.bytes_total);

        let fence = Fence {
            group: braid_terms::DeviceId(7),
            slot: braid_terms::PortionIndex(1),
            grant: grant(1),
            incarnation: Incarnation(4),
        };
        let open = IoRequest::Open(Box::new(Open {
            fence,
            writer: Incarnation(5),
            layout: layout(7),
            absent: Vec::new(),
        }));
        let refused = client.call(&open, Payload::empty(), DEADLINE).await.unwrap().0;
        assert!(matches!(refused, Err(IoRefusal::Fenced { .. })), "{refused:?}");
        assert_eq!(leader.maps_asked.get(), 1);
        // The LCC registers; its open, its first write and a read leave together and stay in order.
        leader.lccs.replace(vec![Some(Incarnation(5))]);
        let bytes = Bytes::from(blocks(1, 300));
        let record = record(number(1, 1), NONE, vec![write(0, &bytes)]);
        let prepare = IoRequest::Prepare(Box::new(Prepare {
            fence,
            record,
            create: None,
            decided: NONE,
            stable: NONE,
        }));
        let ranges = vec![BlockRange { device_index: 0, first: 0, count: 300 }];
        let read = IoRequest::Read(Box::new(Read { fence, decided: number(1, 1), ranges }));
        let (opened, promised, blocks) = tokio::join!(
            client.call(&open, Payload::empty(), DEADLINE),
            client.call(&prepare, bytes.clone().into(), DEADLINE),
            client.call(&read, Payload::empty(), DEADLINE),
        );
        assert!(matches!(opened.unwrap().0, Ok(IoReply::Report(_))));
        assert!(matches!(promised.unwrap().0, Ok(IoReply::Promised { .. })));
        let (reply, payload) = blocks.unwrap();
        assert!(matches!(reply, Ok(IoReply::Blocks { .. })));
        assert!(payload == bytes, "other bytes came back");
        let sync =
            IoRequest::Sync { incarnation: Incarnation(4), position: JournalPosition(u64::MAX) };
        let synced = client.call(&sync, Payload::empty(), DEADLINE).await.unwrap().0;
        assert!(matches!(synced, Ok(IoReply::Synced { .. })));

        // It renews until it is told that another one is valid.
        leader.valid.set(false);
        assert!(matches!(server.await.unwrap(), Err(IoFatal::Superseded)));
        assert!(0 < leader.renewals.get());
    });
}
