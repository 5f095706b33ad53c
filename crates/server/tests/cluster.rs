//! Ring 5: real processes of real servers.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::{Cluster, assert_same_tree, kill, make_tree};

#[test]
fn files_are_there_after_down_and_up() {
    let cluster = Cluster::started(6);
    make_tree(&cluster.path("tree"), 60);
    cluster.ok(&["put", "-r", "--quiet", "tree", "/tree"]);
    cluster.ok(&["get", "-r", "--quiet", "/tree", "back"]);
    assert_same_tree(&cluster.path("tree"), &cluster.path("back"));
    cluster.ok(&["down"]);
    cluster.up(6);
    cluster.ok(&["get", "-r", "--quiet", "/tree", "again"]);
    assert_same_tree(&cluster.path("tree"), &cluster.path("again"));
    let names = cluster.json(&["ls", "--json", "/tree"]);
    assert_eq!(names.as_array().unwrap().len(), 23);
    assert_eq!(cluster.json(&["status", "--json"])["health"], "ok");
}

#[test]
fn names_are_made_moved_and_removed() {
    let cluster = Cluster::started(3);
    std::fs::write(cluster.path("x"), "some bytes").unwrap();
    cluster.ok(&["mkdir", "-p", "/a/b/c"]);
    cluster.ok(&["put", "--quiet", "x", "/a/b/c/x"]);
    cluster.ok(&["mv", "/a/b/c/x", "/a/y"]);
    cluster.ok(&["cp", "/a/y", "/a/z"]);
    assert_eq!(cluster.ok(&["cat", "/a/y", "/a/z"]), "some bytessome bytes");
    assert_eq!(cluster.ok(&["ls", "/a"]), "b\ny\nz\n");
    assert_eq!(cluster.ok(&["find", "/", "--type", "f"]), "/a/y\n/a/z\n");
    cluster.fails(1, &["rm", "/a"]);
    cluster.ok(&["rm", "-r", "/a"]);
    assert_eq!(cluster.ok(&["ls", "/"]), "");
    // Three servers keep rs/4+2's two losses with three copies.
    std::fs::write(cluster.path("x"), vec![7; 10_000]).unwrap();
    cluster.ok(&["put", "--quiet", "x", "/x"]);
    assert_eq!(cluster.json(&["where", "--json", "/x"])["scheme"], "raid1/3");
    cluster.ok(&[
        "policy",
        "set",
        "wide",
        "--match",
        "/w/**",
        "--scheme",
        "raid5/2+1",
        "--strip",
        "4K",
    ]);
    cluster.ok(&["mkdir", "/w"]);
    cluster.ok(&["put", "--quiet", "x", "/w/x"]);
    let place = cluster.json(&["where", "--json", "/w/x"]);
    assert_eq!((&place["scheme"], &place["strip_size"]), (&"raid5/2+1".into(), &4096.into()));
    cluster.fails(1, &["policy", "unset", "narrow"]);
}

#[test] // Proves: S-1, S-2, G-1, G-3.
fn portion_files_are_read_by_a_reader_that_shares_no_code() {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: python3 is not installed");
        return;
    }
    let cluster = Cluster::started(6);
    let bytes: Vec<u8> =
        (0..1_000_003_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(cluster.path("in"), &bytes).unwrap();
    cluster.ok(&["put", "--quiet", "--sync", "in", "/in"]);
    let place = cluster.json(&["where", "--json", "/in"]);
    cluster.ok(&["down"]);
    let portions = place["portions"].as_array().unwrap();
    assert_eq!(portions.len(), 6);
    for portion in portions {
        assert!(std::fs::metadata(portion["file"].as_str().unwrap()).is_ok(), "{portion}");
    }
    let folders: Vec<String> = portions
        .iter()
        .map(|portion| {
            let file = portion["file"].as_str().unwrap();
            file.split("/portions/").next().unwrap().to_owned()
        })
        .collect();
    let reader = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/format/read_device.py");
    let device = place["device"].to_string();
    // All portions, then without two data portions, then without a data and a parity portion.
    for missing in [&[][..], &[0, 3], &[1, 4]] {
        let there = (0..6).filter(|at| !missing.contains(at)).map(|at| &folders[at]);
        let out = cluster.path("out");
        let output =
            Command::new("python3").arg(reader).arg(&device).arg(&out).args(there).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(std::fs::read(&out).unwrap() == bytes, "missing {missing:?}");
    }
}

#[test]
fn killed_and_hung_processes_are_started_again() {
    let cluster = Cluster::started(6);
    make_tree(&cluster.path("tree"), 30);
    cluster.ok(&["put", "-r", "--quiet", "tree", "/tree"]);
    for (role, signal) in [("io", "KILL"), ("lc", "KILL"), ("coordinator", "KILL"), ("io", "STOP")]
    {
        let before = cluster.pids(2, role)[0];
        kill(before, signal);
        cluster.wait_status(&format!("a new {role} process"), |status| {
            let server = &status["servers"][1];
            let processes = server["processes"].as_array().unwrap();
            let of_role = processes.iter().find(|process| process["role"] == role).unwrap();
            let restarted = of_role["restarts"].as_u64().unwrap() > 0;
            let pid = of_role["pid"].as_i64();
            restarted && pid.is_some_and(|pid| pid != i64::from(before)) && server["state"] == "up"
        });
        let target = format!("/tree-{role}-{signal}");
        cluster.ok(&["put", "-r", "--quiet", "tree", &target]);
    }
    cluster.ok(&["get", "-r", "--quiet", "/tree", "back"]);
    assert_same_tree(&cluster.path("tree"), &cluster.path("back"));
    cluster.wait_status("health", |status| status["health"] == "ok");
}

#[test]
fn the_tiny_demonstration_holds() {
    let cluster = Cluster::new();
    let output = cluster.run(&["demo", "--size", "8M", "--files", "150"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}\n{error}");
    assert!(text.contains("all of it held"), "{text}");
}
