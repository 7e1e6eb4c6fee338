//! Waiting for a file to change, with inotify: nobody looks again and again at a log that stands still.

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
pub struct Watch {
    fd: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Watches a file for writes, for its being closed by its writer, and for its being moved away.
    pub fn file(path: &Path) -> io::Result<Self> {
        // SAFETY: no pointers are involved; the result is checked before it is owned.
        let raw = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is fresh and ours alone.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let name = CString::new(path.as_os_str().as_bytes())?;
        let mask =
            libc::IN_MODIFY | libc::IN_CLOSE_WRITE | libc::IN_MOVE_SELF | libc::IN_DELETE_SELF;
        // SAFETY: `name` is a valid C string for the whole call.
        if unsafe { libc::inotify_add_watch(raw, name.as_ptr(), mask) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is owned by the `AsyncFd` and stays open as long as it does.
        let fd = unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) };
        Ok(Watch {
            fd: fd.map_err(|e| e.into_parts().1)?,
        })
    }

    /// Returns once something has happened since the last call.
    pub async fn changed(&self) -> io::Result<()> {
        let mut buffer = [0u8; 4096];
        loop {
            let mut guard = self.fd.readable().await?;
            match guard
                .try_io(|fd| nix::unistd::read(fd.get_ref(), &mut buffer).map_err(io::Error::from))
            {
                Ok(result) => return result.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}
