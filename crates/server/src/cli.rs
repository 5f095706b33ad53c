//! The command line. What stands in `INTERFACE.md` of the contract is kept; commands that are not
//! built yet are not here.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// BraidFS: a distributed RAID network file store.
#[derive(Parser, Debug)]
#[command(name = "braid", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// `braid find` takes `-name` and `-type`, as `find` does.
pub fn as_find_has_it(mut arguments: Vec<OsString>) -> Vec<OsString> {
    if arguments.iter().any(|argument| argument == "find") {
        for argument in &mut arguments {
            if argument == "-name" || argument == "-type" {
                *argument = format!("-{}", argument.display()).into();
            }
        }
    }
    arguments
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Cluster file; else ./braid-data/client.toml, else /etc/braid/client.toml
    #[arg(long, global = true, env = "BRAID_CLUSTER", value_name = "FILE")]
    pub cluster: Option<PathBuf>,
    /// Priority of this client, for policies that name one (0 to 255)
    #[arg(long, global = true, env = "BRAID_PRIORITY", value_name = "P")]
    pub client_priority: Option<u8>,
    /// Least severe log lines that are shown (off, error, warn, info, debug, trace)
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// How log lines look
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Options of `mount`.
#[derive(Args, Clone, Debug)]
pub struct Mount {
    /// Where
    pub directory: PathBuf,
    /// Options by commas: soft, hard, sync, ro, ttl=MS, allow_other ... (see the guide)
    #[arg(short, value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Stay in the foreground; Ctrl-C unmounts
    #[arg(long)]
    pub foreground: bool,
}

/// How log lines look.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Start a cluster of real servers on this machine (or start it again, with its data)
    #[command(after_help = "Example:\n  braid up --servers 6 --detach")]
    Up(Up),
    /// Stop the cluster of this machine cleanly
    #[command(after_help = "Example:\n  braid down")]
    Down {
        /// Folder of the cluster
        #[arg(long, default_value = "braid-data")]
        dir: PathBuf,
    },
    /// The main job as it happens: files in, servers killed during a write, every byte read back
    #[command(after_help = "Example:\n  braid demo")]
    Demo(Demo),
    /// Copy local files into the store
    #[command(
        after_help = "Examples:\n  braid put report.pdf /docs/report.pdf\n  braid put -r photos /\n  tar c . | braid put - /backup.tar"
    )]
    Put(Put),
    /// Copy files out of the store
    #[command(
        after_help = "Examples:\n  braid get /docs/report.pdf .\n  braid get -r /photos /tmp/photos\n  braid get /backup.tar - | tar t"
    )]
    Get(Get),
    /// Mount the store as a file system of this machine (FUSE)
    #[command(
        after_help = "Examples:\n  braid mount /mnt/store\n  braid mount /mnt/store -o soft,ttl=0 --foreground\n  umount /mnt/store"
    )]
    Mount(Mount),
    /// Write files to standard output
    #[command(after_help = "Example:\n  braid cat /docs/readme.txt")]
    Cat {
        #[arg(required = true)]
        paths: Vec<String>,
    },
    /// List directories
    #[command(after_help = "Example:\n  braid ls -l /docs")]
    Ls {
        /// With mode, size and time
        #[arg(short)]
        long: bool,
        #[arg(long)]
        json: bool,
        #[arg(default_value = "/")]
        paths: Vec<String>,
    },
    /// Show the attributes of files
    #[command(after_help = "Example:\n  braid stat /docs/readme.txt")]
    Stat {
        #[arg(long)]
        json: bool,
        #[arg(required = true)]
        paths: Vec<String>,
    },
    /// Make directories
    #[command(after_help = "Example:\n  braid mkdir -p /a/b/c")]
    Mkdir {
        /// With those above; existing ones are no error
        #[arg(short)]
        parents: bool,
        #[arg(required = true)]
        paths: Vec<String>,
    },
    /// Remove files or trees
    #[command(after_help = "Example:\n  braid rm -r /old")]
    Rm {
        /// Directories with all that is in them
        #[arg(short)]
        recursive: bool,
        /// What is not there is no error
        #[arg(short)]
        force: bool,
        #[arg(required = true)]
        paths: Vec<String>,
    },
    /// Rename, or move into a directory
    #[command(after_help = "Example:\n  braid mv /a.txt /docs/b.txt")]
    Mv {
        #[arg(required = true, num_args = 2..)]
        paths: Vec<String>,
    },
    /// Copy within the store
    #[command(after_help = "Example:\n  braid cp -r /docs /docs-copy")]
    Cp {
        #[arg(short)]
        recursive: bool,
        #[arg(required = true, num_args = 2..)]
        paths: Vec<String>,
    },
    /// Sum up sizes of trees
    #[command(after_help = "Example:\n  braid du /photos")]
    Du {
        #[arg(long)]
        json: bool,
        #[arg(default_value = "/")]
        paths: Vec<String>,
    },
    /// Space of the cluster and its disks
    #[command(after_help = "Example:\n  braid df")]
    Df {
        #[arg(long)]
        json: bool,
    },
    /// Find files by name and type
    #[command(after_help = "Example:\n  braid find /photos --name '*.jpg' --type f")]
    Find {
        #[arg(default_value = "/")]
        path: String,
        /// Pattern of the name: `*` any run, `?` one character
        #[arg(long, value_name = "GLOB")]
        name: Option<String>,
        /// f file, d directory, l symbolic link
        #[arg(long = "type", value_name = "TYPE")]
        kind: Option<char>,
        #[arg(long)]
        json: bool,
    },
    /// Show the virtual device of a file and where its portions are
    #[command(after_help = "Example:\n  braid where /docs/report.pdf")]
    Where {
        path: String,
        #[arg(long)]
        json: bool,
        /// The meta-data device of a directory instead of the directory device
        #[arg(long)]
        meta: bool,
    },
    /// Which scheme, strip size and mode new files get
    #[command(
        subcommand,
        after_help = "Example:\n  braid policy set video --match '/video/**' --scheme rs/8+2"
    )]
    Policy(Policy),
    /// Health of the cluster on one screen
    #[command(after_help = "Example:\n  braid status --watch")]
    Status {
        #[arg(long)]
        json: bool,
        /// Again every second
        #[arg(long)]
        watch: bool,
    },
    /// What may be wrong or unfinished
    #[command(after_help = "Examples:\n  braid facts --json\n  braid facts --discard 17")]
    Facts {
        #[arg(long)]
        json: bool,
        /// Give up the local copy of this number: its file may be changed again, and what the server has
        /// becomes a file beside it when it comes back
        #[arg(long, value_name = "NUMBER", conflicts_with = "json")]
        discard: Option<u64>,
    },
    /// Reconstruct what is missing now
    #[command(after_help = "Example:\n  braid repair --wait")]
    Repair {
        /// Until nothing is left
        #[arg(long)]
        wait: bool,
    },
    /// Verify every stored block against its checksum now, or all bytes and parity below a path
    #[command(after_help = "Examples:\n  braid scrub --wait\n  braid scrub /photos")]
    Scrub {
        /// Until every disk is through; a path is always waited for
        #[arg(long)]
        wait: bool,
        /// Only what is below it, data against parity too
        path: Option<String>,
    },
    /// Shell completions on standard output
    #[command(after_help = "Example:\n  braid completions bash > /etc/bash_completion.d/braid")]
    Completions { shell: clap_complete::Shell },
    /// Man pages: braid(1) on standard output, or all of them into a folder
    #[command(after_help = "Example:\n  braid man --to /usr/local/share/man/man1")]
    Man {
        /// Folder of the pages
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
    },
    /// Run the server whose folder this is (what `up` starts, and a service manager runs)
    #[command(after_help = "Example:\n  braid serve --dir /var/lib/braid/server-1")]
    Serve {
        #[arg(long)]
        dir: PathBuf,
    },
    #[command(hide = true)]
    Role {
        role: String,
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        disk: Option<u32>,
    },
}

#[derive(Args, Clone, Debug)]
pub struct Up {
    /// Servers of a new cluster, 6 if not said
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub servers: Option<u32>,
    /// Disks of each server of a new cluster
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=7))]
    pub disks: u32,
    /// Folder of the cluster
    #[arg(long, default_value = "braid-data")]
    pub dir: PathBuf,
    /// Mount the store there, too; `down` ends the mount first
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
    /// First port; server I (from 0) uses 20 of them from this + 20 * I on
    #[arg(long, default_value_t = 7400)]
    pub port_base: u16,
    /// No front services (none are built yet)
    #[arg(long)]
    pub no_gateways: bool,
    /// Return when the cluster is healthy
    #[arg(long)]
    pub detach: bool,
    /// Make the folder of a new cluster and start nothing: `braid serve` starts each server
    #[arg(long, hide = true)]
    pub only_make: bool,
}

#[derive(Args, Clone, Debug)]
pub struct Demo {
    /// Bytes of the one large file (K, M, G)
    #[arg(long, default_value = "1G", value_parser = parse_size)]
    pub size: u64,
    /// Most files of the source tree
    #[arg(long, default_value_t = 6000)]
    pub files: usize,
    /// Tree to store instead of the toolchain's sources
    #[arg(long)]
    pub source: Option<PathBuf>,
    /// Keep the cluster's folder
    #[arg(long)]
    pub keep: bool,
}

#[derive(Args, Clone, Debug)]
pub struct Put {
    /// Directories with all that is in them
    #[arg(short)]
    pub recursive: bool,
    /// No progress
    #[arg(long)]
    pub quiet: bool,
    /// Finished only when all of it is on the disks
    #[arg(long)]
    pub sync: bool,
    /// Local files, then the path in the store
    #[arg(required = true, num_args = 2..)]
    pub paths: Vec<String>,
}

#[derive(Args, Clone, Debug)]
pub struct Get {
    /// Directories with all that is in them
    #[arg(short)]
    pub recursive: bool,
    /// No progress
    #[arg(long)]
    pub quiet: bool,
    /// Paths in the store, then the local path
    #[arg(required = true, num_args = 2..)]
    pub paths: Vec<String>,
}

#[derive(Subcommand, Clone, Debug)]
pub enum Policy {
    /// All policies, in the order in which they are tried
    List {
        #[arg(long)]
        json: bool,
    },
    /// Adds a policy at the end, or replaces the one of that name
    Set(PolicySet),
    /// Removes a policy
    Unset { name: String },
    /// Which policy a path gets, asked for by this client
    Test {
        path: String,
        /// As if it were of that type
        #[arg(long = "type", value_name = "file|directory|metadata", default_value = "file")]
        data_type: String,
        /// As if that many bytes were expected (K, M, G)
        #[arg(long, value_parser = parse_size)]
        size: Option<u64>,
        /// As if asked for from that address
        #[arg(long, value_name = "ADDRESS")]
        client: Option<std::net::IpAddr>,
        /// As if by a client of that priority
        #[arg(long, value_name = "P")]
        priority: Option<u8>,
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args, Clone, Debug)]
pub struct PolicySet {
    pub name: String,
    /// Glob on the path: `*` within a component, `**` across
    #[arg(long = "match", value_name = "GLOB")]
    pub path_glob: Option<String>,
    #[arg(long = "type", value_name = "file|directory|metadata")]
    pub data_type: Option<String>,
    /// Network of the client, as 10.0.0.0/8, or one address
    #[arg(long, value_name = "CIDR")]
    pub client: Option<String>,
    /// Priority of the client, exactly
    #[arg(long, value_name = "P")]
    pub priority: Option<u8>,
    /// Smallest expected size (K, M, G)
    #[arg(long, value_parser = parse_size)]
    pub min_size: Option<u64>,
    /// As in rs/4+2, raid1/3
    #[arg(long)]
    pub scheme: Option<String>,
    /// Bytes of a strip (K, M)
    #[arg(long, value_parser = parse_size)]
    pub strip: Option<u64>,
    /// When a writer is answered: memory (of the owner), local (its server's disk), or cluster
    #[arg(long, value_name = "memory|local|cluster")]
    pub ack: Option<String>,
    /// server or disk
    #[arg(long)]
    pub spread: Option<String>,
    /// So many LCCs of each server are for this --type alone
    #[arg(long, value_name = "N")]
    pub lccs: Option<u8>,
}

/// Parses `64K`, `1G`, `512`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.trim_end_matches(['B', 'b']).trim_end_matches(['i']) {
        t if t.ends_with(['K', 'k']) => (&t[..t.len() - 1], 10),
        t if t.ends_with(['M', 'm']) => (&t[..t.len() - 1], 20),
        t if t.ends_with(['G', 'g']) => (&t[..t.len() - 1], 30),
        t if t.ends_with(['T', 't']) => (&t[..t.len() - 1], 40),
        t => (t, 0),
    };
    let number: Option<u64> = digits.parse().ok();
    let size = number.and_then(|number| number.checked_mul(1 << shift));
    size.ok_or_else(|| "a size is a number with K, M, G or T".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_parsed() {
        assert_eq!(parse_size("64K"), Ok(65536));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("7"), Ok(7));
        assert!(parse_size("x").is_err());
        assert!(parse_size("99999999999T").is_err());
    }
}
