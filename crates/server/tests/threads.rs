//! Ring 5: LCs with several LCCs, each in a thread of its own.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Cluster, assert_same_tree, kill, make_tree};

#[test] // Proves: O-1, O-4.
fn several_lccs_of_a_server_share_its_work_and_end_with_it() {
    let cluster = Cluster::started(3);
    make_tree(&cluster.path("tree"), 60);
    cluster.ok(&["put", "-r", "--quiet", "tree", "/tree"]);
    cluster.ok(&["down"]);
    for server in 1..=3 {
        let path = cluster.path(&format!("braid-data/server-{server}/server.toml"));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("lccs = 1\n"), "{text}");
        std::fs::write(path, text.replace("lccs = 1\n", "lccs = 3\n")).unwrap();
    }
    cluster.up(3);
    // What one LCC had made is read by others, and new groups are spread over all.
    cluster.ok(&["get", "-r", "--quiet", "/tree", "back"]);
    assert_same_tree(&cluster.path("tree"), &cluster.path("back"));
    make_tree(&cluster.path("more"), 60);
    cluster.ok(&["put", "-r", "--quiet", "more", "/more"]);
    let killed = cluster.pids(2, "lc");
    assert_eq!(killed.len(), 1, "the LCCs are threads of one process");
    let threads = std::fs::read_dir(format!("/proc/{}/task", killed[0])).unwrap();
    let names = threads.map(|entry| std::fs::read_to_string(entry.unwrap().path().join("comm")));
    assert_eq!(names.filter(|name| name.as_ref().unwrap().starts_with("lcc-")).count(), 3);
    kill(killed[0], "KILL");
    cluster.ok(&["get", "-r", "--quiet", "/more", "again"]);
    assert_same_tree(&cluster.path("more"), &cluster.path("again"));
    cluster.wait_status("a new LC", |status| status["health"] == "ok");
    assert_ne!(cluster.pids(2, "lc"), killed);
    cluster.ok(&["rm", "-r", "/tree"]);
    cluster.ok(&["down"]);
    cluster.up(3);
    cluster.ok(&["get", "-r", "--quiet", "/more", "once"]);
    assert_same_tree(&cluster.path("more"), &cluster.path("once"));
}
