//! Every state of a change over several groups against every event, what an intent locks, and stops.

use braid_wire::lcc::{AttributeChanges, NewAttributes};

use super::super::log::LogRole;
use super::super::record::Change;
use super::super::rules::test::{Bench, GROUP, layout, plain};
use super::super::state::VOIDS_KEPT;
use super::*;

const HOME: [u64; 2] = [20, 21];
const CHILD: [u64; 2] = [30, 31];

/// A step on the files of [`bench`].
type StepOf = fn([DeviceId; 3]) -> JointStep;

fn name(name: &'static str) -> Bytes {
    Bytes::from_static(name.as_bytes())
}

/// A directory with the files `a`, `b` and `c`, and with `d`, which is a directory.
fn bench() -> (Bench, [DeviceId; 3]) {
    let mut bench = Bench::begun();
    let mut make = |name| match bench.create(name, plain(FileKind::File)) {
        LccReply::Entry { entry, .. } => entry.id,
        reply => panic!("{reply:?}"),
    };
    let ids = [make("a"), make("b"), make("c")];
    let operation = bench.operation();
    let (kind, home) = (FileKind::Directory, layout(&CHILD));
    let id = home.group();
    bench.run(DirectoryOp::Enter { operation, name: name("d"), id, kind, home }).unwrap();
    bench.decide();
    (bench, ids)
}

fn judge(bench: &mut Bench, op: &DirectoryOp) -> Result<Verdict, LccRefusal> {
    change_joint(&bench.state, &mut bench.pending, op)
}

fn leave(entry: &'static str, id: DeviceId) -> JointStep {
    JointStep::Leave { name: name(entry), id }
}

fn enter(entry: &'static str, replaces: Option<DeviceId>) -> JointStep {
    let (id, kind, home) = (DeviceId(77), FileKind::File, layout(&HOME));
    JointStep::Enter { name: name(entry), id, kind, home, replaces }
}

fn count(id: DeviceId, by: i32) -> JointStep {
    JointStep::Count { id, by, before: None, keep_last: false }
}

fn shown(verdict: &Result<Verdict, LccRefusal>) -> &'static str {
    match verdict {
        Ok(Verdict::Batched(_, LccReply::Done)) => "done",
        Ok(Verdict::Batched(_, LccReply::Outcome(false))) => "made void",
        Ok(Verdict::Repeated(LccReply::Done)) => "as before",
        Ok(Verdict::Repeated(LccReply::Outcome(true))) => "was made",
        Ok(Verdict::Repeated(LccReply::Outcome(false))) => "was void",
        Ok(Verdict::RepeatedIn(_)) => "soon",
        Ok(Verdict::Blocked(_)) => "blocked",
        Err(LccRefusal::Conflict) => "conflict",
        other => panic!("{other:?}"),
    }
}

#[test] // Proves: W-7. Every state of a secondary against every event.
fn a_secondary_by_what_it_has_of_the_change() {
    // Intend, Finish Decided, Finish Stable, Finish Void; whether `a` is gone after each.
    let table = [
        ("nothing", ["done", "as before", "as before", "as before"], [false; 4]),
        ("an intent on its way", ["soon", "soon", "soon", "soon"], [false; 4]),
        ("an intent", ["as before", "as before", "done", "done"], [false, false, true, false]),
        ("finished on its way", ["soon", "soon", "soon", "soon"], [true; 4]),
        ("finished", ["conflict", "as before", "as before", "as before"], [true; 4]),
        ("void on its way", ["soon", "soon", "soon", "soon"], [false; 4]),
        ("void", ["done", "as before", "as before", "as before"], [false; 4]),
    ];
    for (has, verdicts, gone) in table {
        for (event, (verdict, gone)) in verdicts.into_iter().zip(gone).enumerate() {
            let (mut bench, [a, ..]) = bench();
            let joint = bench.joint();
            let id = joint.id;
            let intend = DirectoryOp::Intend { joint: Box::new(joint), steps: vec![leave("a", a)] };
            let finish = |news| DirectoryOp::Finish { id, news };
            if has != "nothing" {
                judge(&mut bench, &intend).unwrap();
            }
            if !matches!(has, "nothing" | "an intent on its way") {
                bench.decide();
            }
            match has {
                "finished on its way" | "finished" => {
                    judge(&mut bench, &finish(JointNews::Stable)).unwrap();
                }
                "void on its way" | "void" => {
                    judge(&mut bench, &finish(JointNews::Void)).unwrap();
                }
                _ => {}
            }
            if matches!(has, "finished" | "void") {
                bench.decide();
            }
            let op = match event {
                0 => intend,
                1 => finish(JointNews::Decided),
                2 => finish(JointNews::Stable),
                _ => finish(JointNews::Void),
            };
            let found = judge(&mut bench, &op);
            assert_eq!(shown(&found), verdict, "{has}, {op:?}");
            bench.decide();
            let after = bench.reloaded();
            assert!(after == bench.state, "{has}, {op:?}: the next owner sees something else");
            assert_eq!(!after.names.contains_key(&name("a")), gone, "{has}, {op:?}");
        }
    }
}

#[test] // Proves: W-7. Every state of a primary against every event.
fn a_primary_by_what_it_has_of_the_change() {
    // Decide, Outcome, forgetting; whether `a` is gone after each.
    let table = [
        ("nothing", ["done", "made void"], [true, false, false]),
        ("made on its way", ["soon", "soon"], [true; 3]),
        ("made", ["as before", "was made"], [true; 3]),
        ("void on its way", ["conflict", "soon"], [false; 3]),
        ("void", ["conflict", "was void"], [false; 3]),
    ];
    for (has, verdicts, gone) in table {
        for (event, gone) in gone.into_iter().enumerate() {
            let (mut bench, [a, ..]) = bench();
            let mut joint = bench.joint();
            joint.secondaries = vec![layout(&HOME)];
            let id = joint.id;
            let decide = DirectoryOp::Decide { joint: Box::new(joint), steps: vec![leave("a", a)] };
            let outcome = DirectoryOp::Outcome { id };
            match has {
                "made on its way" | "made" => drop(judge(&mut bench, &decide).unwrap()),
                "void on its way" | "void" => drop(judge(&mut bench, &outcome).unwrap()),
                _ => {}
            }
            if matches!(has, "made" | "void") {
                bench.decide();
            }
            match event {
                0 => assert_eq!(shown(&judge(&mut bench, &decide)), verdicts[0], "{has}"),
                1 => assert_eq!(shown(&judge(&mut bench, &outcome)), verdicts[1], "{has}"),
                _ => {
                    forget(&bench.state, &mut bench.pending, &[id]);
                    bench.decide();
                    assert!(has == "made on its way" || bench.state.joints.is_empty(), "{has}");
                }
            }
            bench.decide();
            let after = bench.reloaded();
            assert!(after == bench.state, "{has}, {event}: the next owner sees something else");
            assert_eq!(!after.names.contains_key(&name("a")), gone, "{has}, {event}");
        }
    }
}

#[test] // Proves: W-7. A driver that is late with a change that was made void is refused.
fn what_is_void_is_never_decided_and_not_forgotten_at_a_checkpoint() {
    let (mut bench, [a, ..]) = bench();
    let joint = bench.joint();
    judge(&mut bench, &DirectoryOp::Outcome { id: joint.id }).unwrap();
    bench.decide();
    bench.checkpoint(LogRole::Attributes);
    bench.state = bench.reloaded();
    let decide = DirectoryOp::Decide { joint: Box::new(joint), steps: vec![leave("a", a)] };
    assert_eq!(shown(&judge(&mut bench, &decide)), "conflict");
    let DirectoryOp::Decide { joint, .. } = decide else { unreachable!() };
    for counter in 0..VOIDS_KEPT as u64 - 1 {
        bench.state.apply(super::super::record::Change::JointVoid(JointId { driver: 1, counter }));
    }
    assert!(bench.state.is_void(joint.id));
    bench.state.apply(super::super::record::Change::JointVoid(JointId { driver: 2, counter: 0 }));
    assert!(!bench.state.is_void(joint.id), "as many are kept as are said to be");
}

/// An operation of a client on the names and files of [`bench`].
fn operations(bench: &mut Bench, [a, b, _]: [DeviceId; 3]) -> Vec<(&'static str, DirectoryOp)> {
    let operation = bench.operation();
    let unlink = |entry, directory| {
        let (name, only_id, keep) = (name(entry), None, false);
        DirectoryOp::Unlink { operation, name, only_id, keep, directory }
    };
    let rename = |from, to, exchange| DirectoryOp::Rename {
        operation,
        from: name(from),
        target: None,
        to: name(to),
        exchange,
        if_exists: IfExists::Replace,
        only_replaces: None,
        keep: false,
    };
    let set = |id, nlink, mode| {
        let changes = AttributeChanges { nlink, mode, ..AttributeChanges::default() };
        DirectoryOp::SetAttributes { operation, id, changes, stable: false }
    };
    let create = |entry| DirectoryOp::Create {
        operation,
        name: name(entry),
        attributes: NewAttributes { id: Some(DeviceId(9_999)), ..plain(FileKind::File) },
        if_exists: IfExists::Replace,
        stable: false,
    };
    let link = |entry, id| {
        let (kind, home) = (FileKind::File, layout(&[GROUP, GROUP + 1]));
        DirectoryOp::Link { operation, name: name(entry), id, kind, home }
    };
    let layouts = vec![layout(&[500])];
    vec![
        ("unlink a", unlink("a", false)),
        ("unlink b", unlink("b", false)),
        ("rename a x", rename("a", "x", false)),
        ("rename b x", rename("b", "x", false)),
        ("rename b a", rename("b", "a", false)),
        ("exchange a b", rename("a", "b", true)),
        ("create a", create("a")),
        ("create b", create("b")),
        ("create x", create("x")),
        ("link x a", link("x", a)),
        ("link x b", link("x", b)),
        ("count a", set(a, 1, None)),
        ("count b", set(b, 1, None)),
        ("mode of a", set(a, 0, Some(0))),
        ("begin upload", DirectoryOp::BeginUploads { operation, layouts }),
        ("retire", DirectoryOp::Retire { operation }),
    ]
}

#[test] // Proves: W-7. An intent locks the names and counts concerned, and nothing else.
fn what_an_intent_locks() {
    let steps: [(&str, StepOf, &[&str]); 6] = [
        (
            "leave a",
            |ids| leave("a", ids[0]),
            &["unlink a", "rename a x", "rename b a", "exchange a b", "create a", "retire"],
        ),
        (
            "enter x",
            |_| enter("x", None),
            &["rename a x", "rename b x", "create x", "link x a", "link x b", "retire"],
        ),
        (
            "count a",
            |ids| count(ids[0], 1),
            &[
                "unlink a",
                "rename a x",
                "rename b a",
                "exchange a b",
                "create a",
                "link x a",
                "count a",
            ],
        ),
        ("touch a", |ids| JointStep::Touch { id: ids[0] }, &[]),
        ("drop", |_| JointStep::Drop { directory: layout(&CHILD) }, &[]),
        ("set parent", |_| JointStep::SetParent { parent: layout(&HOME) }, &["retire"]),
    ];
    for (what, step, locked) in steps {
        for is_decided in [false, true] {
            let (mut bench, ids) = bench();
            let joint = Box::new(bench.joint());
            let intend = DirectoryOp::Intend { joint, steps: vec![step(ids)] };
            assert_eq!(shown(&judge(&mut bench, &intend)), "done", "{what}");
            if is_decided {
                bench.decide();
            }
            for (shown, op) in operations(&mut bench, ids) {
                let before = bench.pending.operations_new.len();
                let verdict = bench.change(op);
                let is_blocked = matches!(verdict, Ok(Verdict::Blocked(_)));
                assert_eq!(is_blocked, locked.contains(&shown), "{what}, {shown}: {verdict:?}");
                if matches!(verdict, Ok(Verdict::Batched(..))) {
                    // Each for itself.
                    assert_eq!(bench.pending.operations_new.len(), before + 1);
                    return_to(&mut bench, ids, what, step, is_decided);
                }
            }
        }
    }
}

fn return_to(bench: &mut Bench, ids: [DeviceId; 3], what: &str, step: StepOf, is_decided: bool) {
    let (fresh, same) = self::bench();
    assert_eq!(same, ids, "{what}: made in the same way");
    *bench = fresh;
    let joint = Box::new(bench.joint());
    judge(bench, &DirectoryOp::Intend { joint, steps: vec![step(ids)] }).unwrap();
    if is_decided {
        bench.decide();
    }
}

#[test] // Proves: W-7. A directory that is to end takes nothing, and one that takes something stays.
fn an_end_and_an_entry_exclude_each_other() {
    let mut bench = Bench::begun();
    let joint = Box::new(bench.joint());
    let retire = DirectoryOp::Intend { joint, steps: vec![JointStep::Retire] };
    let joint = Box::new(bench.joint());
    let enters = DirectoryOp::Intend { joint, steps: vec![enter("x", None)] };
    let ids = [DeviceId(1), DeviceId(2), DeviceId(3)];

    assert_eq!(shown(&judge(&mut bench, &retire)), "done");
    assert_eq!(shown(&judge(&mut bench, &enters)), "blocked");
    for (what, op) in operations(&mut bench, ids) {
        if ["create x", "begin upload", "link x a", "retire"].contains(&what) {
            let verdict = bench.change(op);
            assert!(matches!(verdict, Ok(Verdict::Blocked(_))), "{what}: {verdict:?}");
        }
    }
    bench.decide();
    let DirectoryOp::Intend { joint, .. } = &retire else { unreachable!() };
    let void = DirectoryOp::Finish { id: joint.id, news: JointNews::Void };
    judge(&mut bench, &void).unwrap();
    bench.decide();

    assert_eq!(shown(&judge(&mut bench, &enters)), "done");
    let joint = Box::new(bench.joint());
    let again = DirectoryOp::Intend { joint, steps: vec![JointStep::Retire] };
    assert_eq!(shown(&judge(&mut bench, &again)), "blocked");
    bench.decide();
    let DirectoryOp::Intend { joint, .. } = &enters else { unreachable!() };
    let made = DirectoryOp::Finish { id: joint.id, news: JointNews::Stable };
    judge(&mut bench, &made).unwrap();
    assert_eq!(judge(&mut bench, &again).unwrap_err(), LccRefusal::NotEmpty);
}

#[test] // Proves: W-7. What is not as it was seen is a conflict, and changes nothing.
fn steps_are_judged_by_what_is_there() {
    let steps: [StepOf; 8] = [
        |ids| leave("a", ids[1]),
        |ids| leave("x", ids[0]),
        |_| enter("a", None),
        |ids| enter("a", Some(ids[1])),
        |ids| enter("x", Some(ids[0])),
        |_| count(DeviceId(12_345), 1),
        |ids| JointStep::Count { id: ids[0], by: -1, before: Some(2), keep_last: false },
        |ids| JointStep::Make {
            name: name("x"),
            id: ids[0],
            attributes: Box::new(plain(FileKind::File)),
            replaces: None,
        },
    ];
    for (number, step) in steps.into_iter().enumerate() {
        let (mut bench, ids) = bench();
        for decides in [false, true] {
            let joint = Box::new(bench.joint());
            // The first step fits, and is not made either.
            let steps = vec![leave("c", ids[2]), step(ids)];
            let op = match decides {
                false => DirectoryOp::Intend { joint, steps },
                true => DirectoryOp::Decide { joint, steps },
            };
            assert_eq!(shown(&judge(&mut bench, &op)), "conflict", "step {number}");
            assert!(bench.pending.is_empty(), "step {number}");
        }
    }
}

#[test] // Proves: W-7, N-4. The record of a file that is open somewhere stays when its last name goes.
fn counts_go_down_and_the_last_one_may_stay() {
    for (names, keep_last, left) in
        [(2, false, Some(1)), (2, true, Some(1)), (1, true, Some(1)), (1, false, None)]
    {
        let (mut bench, [a, ..]) = bench();
        if names == 2 {
            let (_, link) = operations(&mut bench, [a; 3]).swap_remove(9);
            bench.run(link).unwrap();
            bench.decide();
        }
        let joint = Box::new(bench.joint());
        let step = JointStep::Count { id: a, by: -1, before: Some(names), keep_last };
        judge(&mut bench, &DirectoryOp::Decide { joint, steps: vec![step] }).unwrap();
        bench.decide();
        let found = bench.reloaded().attributes.get(&a).map(|attributes| attributes.nlink);
        assert_eq!(found, left, "{names} names, keep: {keep_last}");
    }
}

#[test] // Proves: L2 of wire::lcc, W-7. Of two attempts at one operation one is made.
fn an_operation_is_made_by_one_attempt_only() {
    let (mut bench, [a, b, _]) = bench();
    let first = bench.joint();
    let mut second = bench.joint();
    second.operation = first.operation;
    let id = first.id;
    let intend = DirectoryOp::Intend { joint: Box::new(first), steps: vec![leave("a", a)] };
    judge(&mut bench, &intend).unwrap();
    let other = DirectoryOp::Intend { joint: Box::new(second), steps: vec![leave("b", b)] };
    assert_eq!(shown(&judge(&mut bench, &other)), "blocked");
    bench.decide();
    judge(&mut bench, &DirectoryOp::Finish { id, news: JointNews::Stable }).unwrap();
    assert_eq!(shown(&judge(&mut bench, &other)), "conflict");
    bench.decide();
    assert_eq!(shown(&judge(&mut bench, &other)), "conflict");
    assert!(bench.state.locked.is_empty());
}

#[test] // Proves: W-7. What a directory says of itself is not told while names of it are locked.
fn a_look_at_the_directory_itself_waits_for_its_names() {
    let own = DirectoryOp::GetAttributes { id: bench().0.state.id };
    let steps = [
        (leave("a", bench().1[0]), true),
        (enter("x", None), true),
        (JointStep::Retire, true),
        (count(bench().1[0], 1), false),
        (JointStep::SetParent { parent: layout(&HOME) }, false),
    ];
    for (step, waits) in steps {
        let (mut bench, _) = bench();
        let joint = Box::new(bench.joint());
        let id = joint.id;
        // What an intent locks does not depend on whether it could be made.
        let intent = Intent { joint: *joint, steps: vec![step.clone()] };
        bench.state.apply(Change::Intent(Box::new(intent)));
        assert_eq!(seen_by(&bench.state, &own), waits.then_some(id), "{step:?}");
    }
}
