//! Writes that cannot end the process: a closed pipe (SIGPIPE) and a file at its size limit (SIGXFSZ) are errors here.
//!
//! Rust ignores SIGPIPE unless the program asked for it, and nobody ignores SIGXFSZ, which kills. Both signals go to the
//! thread that wrote, so holding them back in this thread is enough.

/// Runs `write` with both signals held back; what it raised is taken away before they are let through again.
#[cfg(unix)]
pub(crate) fn held_back<T>(write: impl FnOnce() -> T) -> T {
    const HELD: [libc::c_int; 2] = [libc::SIGPIPE, libc::SIGXFSZ];
    let set = set_of(&HELD);
    let mut before = set_of(&[]);
    // SAFETY: both sets are initialised, and live through the call.
    if unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before) } != 0 {
        return write();
    }
    let waiting = HELD.map(is_pending);
    let out = write();
    for (signal, waited) in HELD.into_iter().zip(waiting) {
        if !waited && is_pending(signal) {
            let mut taken = 0;
            // SAFETY: as above; the signal is pending, so this returns at once.
            unsafe { libc::sigwait(&set_of(&[signal]), &mut taken) };
        }
    }
    // SAFETY: `before` was filled in above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()) };
    out
}

#[cfg(not(unix))]
pub(crate) fn held_back<T>(write: impl FnOnce() -> T) -> T {
    write()
}

#[cfg(unix)]
fn set_of(signals: &[libc::c_int]) -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set that it is given.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        signals.iter().for_each(|&signal| {
            libc::sigaddset(set.as_mut_ptr(), signal);
        });
        set.assume_init()
    }
}

#[cfg(unix)]
fn is_pending(signal: libc::c_int) -> bool {
    let mut set = set_of(&[]);
    // SAFETY: the set is initialised.
    unsafe { libc::sigpending(&mut set) == 0 && libc::sigismember(&set, signal) == 1 }
}

/// Writes one line to stderr, in one piece. Whether anybody reads it does not matter: no error, no panic, no signal. It
/// takes no lock, so that a process that was forked from several threads cannot wait for one that is not there.
pub(crate) fn say(sentence: &str) {
    let line = format!("tracekit: {sentence}\n");
    held_back(|| put(line.as_bytes()));
}

#[cfg(unix)]
fn put(line: &[u8]) {
    // SAFETY: the bytes live through the call.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
}

#[cfg(not(unix))]
fn put(line: &[u8]) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(line);
}
