//! The images that Skiff brings along: the sandbox's pause, a busybox, the demo's web server and the cluster's DNS.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Image;

const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUPS: &str = "root:x:0:\nnobody:x:65534:\n";
/// A user that owns nothing.
const NOBODY: &str = "65534:65534";

/// What the images are made from.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// A statically linked busybox.
    pub busybox: PathBuf,
    /// The directory with `pause`, `web` and `dns`.
    pub bin_dir: PathBuf,
}

impl Inputs {
    /// Every file whose change means that the images must be built again.
    pub fn files(&self) -> Vec<PathBuf> {
        let own = ["pause", "web", "dns"].map(|name| self.bin_dir.join(name));
        std::iter::once(self.busybox.clone()).chain(own).collect()
    }

    pub fn images(&self) -> io::Result<Vec<Image>> {
        let mut images = vec![self.busybox()?];
        for (name, version, user) in [
            ("pause", "0.1", NOBODY),
            ("web", "0.1", NOBODY),
            ("dns", "0.1", ""),
        ] {
            let mut image = Image::new(&format!("skiff.local/{name}:{version}"));
            users(&mut image);
            image.file(name, read(&self.bin_dir.join(name))?, 0o755);
            image.entrypoint = vec![format!("/{name}")];
            image.user = user.into();
            images.push(image);
        }
        Ok(images)
    }

    fn busybox(&self) -> io::Result<Image> {
        let mut image = Image::new("skiff.local/busybox:1");
        for directory in [
            "bin", "sbin", "usr", "usr/bin", "usr/sbin", "home", "var", "var/tmp",
        ] {
            image.directory(directory, 0o755);
        }
        image.directory("root", 0o700);
        image.directory("tmp", 0o1777);
        users(&mut image);
        image.file("bin/busybox", read(&self.busybox)?, 0o755);
        let listed = Command::new(&self.busybox).arg("--list-full").output()?;
        for applet in String::from_utf8_lossy(&listed.stdout).lines() {
            let applet = applet.trim_start_matches('/');
            if applet != "bin/busybox" && applet.contains('/') {
                image.link(applet, "/bin/busybox");
            }
        }
        image.cmd = vec!["sh".into()];
        Ok(image)
    }
}

fn users(image: &mut Image) {
    image.directory("etc", 0o755);
    image.file("etc/passwd", USERS, 0o644);
    image.file("etc/group", GROUPS, 0o644);
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    fs::read(path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}
