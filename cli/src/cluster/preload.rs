//! Images that every node starts with, unpacked beforehand.
//!
//! Importing them takes containerd a second on each node. So it is done once, into a containerd directory kept beside the binaries, and a
//! node starts with a copy of it that shares the files by hard links (nothing ever writes to them: they are content
//! addressed blobs and lower layers).

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use images::catalog::Inputs;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};

use super::components;
use super::preflight::find;

/// Raised when what a prepared directory looks like changes.
const FORMAT: u32 = 1;

/// The prepared containerd directory for these binaries, made if there is none yet.
pub fn ensure(bin_dir: &Path, state: &Path) -> Result<PathBuf> {
    let inputs = Inputs {
        busybox: find("busybox").context("busybox is not installed")?,
        bin_dir: bin_dir.to_path_buf(),
    };
    let key = key(&inputs)?;
    let cache = cache_dir(bin_dir, state)?;
    let ready = cache.join(&key);
    let lock = File::create(cache.join("lock"))?;
    lock.lock()?;
    if ready.is_dir() {
        return Ok(ready.join("root"));
    }
    for entry in fs::read_dir(&cache)?
        .flatten()
        .filter(|e| e.path().is_dir())
    {
        fs::remove_dir_all(entry.path())
            .with_context(|| format!("remove old {}", entry.path().display()))?;
    }
    let work = cache.join("new");
    fs::create_dir(&work)?;
    import(&inputs, &work).context("prepare the images")?;
    fs::rename(&work, &ready)?;
    Ok(ready.join("root"))
}

/// Changes whenever a file that the images are made from does.
fn key(inputs: &Inputs) -> Result<String> {
    let mut hash = Sha256::new();
    let containerd = find("containerd").context("containerd is not installed")?;
    for file in inputs.files().into_iter().chain([containerd]) {
        let meta = fs::metadata(&file)
            .with_context(|| format!("{} is needed for the images", file.display()))?;
        hash.update(format!(
            "{} {} {} {}\n",
            file.display(),
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec()
        ));
    }
    hash.update(FORMAT.to_string());
    Ok(hash
        .finalize()
        .iter()
        .take(8)
        .map(|b| format!("{b:02x}"))
        .collect())
}

/// Beside the binaries, or in the state directory where those are installed read-only.
fn cache_dir(bin_dir: &Path, state: &Path) -> Result<PathBuf> {
    let beside = bin_dir.join("images.cache");
    if !bin_dir.starts_with("/usr") && fs::create_dir_all(&beside).is_ok() {
        return Ok(beside);
    }
    let own = state.join("images.cache");
    fs::create_dir_all(&own).with_context(|| format!("create {}", own.display()))?;
    Ok(own)
}

/// Runs a containerd of its own, without network and container runtime, that imports the images into `work/root`.
fn import(inputs: &Inputs, work: &Path) -> Result<()> {
    let text = |name: &str| work.join(name).display().to_string();
    let config = components::containerd_config(&text("root"), &text("state"), false);
    // Its sockets' paths must fit in 108 characters, wherever the cache is.
    let socket = std::env::temp_dir().join(format!("skiff-{}.sock", std::process::id()));
    let config = config.replace(
        &format!("{}/containerd.sock", text("state")),
        &socket.display().to_string(),
    );
    fs::write(work.join("config.toml"), config)?;
    let mut tars = Vec::new();
    for (i, image) in inputs.images()?.iter().enumerate() {
        let tar = work.join(format!("{i}.tar"));
        fs::write(&tar, image.tarball()?)?;
        tars.push(tar);
    }
    let mut containerd = Daemon::start(work, &socket)?;
    for tar in &tars {
        containerd.import(tar)?;
    }
    containerd.stop()?;
    for tar in tars {
        fs::remove_file(tar)?;
    }
    let _ = fs::remove_dir_all(work.join("state"));
    Ok(())
}

struct Daemon<'a> {
    child: Child,
    log: PathBuf,
    socket: &'a Path,
}

impl<'a> Daemon<'a> {
    fn start(work: &Path, socket: &'a Path) -> Result<Daemon<'a>> {
        let log = work.join("containerd.log");
        let mut command = Command::new("containerd");
        command.args([
            OsStr::new("--config"),
            work.join("config.toml").as_os_str(),
            OsStr::new("--log-level=warn"),
        ]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        // SAFETY: bare system calls. Its mounts stay its own, and it does not outlive this process.
        unsafe {
            command.pre_exec(|| {
                set_pdeathsig(Signal::SIGKILL)?;
                unshare(CloneFlags::CLONE_NEWNS)?;
                let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                Ok(mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?)
            });
        }
        let child = command.spawn().context("run containerd")?;
        let mut daemon = Daemon { child, log, socket };
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            if daemon.child.try_wait()?.is_some() || Instant::now() > deadline {
                bail!(
                    "containerd does not start:\n{}",
                    fs::read_to_string(&daemon.log).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(daemon)
    }

    fn import(&self, tar: &Path) -> Result<()> {
        let mut command = ctr(self.socket);
        command
            .args(["images", "import", "--snapshotter", "overlayfs"])
            .arg(tar);
        run_ctr(command)
    }

    fn stop(&mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for name in [
            self.socket.to_path_buf(),
            PathBuf::from(format!("{}.ttrpc", self.socket.display())),
        ] {
            let _ = fs::remove_file(name);
        }
    }
}

fn ctr(socket: &Path) -> Command {
    let mut command = Command::new("ctr");
    command
        .arg("--address")
        .arg(socket)
        .args(["--namespace", "k8s.io"]);
    command
}

fn run_ctr(mut command: Command) -> Result<()> {
    let output = command.output().context("run ctr")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Imports an image from a tar file, in OCI layout or as `docker save` writes it, into a running node.
pub fn import_into_node(pid: i32, tar: &Path) -> Result<()> {
    let mut command = ctr(Path::new(components::CONTAINERD_SOCKET));
    command.args(["images", "import", "-"]);
    command.stdin(File::open(tar).with_context(|| format!("open {}", tar.display()))?);
    let mounts = File::open(format!("/proc/{pid}/ns/mnt")).context("the node does not run")?;
    // SAFETY: setns is a bare system call on a descriptor that lives until the command has ended.
    unsafe {
        let mounts = mounts.try_clone()?;
        command.pre_exec(move || Ok(nix::sched::setns(&mounts, CloneFlags::CLONE_NEWNS)?));
    }
    run_ctr(command)
}

/// Copies a directory. Files are shared by hard links, but for databases, which are written to.
pub fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(from)?;
    if meta.is_symlink() {
        symlink(fs::read_link(from)?, to)
    } else if meta.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_tree(&entry.path(), &to.join(entry.file_name()))?;
        }
        chown(to, Some(meta.uid()), Some(meta.gid()))?;
        fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777))
    } else {
        let database = from.extension() == Some(OsStr::new("db"));
        if database || fs::hard_link(from, to).is_err() {
            fs::copy(from, to)?;
            chown(to, Some(meta.uid()), Some(meta.gid()))?;
        }
        if database {
            File::open(to)?.sync_data()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_shares_all_but_databases() {
        let dir = std::env::temp_dir().join(format!("skiff-copy-{}", std::process::id()));
        let (from, to) = (dir.join("from"), dir.join("to"));
        fs::create_dir_all(from.join("blobs")).unwrap();
        fs::write(from.join("blobs/a"), "a").unwrap();
        fs::write(from.join("meta.db"), "b").unwrap();
        symlink("blobs/a", from.join("link")).unwrap();
        fs::set_permissions(from.join("blobs"), fs::Permissions::from_mode(0o1777)).unwrap();
        copy_tree(&from, &to).unwrap();
        let inode = |p: PathBuf| fs::metadata(p).unwrap().ino();
        assert_eq!(inode(from.join("blobs/a")), inode(to.join("blobs/a")));
        assert_ne!(inode(from.join("meta.db")), inode(to.join("meta.db")));
        assert_eq!(fs::read_to_string(to.join("meta.db")).unwrap(), "b");
        assert_eq!(
            fs::read_link(to.join("link")).unwrap(),
            Path::new("blobs/a")
        );
        assert_eq!(
            fs::metadata(to.join("blobs")).unwrap().mode() & 0o7777,
            0o1777
        );
        fs::remove_dir_all(&dir).unwrap();
    }
}
