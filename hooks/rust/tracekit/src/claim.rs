//! A log is made once, by one process: who may write the file that `TRACEKIT_LOG` names.
//!
//! The process that makes it holds an advisory lock on it until it ends, also after `close`. A process that inherits the
//! variable, or a second copy of this crate, finds the lock and leaves the file alone. Under `tracekit record`, which
//! makes the file empty, a log that has frames already belongs to another process of the same run
//! (`TRACEKIT_LOG_IS_NEW`); where the variable was set by hand, the log of an earlier run is replaced.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::Path;

use crate::log::MAGIC;

/// Why this process gets no log.
#[derive(Debug, PartialEq)]
pub(crate) enum Refusal {
    /// Another process writes this log, or wrote it in the same run.
    Taken(String),
    /// It cannot be written.
    Failed(String),
}

/// The file, empty, for this process alone.
pub(crate) fn claim(path: &Path) -> Result<File, Refusal> {
    let is_new = std::env::var_os("TRACEKIT_LOG_IS_NEW").is_some_and(|value| value == "1");
    let failed = |error: std::io::Error| Refusal::Failed(format!("{}: cannot be written: {error}", path.display()));
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Ok(file);
    }
    if !lock(&file) {
        return Err(taken(path, "is written by another process"));
    }
    // Only now: who had the lock may have written.
    let mut start = Vec::new();
    file.by_ref().take(MAGIC.len() as u64).read_to_end(&mut start).map_err(failed)?;
    if is_new && !start.is_empty() {
        return Err(taken(path, "was written by another process of this run"));
    }
    if !start.is_empty() && start != MAGIC {
        let why = "is not a log and is not overwritten; name another file with TRACEKIT_LOG";
        return Err(Refusal::Failed(format!("{}: {why}", path.display())));
    }
    file.set_len(0).map_err(failed)?;
    std::io::Seek::rewind(&mut file).map_err(failed)?;
    Ok(file)
}

fn taken(path: &Path, how: &str) -> Refusal {
    let (path, own) = (path.display(), std::process::id());
    Refusal::Taken(format!(
        "{path}: {how}; this process ({own}) is not recorded; give it a log of its own with TRACEKIT_LOG"
    ))
}

/// False where another process has it. A file system without locks counts as free.
#[cfg(unix)]
fn lock(file: &File) -> bool {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open.
    let done = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    done == 0 || std::io::Error::last_os_error().kind() != std::io::ErrorKind::WouldBlock
}

#[cfg(not(unix))]
fn lock(_: &File) -> bool {
    true
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_taken_once_and_replaced_when_its_writer_is_gone() {
        let path = std::env::temp_dir().join(format!("tracekit-claim-{}.tklog", std::process::id()));
        let first = claim(&path).expect("free");
        assert!(matches!(claim(&path), Err(Refusal::Taken(why)) if why.contains("is written by another process")));
        std::fs::write(&path, b"TKL1 and frames").expect("written");
        drop(first);
        let again = claim(&path).expect("free again");
        assert_eq!(again.metadata().expect("there").len(), 0);
        drop(again);
        std::fs::write(&path, b"a letter").expect("written");
        assert!(matches!(claim(&path), Err(Refusal::Failed(why)) if why.contains("is not a log")));
        assert_eq!(std::fs::read(&path).expect("there"), b"a letter");
        std::fs::remove_file(&path).expect("removable");
        let nowhere = path.join("x.tklog");
        assert!(matches!(claim(&nowhere), Err(Refusal::Failed(why)) if why.contains("cannot be written")));
    }
}
