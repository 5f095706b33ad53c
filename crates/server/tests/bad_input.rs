//! Bad input: each a clear error, nothing changed, nothing lost.
#![allow(clippy::unwrap_used)]

mod common;

use common::Cluster;

#[test]
fn bad_paths_and_targets_are_refused() {
    let cluster = Cluster::started(3);
    std::fs::write(cluster.path("x"), "x").unwrap();
    std::fs::create_dir(cluster.path("folder")).unwrap();
    cluster.ok(&["mkdir", "/d"]);
    cluster.ok(&["put", "--quiet", "x", "/x"]);
    let long_name = format!("/{}", "n".repeat(256));
    let long_path = "/d".repeat(2100);
    let table: [(i32, &[&str], &str); 17] = [
        (1, &["get", "/nothing", "out"], "no such file"),
        (1, &["cat", "/nothing"], "no such file"),
        (1, &["ls", "/x/y"], "not a directory"),
        (1, &["put", "x", &long_name], "255"),
        (1, &["stat", &long_path], "4096"),
        (2, &["put", "x", "relative"], "begins with"),
        (1, &["put", "missing", "/y"], "No such file"),
        (1, &["put", "folder", "/y"], "put -r"),
        (1, &["put", "x", "/nowhere/y"], "no such file"),
        (1, &["put", "x", "/nowhere/"], "no such directory"),
        (1, &["get", "/d", "out"], "get -r"),
        (1, &["get", "/x", "no/such/folder/out"], "No such file"),
        (1, &["mkdir", "/d"], "exists"),
        (1, &["rm", "/"], "directory"),
        (1, &["mv", "/nothing", "/y"], "no such file"),
        (2, &["policy", "set", "p", "--scheme", "raid7/3"], "scheme"),
        (2, &["policy", "set", "p", "--strip", "5000"], "power of two"),
    ];
    for (code, arguments, says) in table {
        let error = cluster.fails(code, arguments);
        assert!(error.contains(says), "braid {arguments:?} says: {error}");
    }
    // A file onto a directory goes into it, as `cp` does; a directory is never replaced.
    cluster.ok(&["put", "--quiet", "x", "/d"]);
    assert_eq!(cluster.ok(&["cat", "/d/x"]), "x");
    assert!(cluster.fails(2, &["put", "x"]).contains("Usage"));
    assert_eq!(cluster.ok(&["ls", "/"]), "d\nx\n");
}

#[test]
fn other_clusters_are_refused() {
    let cluster = Cluster::started(3);
    let text = std::fs::read_to_string(cluster.path("braid-data/client.toml")).unwrap();
    let start = text.find("cluster = \"").unwrap() + 11;
    let mut other = text.clone();
    other.replace_range(start..start + 32, &"0123456789abcdef".repeat(2));
    std::fs::write(cluster.path("other.toml"), other).unwrap();
    let output = cluster.run(&["--cluster", "other.toml", "ls", "/"]);
    assert_eq!(output.status.code(), Some(3));
    std::fs::write(cluster.path("bad.toml"), "x = 1").unwrap();
    assert!(cluster.fails(1, &["--cluster", "bad.toml", "ls", "/"]).contains("bad.toml"));
    assert!(cluster.fails(1, &["--cluster", "none.toml", "ls", "/"]).contains("none.toml"));
    // Started a second time, and the ports of it.
    let ports = cluster.ports.to_string();
    assert!(cluster.fails(1, &["up", "--detach"]).contains("run already"));
    let error = cluster.fails(1, &["up", "--detach", "--dir", "second", "--port-base", &ports]);
    assert!(error.contains("--port-base"), "{error}");
    // A disk of another cluster: that I/O server does not serve, the rest of the cluster does.
    cluster.ok(&["down"]);
    let disk = cluster.path("braid-data/server-3/disk-1/disk.toml");
    let text = std::fs::read_to_string(&disk).unwrap();
    let start = text.find("cluster = \"").unwrap() + 11;
    let mut foreign = text.clone();
    foreign.replace_range(start..start + 32, &"0123456789abcdef".repeat(2));
    std::fs::write(&disk, foreign).unwrap();
    let mut up = cluster.command(&["up", "--detach", "--servers", "3"]).spawn().unwrap();
    cluster.wait_status("a cluster without one disk", |status| {
        let disks = status["disks"].as_array().unwrap();
        let state = |at: usize| disks[at]["state"].as_str().unwrap();
        status["servers"][2]["processes"]
            .as_array()
            .unwrap()
            .iter()
            .any(|process| process["last_end"].as_str().is_some_and(|end| !end.is_empty()))
            && (state(0), state(1), state(2)) == ("in_use", "in_use", "missing")
    });
    assert_eq!(cluster.ok(&["ls", "/"]), "");
    let log = std::fs::read_to_string(cluster.path("braid-data/server-3/log/io-3.log"));
    assert!(log.unwrap().contains("belongs to cluster"), "the log says why");
    up.kill().unwrap();
    up.wait().unwrap();
}

#[test]
fn a_folder_that_is_no_cluster_is_left_alone() {
    let cluster = Cluster::new();
    std::fs::create_dir(cluster.path("full")).unwrap();
    std::fs::write(cluster.path("full/file"), "mine").unwrap();
    let error = cluster.fails(1, &["up", "--detach", "--dir", "full"]);
    assert!(error.contains("not empty"), "{error}");
    assert!(cluster.fails(1, &["down", "--dir", "full"]).contains("client.toml"));
    assert!(cluster.fails(3, &["ls", "/"]).contains("braid up"));
    assert!(cluster.fails(1, &["serve", "--dir", "full"]).contains("server.toml"));
}
