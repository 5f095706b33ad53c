use super::*;

fn bytes(parts: &[(OpId, u64, u64)]) -> Vec<u8> {
    let mut all = Vec::new();
    for (op, from, to) in parts {
        let mut part = vec![0; (to - from) as usize];
        if *op != OpId(0) {
            fill(*op, *from, &mut part);
        }
        all.extend(part);
    }
    all
}

fn made(oracle: &mut Oracle, length: u64) -> OpId {
    let file = oracle.begin_make("/f", Some(length));
    oracle.ended(file);
    file
}

#[test]
fn an_unanswered_write_may_have_happened_until_it_is_seen() {
    let mut oracle = Oracle::default();
    let file = made(&mut oracle, 100);
    let write = oracle.begin_write(file, 10, 20);
    let (old, new) =
        (bytes(&[(file, 0, 100)]), bytes(&[(file, 0, 10), (write, 10, 30), (file, 30, 100)]));
    for found in [&old, &new, &new] {
        let begin = oracle.now();
        oracle.saw_file(file, begin, found).expect("explained");
    }
    let begin = oracle.now();
    assert!(oracle.saw_file(file, begin, &old).is_err(), "it was seen and is gone");
}

#[test]
fn an_answered_write_is_there_and_wholly() {
    let mut oracle = Oracle::default();
    let file = made(&mut oracle, 100);
    let early = oracle.now();
    let one = oracle.begin_write(file, 0, 50);
    let other = oracle.begin_write(file, 25, 50);
    oracle.changed(one);
    oracle.changed(other);
    let begin = oracle.now();
    // In either order, but not a mixture within what both wrote.
    let before = bytes(&[(one, 0, 50), (other, 50, 75), (file, 75, 100)]);
    let after = bytes(&[(one, 0, 25), (other, 25, 75), (file, 75, 100)]);
    let torn = bytes(&[(one, 0, 30), (other, 30, 75), (file, 75, 100)]);
    assert!(oracle.saw_file(file, begin, &torn).is_err());
    assert!(oracle.saw_file(file, begin, &bytes(&[(file, 0, 100)])).is_err());
    // Ranges are decided each by itself, so that a look which began before may find more than one
    // that began behind both.
    oracle.saw_file(file, early, &before).expect("began before both");
    let begin = oracle.now();
    oracle.saw_file(file, begin, &before).expect("in one order");
    let begin = oracle.now();
    assert!(oracle.saw_file(file, begin, &after).is_err(), "decided by the read before");
}

#[test]
fn length_follows_cuts_and_writes() {
    let mut oracle = Oracle::default();
    let file = made(&mut oracle, 100);
    let cut = oracle.begin_truncate(file, 40);
    oracle.changed(cut);
    let begin = oracle.now();
    assert!(oracle.saw_file(file, begin, &bytes(&[(file, 0, 100)])).is_err());
    let write = oracle.begin_write(file, 60, 10);
    oracle.changed(write);
    let begin = oracle.now();
    assert!(oracle.saw_file(file, begin, &bytes(&[(file, 0, 40)])).is_err());
    let found = bytes(&[(file, 0, 40), (OpId(0), 40, 60), (write, 60, 70)]);
    oracle.saw_file(file, begin, &found).expect("what was cut is zeros");
}

#[test]
fn a_power_cut_takes_what_was_not_synced_and_leaves_a_prefix() {
    let mut oracle = Oracle::default();
    let file = made(&mut oracle, 100);
    let begin = oracle.now();
    let first = oracle.begin_write(file, 0, 10);
    oracle.changed(first);
    oracle.synced_file(file, begin, 0);
    let begin = oracle.now();
    oracle.synced_file(file, begin, 0);
    let second = oracle.begin_write(file, 0, 10);
    oracle.changed(second);
    let third = oracle.begin_write(file, 20, 10);
    oracle.changed(third);
    oracle.power_cut();
    let begin = oracle.now();
    let none = bytes(&[(file, 0, 100)]);
    assert!(oracle.saw_file(file, begin, &none).is_err(), "the first was synced");
    let gap = bytes(&[(first, 0, 10), (file, 10, 20), (third, 20, 30), (file, 30, 100)]);
    oracle.saw_file(file, begin, &gap).expect("each range by itself is explained");
    assert!(oracle.check_prefix(file).is_err(), "the third without the second");
}

#[test]
fn names_move() {
    let mut oracle = Oracle::default();
    let file = made(&mut oracle, 10);
    let moved = oracle.begin_move("/f", "/g", false);
    let begin = oracle.now();
    oracle.saw_name("/g", begin, Sight::Nothing).expect("not yet");
    oracle.ended(moved);
    let begin = oracle.now();
    assert!(oracle.saw_name("/f", begin, Sight::Something).is_err());
    assert!(oracle.saw_name("/g", begin, Sight::Nothing).is_err());
    oracle.saw_name("/g", begin, Sight::Thing(file)).expect("moved");
    let removed = oracle.begin_remove("/g");
    let begin = oracle.now();
    oracle.saw_name("/g", begin, Sight::Nothing).expect("may be gone");
    let begin = oracle.now();
    assert!(oracle.saw_name("/g", begin, Sight::Thing(file)).is_err(), "seen to be gone");
    oracle.ended(removed);
}

#[test]
fn logs_have_each_record_once_and_where_it_was_told() {
    let mut oracle = Oracle::default();
    oracle.make_log("/log");
    let one = oracle.begin_append("/log");
    let other = oracle.begin_append("/log");
    oracle.appended("/log", other, 0);
    let record = |op| {
        let mut bytes = vec![0; LOG_RECORD];
        fill_record(op, &mut bytes);
        bytes
    };
    let begin = oracle.now();
    assert!(oracle.saw_log("/log", begin, &[]).is_err(), "an answered append is missing");
    assert!(oracle.saw_log("/log", begin, &record(one)).is_err(), "not where it was told");
    let both = [record(other), record(one)].concat();
    oracle.saw_log("/log", begin, &both).expect("the unanswered one may be there");
    assert!(oracle.saw_log("/log", begin, &[both.clone(), record(one)].concat()).is_err(), "twice");
    let begin = oracle.now();
    assert!(oracle.saw_log("/log", begin, &record(other)).is_err(), "it was seen");
}
