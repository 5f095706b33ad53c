//! The program `braid`: main controller of a server, and command line of a cluster.
//!
//! | file                  | what it does                                                     |
//! |-----------------------|------------------------------------------------------------------|
//! | `cli.rs`              | the command line as clap sees it                                 |
//! | `layout.rs`           | folders, files and ports of a server and of the embedded cluster |
//! | `main_controller.rs`  | the parent process of a server: starts, watches, restarts        |
//! | `role.rs`             | a child process: coordinator, LC or I/O server                   |
//! | `commands/`           | what each command does                                           |

mod cli;
mod commands;
mod inherited;
mod layout;
mod main_controller;
mod output;
mod role;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Cli::parse();
    output::start_logging(&arguments);
    match commands::run(arguments) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("braid: {failure}");
            failure.code()
        }
    }
}
