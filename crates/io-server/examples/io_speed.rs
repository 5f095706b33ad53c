//! Speed of one I/O server without its network: `cargo run --release --example io_speed [MIB]`.
//!
//! Arithmetic: a large new run costs one copy into the page cache (about 0.1 ns a byte) and nothing
//! else that touches its bytes; a 4 KiB overwrite costs one write of about 4.3 KiB to the journal.

use std::error::Error;

use braid_env::machine;
use braid_io_server::{DiskIdentity, IoConfig, IoServer, Limits, crc32c, format_disk};
use braid_terms::{
    ClusterId, DeviceId, DiskId, GrantNumber, GroupLayout, Incarnation, JournalPosition,
    LayoutGeneration, PortionIndex, RaidScheme, ServerId, WriteNumber,
};
use braid_wire::io::{
    BlockRange, Change, Create, Fence, IoRequest, Prepare, Read, Record, RecordKind,
};
use bytes::Bytes;

fn main() -> Result<(), Box<dyn Error>> {
    let mebibytes = std::env::args().nth(1).map_or(Ok(256), |text| text.parse())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, measure(mebibytes))
}

async fn measure(mebibytes: u64) -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("braid-io-speed-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let env = machine::env(Default::default());
    let identity = DiskIdentity { cluster: ClusterId(1), disk: DiskId(1), identity: 1 };
    format_disk(&env, &folder, identity).await?;
    let config = IoConfig {
        disk: identity.disk,
        folder: folder.clone(),
        cluster: identity.cluster,
        server: ServerId(1),
        listen: Vec::new(),
        coordinators: Vec::new(),
        limits: Limits::default(),
    };
    let server = IoServer::start(&env, &config).await?;
    server.serve_alone(Incarnation(1));
    let maintained = server.clone();
    let task = tokio::task::spawn_local(async move { maintained.maintain().await });

    println!("resident at start  {}", resident()?);
    let run = Bytes::from(vec![7; 256 << 10]);
    let crcs: Vec<u32> = run.chunks(4096).map(crc32c).collect();
    let count = mebibytes * 4;
    let begin = env.now();
    for sequence in 1..=count {
        let change =
            Change::Write { device_index: 0, first: (sequence - 1) * 64, crcs: crcs.clone() };
        let answer = server.handle(prepare(10, sequence, change), run.clone()).await.0;
        answer.map_err(|refusal| format!("{refusal:?}"))?;
    }
    let spent = env.now() - begin;
    let rate = (mebibytes << 20) as f64 / spent.as_secs_f64() / 1e6;
    println!("sequential put     {rate:9.0} MB/s, {mebibytes} MiB in runs of 256 KiB");

    let begin = env.now();
    let position = JournalPosition(u64::MAX);
    let sync = IoRequest::Sync { incarnation: Incarnation(1), position };
    let _ = server.handle(sync, Bytes::new()).await;
    println!("sync afterwards    {:9.1} ms", (env.now() - begin).as_secs_f64() * 1e3);

    let decided = number(count);
    let begin = env.now();
    for at in 0..mebibytes {
        let ranges = vec![BlockRange { device_index: 0, first: at * 256, count: 256 }];
        let read = Read { fence: fence(10), decided, ranges };
        let (answer, _) = server.handle(IoRequest::Read(Box::new(read)), Bytes::new()).await;
        answer.map_err(|refusal| format!("{refusal:?}"))?;
    }
    let spent = env.now() - begin;
    let rate = (mebibytes << 20) as f64 / spent.as_secs_f64() / 1e6;
    println!("sequential read    {rate:9.0} MB/s");

    let block = run.slice(0..4096);
    let begin = env.now();
    let writes = 20_000;
    for sequence in 1..=writes {
        let first = sequence * 7919 % 4096;
        let change = Change::Write { device_index: 0, first, crcs: crcs[..1].to_vec() };
        let answer = server.handle(prepare(11, sequence, change), block.clone()).await.0;
        answer.map_err(|refusal| format!("{refusal:?}"))?;
    }
    let spent = env.now() - begin;
    println!("4 KiB overwrites   {:9.0} a second", writes as f64 / spent.as_secs_f64());

    let begin = env.now();
    let files = 10_000;
    for device in 100..100 + files {
        let change = Change::Write { device_index: 0, first: 0, crcs: crcs[..1].to_vec() };
        let answer = server.handle(prepare(device, 1, change), block.clone()).await.0;
        answer.map_err(|refusal| format!("{refusal:?}"))?;
    }
    let spent = env.now() - begin;
    println!("new 4 KiB files    {:9.0} a second", files as f64 / spent.as_secs_f64());
    println!("resident, 30000 records kept  {}", resident()?);
    task.abort();
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

fn resident() -> Result<String, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or("unknown");
    Ok(line.to_owned())
}

fn number(sequence: u64) -> WriteNumber {
    match sequence {
        0 => WriteNumber::NONE,
        _ => WriteNumber { grant: GrantNumber { term: 1, counter: 1 }, sequence },
    }
}

fn fence(device: u64) -> Fence {
    Fence {
        group: DeviceId(device),
        slot: PortionIndex(1),
        grant: GrantNumber { term: 1, counter: 1 },
        incarnation: Incarnation(1),
    }
}

fn prepare(device: u64, sequence: u64, change: Change) -> IoRequest {
    let layout = GroupLayout {
        devices: vec![DeviceId(device)],
        scheme: RaidScheme::Raid1 { copies: 1 },
        strip_size: 65536,
        generation: LayoutGeneration(1),
        disks: vec![DiskId(1)],
    };
    let create = Create { writer: Incarnation(1), layout, home: DeviceId(9) };
    let record = Record {
        number: number(sequence),
        prev: number(sequence - 1),
        writer: Incarnation(1),
        kind: RecordKind::Write,
        participants: Vec::new(),
        footprints: Vec::new(),
        lengths: vec![4096],
        existing: 1,
        ends: Vec::new(),
        operation: None,
        operations: None,
        changes: vec![change],
    };
    IoRequest::Prepare(Box::new(Prepare {
        fence: fence(device),
        record,
        create: (sequence == 1).then(|| Box::new(create)),
        decided: number(sequence - 1),
        stable: WriteNumber::NONE,
    }))
}
