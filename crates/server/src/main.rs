//! The program `braid`: main controller of a server, and command line of a cluster.
//!
//! | file                  | what it does                                                     |
//! |-----------------------|------------------------------------------------------------------|
//! | `cli.rs`              | the command line as clap sees it                                 |
//! | `layout.rs`           | folders, files and ports of a server and of the embedded cluster |
//! | `main_controller.rs`  | the parent process of a server: starts, watches, restarts        |
//! | `mount_helper.rs`     | the program as the helper of `mount(8)`                          |
//! | `role.rs`             | a child process: coordinator, LC or I/O server                   |
//! | `commands/`           | what each command does                                           |

mod cli;
mod commands;
mod inherited;
mod layout;
mod main_controller;
mod mount_helper;
mod output;
mod role;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    end_quietly_on_broken_pipes();
    let arguments = match mount_helper::translate(std::env::args_os().collect()) {
        Ok(mount_helper::Called::With(arguments)) => {
            cli::Cli::parse_from(cli::as_find_has_it(arguments))
        }
        Ok(mount_helper::Called::Fake) => return ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("mount.fuse.braid: {reason}");
            return ExitCode::from(1);
        }
    };
    output::start_logging(&arguments);
    match commands::run(arguments) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("braid: {failure}");
            failure.code()
        }
    }
}

/// A reader that has had enough (`braid find / | head`) ends a command without a word, as it does
/// other programs.
fn end_quietly_on_broken_pipes() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload().downcast_ref::<String>().map(String::as_str).unwrap_or_default();
        if text.starts_with("failed printing to stdout") {
            std::process::exit(0);
        }
        usual(info);
    }));
}
