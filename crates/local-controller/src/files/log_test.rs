use super::*;

const DEVICE: DeviceId = DeviceId(727);

/// A device as the group would keep it.
#[derive(Clone, Default)]
pub(in crate::files) struct Device {
    pub bytes: Vec<u8>,
}

impl Device {
    pub fn write(&mut self, write: &LogWrite) {
        let at = usize::try_from(write.at).unwrap();
        assert_eq!(at % BLOCK_SIZE, 0);
        let end = at + write.bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[at..end].copy_from_slice(&write.bytes);
    }

    pub fn punch(&mut self, switch: &Switch) {
        let at = usize::try_from(switch.punch_at).unwrap();
        let end = at + usize::try_from(switch.punch_length).unwrap();
        let end = end.min(self.bytes.len());
        self.bytes[at..end].fill(0);
    }

    /// Records up to the end or to the damage.
    fn replay(&self) -> (Vec<Record>, Result<Log, Damage>) {
        self.replay_as(DEVICE, LogRole::Names)
    }

    pub fn replay_as(&self, device: DeviceId, role: LogRole) -> (Vec<Record>, Result<Log, Damage>) {
        let mut replay = Replay::new(device, role, self.bytes.len() as u64);
        let mut records = Vec::new();
        loop {
            match replay.next() {
                Ok(Step::Read { at, length }) => {
                    let at = usize::try_from(at).unwrap();
                    let end = at + usize::try_from(length).unwrap();
                    let middle = usize::midpoint(at, end);
                    replay.feed([&self.bytes[at..middle], &self.bytes[middle..end]]);
                }
                Ok(Step::Record(record)) => records.push(record),
                Ok(Step::End(log)) => return (records, Ok(*log)),
                Err(damage) => return (records, Err(damage)),
            }
        }
    }
}

fn record(number: usize, size: usize) -> Record {
    Record { kind: 1 + (number % 7) as u8, body: vec![number as u8; size] }
}

/// A log with `count` records of sizes from 0 to some thousand, appended in batches of 3.
fn written(count: usize) -> (Device, Log, Vec<Record>) {
    let (mut log, root) = Log::create(DEVICE, LogRole::Names);
    let mut device = Device::default();
    device.write(&root);
    let records: Vec<_> = (0..count).map(|n| record(n, n * 379 % 5000)).collect();
    for batch in records.chunks(3) {
        device.write(&log.append(batch));
    }
    (device, log, records)
}

#[test] // Proves: N-3.
fn what_was_appended_is_replayed_and_goes_on() {
    let (mut device, log, mut records) = written(40);
    let (found, end) = device.replay();
    assert_eq!(found, records);
    let mut end = end.unwrap();
    assert_eq!(end.tail, log.tail);
    assert_eq!((end.end, end.sequence, end.chain), (log.end, log.sequence, log.chain));
    records.push(record(99, 10));
    device.write(&end.append(&records[40..]));
    assert_eq!(device.replay().0, records);
}

#[test] // Proves: N-3.
fn a_cut_device_gives_a_prefix_and_says_so() {
    let (device, _, records) = written(12);
    let mut ends = Vec::new();
    for length in 0..device.bytes.len() {
        let cut = Device { bytes: device.bytes[..length].to_vec() };
        let (found, end) = cut.replay();
        assert_eq!(found, records[..found.len()]);
        if end.is_ok() {
            ends.push(found.len());
        }
    }
    // Only between records is it an end; everywhere else it is damage.
    assert_eq!(ends, (0..12).collect::<Vec<_>>());
}

#[test] // Proves: N-3.
fn flipped_bits_are_damage_and_never_panic() {
    let (device, _, records) = written(6);
    for place in 0..device.bytes.len() {
        let mut bad = device.clone();
        bad.bytes[place] ^= 1 << (place % 8);
        let (found, end) = bad.replay();
        assert_eq!(found, records[..found.len()]);
        // Slot B was never written, and bits of it mean nothing.
        assert_eq!(end.is_ok(), (BLOCK_SIZE..2 * BLOCK_SIZE).contains(&place), "byte {place}");
    }
}

#[test] // Proves: N-3. Story: hole 29, the old log must be there until the switch is.
fn a_checkpoint_can_stop_between_any_two_writes() {
    let (mut device, mut log, records) = written(9);
    let state = [record(100, 700), record(101, 5000)];
    let later: Vec<_> = (200..206).map(|n| record(n, 300)).collect();

    let check = |device: &Device, expect: &[&[Record]]| {
        let (found, end) = device.replay();
        assert_eq!(found, expect.concat());
        let mut end = end.unwrap();
        // Whoever takes over here goes on, with records and with a checkpoint of its own.
        let mut device = device.clone();
        let more = record(250, 44);
        device.write(&end.append([&more]));
        let (found, _) = device.replay();
        assert_eq!(found, [expect.concat(), vec![more.clone()]].concat());
        let checkpoint = end.begin_checkpoint([&more]);
        device.write(&checkpoint.jump);
        device.write(&checkpoint.body);
        let switch = end.switch(&checkpoint);
        device.write(&switch.root);
        device.punch(&switch);
        assert_eq!(device.replay().0, [more]);
    };

    let checkpoint = log.begin_checkpoint(&state);
    device.write(&checkpoint.jump);
    check(&device, &[&records]);
    device.write(&log.append(&later[..2]));
    check(&device, &[&records, &later[..2]]);
    let half = LogWrite { at: checkpoint.body.at, bytes: checkpoint.body.bytes.slice(..4096) };
    device.write(&half);
    check(&device, &[&records, &later[..2]]);
    device.write(&checkpoint.body);
    device.write(&log.append(&later[2..4]));
    check(&device, &[&records, &later[..4]]);
    let switch = log.switch(&checkpoint);
    device.write(&switch.root);
    check(&device, &[&state, &later[..4]]);
    device.punch(&switch);
    check(&device, &[&state, &later[..4]]);
    device.write(&log.append(&later[4..]));
    check(&device, &[&state, &later]);
}

#[test] // Proves: N-3.
fn a_checkpoint_without_later_records_is_an_end() {
    let (mut device, mut log, _) = written(3);
    let checkpoint = log.begin_checkpoint(&[]);
    device.write(&checkpoint.jump);
    assert!(device.replay().1.is_ok());
    let switch = log.switch(&checkpoint);
    device.write(&switch.root);
    device.punch(&switch);
    let (found, end) = device.replay();
    assert_eq!((found.len(), end.unwrap().end), (0, log.end));
}

#[test]
fn random_bytes_are_refused() {
    let mut random = 88_172_645_463_325_252u64;
    for round in 0..200 {
        let mut device = written(2).0;
        for _ in 0..=round % 5 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let place = (random % device.bytes.len() as u64) as usize;
            let end = (place + (random >> 40) as usize % 300).min(device.bytes.len());
            device.bytes[place..end].fill((random >> 32) as u8);
        }
        let _ = device.replay();
    }
}

#[test]
fn growth_asks_for_a_checkpoint() {
    let (_, mut log, _) = written(3);
    assert!(!log.wants_checkpoint(0));
    for _ in 0..5 {
        log.append([&record(1, 250_000)]);
    }
    assert!(log.wants_checkpoint(1000));
    assert!(!log.wants_checkpoint(300_000));
    log.begin_checkpoint(&[]);
    assert!(!log.wants_checkpoint(0));
}

/// A log of before format 2 says so in its root until the first record that is new in it.
#[test] // Proves: S-6.
fn a_log_of_format_1_is_read_and_upgraded_with_the_first_new_record() {
    let (mut device, mut log, records) = written(20);
    log.root.format = 1;
    device.write(&log.root.write(DEVICE, LogRole::Names));
    let (found, end) = device.replay();
    let mut log = end.unwrap();
    assert_eq!((found, log.root.format), (records, 1));
    // One write of the group, so both are there or neither.
    device.write(&log.upgrade().expect("it is of format 1"));
    device.write(&log.append([&record(20, 50)]));
    assert_eq!(log.upgrade(), None);
    let (found, end) = device.replay();
    assert_eq!((found.len(), end.unwrap()), (21, log.clone()));
    for format in [0, 3] {
        let mut device = device.clone();
        log.root.format = format;
        device.write(&log.root.write(DEVICE, LogRole::Names));
        assert_eq!(device.replay().1.unwrap_err(), Damage::Root, "format {format}");
    }
}
