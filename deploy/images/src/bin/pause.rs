//! The process that holds a pod's namespaces: it sleeps, reaps what is orphaned to it when
//! the pod shares its process namespace, and leaves on TERM or INT. No runtime and no
//! allocation, so that a thousand of them cost nothing.

use std::ffi::c_int;

const SIGINT: c_int = 2;
const SIGTERM: c_int = 15;
const SIGCHLD: c_int = 17;
const WNOHANG: c_int = 1;

unsafe extern "C" {
    fn signal(signal: c_int, handler: extern "C" fn(c_int)) -> usize;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn pause() -> c_int;
    fn _exit(code: c_int) -> !;
}

extern "C" fn leave(_: c_int) {
    // SAFETY: `_exit` may be called from a signal handler.
    unsafe { _exit(0) }
}

extern "C" fn reap(_: c_int) {
    // SAFETY: `waitpid` may be called from a signal handler, and a null status is allowed.
    while unsafe { waitpid(-1, std::ptr::null_mut(), WNOHANG) } > 0 {}
}

fn main() {
    // SAFETY: the handlers only call functions that are safe in a signal handler; `pause` just sleeps.
    unsafe {
        signal(SIGINT, leave);
        signal(SIGTERM, leave);
        signal(SIGCHLD, reap);
        loop {
            pause();
        }
    }
}
