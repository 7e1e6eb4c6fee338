//! Starting processes that the standard library cannot: the first one of a machine, in namespaces of its own.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::libc;
use nix::unistd::Pid;

/// Starts this same program as the first process of new mount, PID, UTS and IPC namespaces. It dies with the thread that
/// called this, which therefore must be the main one. `output` becomes its stdout and stderr; `pass` become descriptors 3, 4, ...
///
/// The caller must be single-threaded: the child of a fork may not allocate while another thread holds the allocator.
pub fn first_process(args: &[&str], output: BorrowedFd<'_>, pass: &[RawFd]) -> io::Result<Pid> {
    let null = std::fs::File::options().read(true).open("/dev/null")?;
    let args: Vec<CString> = std::iter::once(&"skiff")
        .chain(args)
        .map(|a| CString::new(*a))
        .collect::<Result<_, _>>()?;
    let mut argv: Vec<*const libc::c_char> = args.iter().map(|a| a.as_ptr()).collect();
    argv.push(std::ptr::null());
    let env: Vec<CString> = std::env::vars_os()
        .filter_map(|(name, value)| {
            use std::os::unix::ffi::OsStringExt;
            let mut pair = name.into_vec();
            pair.push(b'=');
            pair.extend(value.into_vec());
            CString::new(pair).ok()
        })
        .collect();
    let mut envp: Vec<*const libc::c_char> = env.iter().map(|e| e.as_ptr()).collect();
    envp.push(std::ptr::null());
    let mut fds = vec![null.as_raw_fd(), output.as_raw_fd(), output.as_raw_fd()];
    fds.extend(pass);

    let flags = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::SIGCHLD;
    // SAFETY: with neither a stack nor CLONE_VM this is fork. Until it executes, the child makes bare system calls on memory
    // prepared above.
    unsafe {
        match libc::syscall(libc::SYS_clone, flags as libc::c_ulong, 0, 0, 0, 0) {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                become_program(&mut fds, argv.as_ptr(), envp.as_ptr());
                libc::_exit(127)
            }
            pid => Ok(Pid::from_raw(pid as i32)),
        }
    }
}

/// Returns only when something failed.
///
/// # Safety
/// Both vectors must be null-terminated arrays of C strings.
unsafe fn become_program(
    fds: &mut [RawFd],
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
) {
    // SAFETY: bare system calls on this process's own descriptors and on the caller's arrays.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        // Out of the way first: a source may be another's target.
        for fd in fds.iter_mut() {
            *fd = libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, 64);
            if *fd < 0 {
                return;
            }
        }
        for (target, fd) in fds.iter().enumerate() {
            if libc::dup2(*fd, target as RawFd) < 0 {
                return;
            }
        }
        // The running program itself, even where a build has replaced its file.
        libc::execve(c"/proc/self/exe".as_ptr(), argv, envp);
    }
}
