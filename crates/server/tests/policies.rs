//! Policies of a real cluster, through the program.
#![allow(clippy::unwrap_used)]

mod common;

use common::Cluster;

#[test] // Proves: G-5.
fn the_first_policy_of_which_everything_fits_decides() {
    let cluster = Cluster::started(3);
    let set = |name: &str, options: &[&str]| {
        let mut arguments = vec!["policy", "set", name];
        arguments.extend(options);
        cluster.ok(&arguments);
    };
    set("far", &["--client", "10.0.0.0/8", "--scheme", "raid0/1"]);
    set("near", &["--match", "**.db", "--client", "127.0.0.0/8", "--scheme", "raid1/2"]);
    set("important", &["--priority", "9", "--scheme", "raid1/3", "--strip", "8K"]);
    set("large", &["--min-size", "1M", "--scheme", "raid5/2+1"]);
    set("scratch", &["--match", "/scratch/**", "--ack", "memory"]);
    set("journals", &["--match", "/journals/**", "--ack", "local"]);
    // One that reserves LCCs says nothing of what it is about.
    set("own", &["--type", "directory", "--lccs", "1"]);
    set("names", &["--type", "directory", "--match", "/two/**", "--scheme", "raid1/2"]);
    let chosen = |arguments: &[&str]| {
        let mut all = vec!["policy", "test", "--json"];
        all.extend(arguments);
        let chosen = cluster.json(&all);
        let policy = chosen["policy"].as_str().unwrap_or("(default)").to_owned();
        (policy, chosen["ack"].as_str().unwrap().to_owned())
    };
    let check = |arguments: &[&str], policy: &str, ack: &str| {
        assert_eq!(chosen(arguments), (policy.to_owned(), ack.to_owned()), "{arguments:?}");
    };
    check(&["/x.txt"], "(default)", "cluster");
    check(&["/x.db"], "near", "cluster");
    check(&["/x.db", "--client", "10.1.2.3"], "far", "cluster");
    check(&["/x.txt", "--priority", "9"], "important", "cluster");
    check(&["/x.txt", "--size", "2M"], "large", "cluster");
    check(&["/scratch/x"], "scratch", "memory");
    check(&["/journals/x"], "journals", "local");
    check(&["/two/x", "--type", "directory"], "names", "cluster");
    check(&["/two/x"], "(default)", "cluster");
    // What is stored follows: address, priority and size of a put, and the type of a directory.
    std::fs::write(cluster.path("small"), vec![1; 10_000]).unwrap();
    std::fs::write(cluster.path("big"), vec![2; 2_000_000]).unwrap();
    let stored = |options: &[&str], source: &str, target: &str| {
        let mut arguments = options.to_vec();
        arguments.extend(["put", "--quiet", source, target]);
        cluster.ok(&arguments);
        let place = cluster.json(&["where", "--json", target]);
        (place["scheme"].as_str().unwrap().to_owned(), place["strip_size"].as_u64().unwrap())
    };
    assert_eq!(stored(&[], "small", "/one.db").0, "raid1/2");
    assert_eq!(stored(&[], "big", "/big").0, "raid5/2+1");
    let important = stored(&["--client-priority", "9"], "small", "/important");
    assert_eq!(important, ("raid1/3".to_owned(), 8192));
    cluster.ok(&["mkdir", "-p", "/two/a"]);
    assert_eq!(cluster.json(&["where", "--json", "/two/a"])["scheme"], "raid1/2");
    assert_eq!(cluster.json(&["where", "--json", "/two"])["scheme"], "raid1/3");
    // Bad input is refused, and changes nothing.
    cluster.fails(2, &["policy", "set", "x", "--client", "10.0.0.0/33"]);
    cluster.fails(2, &["policy", "set", "x", "--ack", "never"]);
    cluster.fails(2, &["policy", "set", "x", "--type", "disk"]);
    cluster.fails(2, &["policy", "set", "x", "--lccs", "1"]);
    cluster.fails(2, &["policy", "set", "x", "--lccs", "1", "--type", "file", "--match", "/x"]);
    assert_eq!(cluster.json(&["policy", "list", "--json"]).as_array().unwrap().len(), 8);
}
