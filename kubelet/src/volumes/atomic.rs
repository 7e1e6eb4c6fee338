//! Writing a volume's files so that a reader sees either all of the old or all of the
//! new ones, as Kubernetes does: files lie in a dated directory, `..data` links to it, and
//! every visible name links through `..data`. Replacing that one link replaces everything.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::{Owner, local};

#[derive(Clone, Debug, PartialEq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Whether the file belongs to the pod's user (service account tokens do).
    pub owned: bool,
}

/// Relative paths, already checked, to files.
pub type Content = BTreeMap<String, File>;

const DATA: &str = "..data";

/// Brings the directory to the content; does nothing if it is there already.
pub fn write(dir: &Path, content: &Content, owner: Owner, in_memory: bool) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    if in_memory && !local::is_mount(dir)? {
        local::tmpfs(dir, "mode=0777")?;
    }
    let data = dir.join(DATA);
    if is_current(&data, content)? {
        return Ok(());
    }
    let previous = std::fs::read_link(&data).ok();
    let name = format!(
        "..{}",
        jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%9f")
    );
    let fresh = dir.join(&name);
    std::fs::create_dir(&fresh)?;
    set(&fresh, 0o755, owner, false)?;
    for (path, file) in content {
        let target = fresh.join(path);
        for parent in Path::new(path)
            .ancestors()
            .skip(1)
            .filter(|p| !p.as_os_str().is_empty())
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
        {
            std::fs::create_dir_all(fresh.join(parent))?;
            set(&fresh.join(parent), 0o755, owner, false)?;
        }
        std::fs::write(&target, &file.data)?;
        let mode = if owner.group.is_some() {
            file.mode | 0o440
        } else {
            file.mode
        };
        set(&target, mode, owner, file.owned)?;
    }
    let temporary = dir.join("..data_tmp");
    let _ = std::fs::remove_file(&temporary);
    symlink(&name, &temporary)?;
    std::fs::rename(&temporary, &data)?;
    links(dir, content)?;
    if let Some(old) = previous.filter(|old| old.to_str() != Some(&name)) {
        std::fs::remove_dir_all(dir.join(old))?;
    }
    set(
        dir,
        if owner.group.is_some() { 0o2777 } else { 0o777 },
        owner,
        false,
    )
}

fn set(path: &Path, mode: u32, owner: Owner, owned: bool) -> io::Result<()> {
    if owner.group.is_some() || (owned && owner.user.is_some()) {
        std::os::unix::fs::chown(path, owner.user.filter(|_| owned), owner.group)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// One visible link for every first path component, and none for what is gone.
fn links(dir: &Path, content: &Content) -> io::Result<()> {
    let wanted: std::collections::BTreeSet<&str> =
        content.keys().filter_map(|p| p.split('/').next()).collect();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        if !text.starts_with("..") && !wanted.contains(text.as_ref()) {
            std::fs::remove_file(dir.join(&name))?;
        }
    }
    for name in wanted {
        match symlink(format!("{DATA}/{name}"), dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn is_current(data: &Path, content: &Content) -> io::Result<bool> {
    if !data.exists() || count(data)? != content.len() {
        return Ok(false);
    }
    Ok(content
        .iter()
        .all(|(path, file)| std::fs::read(data.join(path)).is_ok_and(|old| old == file.data)))
}

fn count(dir: &Path) -> io::Result<usize> {
    let mut files = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        files += if entry.metadata()?.is_dir() {
            count(&entry.path())?
        } else {
            1
        };
    }
    Ok(files)
}

/// A path from a manifest: relative, and never upwards.
pub fn check(path: &str) -> Result<(), String> {
    let bad = path.is_empty()
        || path.starts_with('/')
        || path.starts_with("..")
        || path.split('/').any(|p| p == "..");
    if bad {
        Err(format!("invalid path: {path}"))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(pairs: &[(&str, &str)]) -> Content {
        pairs
            .iter()
            .map(|(k, v)| {
                (
                    k.to_string(),
                    File {
                        data: v.as_bytes().to_vec(),
                        mode: 0o640,
                        owned: false,
                    },
                )
            })
            .collect()
    }

    #[test]
    fn replaces_all_at_once() {
        let dir = std::env::temp_dir().join(format!("atomic-{}", std::process::id()));
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
        write(
            &dir,
            &content(&[("a", "1"), ("sub/b", "2")]),
            Owner::default(),
            false,
        )
        .unwrap();
        assert_eq!(
            (read("a").as_deref(), read("sub/b").as_deref()),
            (Some("1"), Some("2"))
        );
        assert_eq!(
            std::fs::metadata(dir.join("a"))
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o640
        );
        let first = std::fs::read_link(dir.join(DATA)).unwrap();
        write(
            &dir,
            &content(&[("a", "1"), ("sub/b", "2")]),
            Owner::default(),
            false,
        )
        .unwrap();
        assert_eq!(
            std::fs::read_link(dir.join(DATA)).unwrap(),
            first,
            "nothing changed, nothing written"
        );
        write(&dir, &content(&[("a", "3")]), Owner::default(), false).unwrap();
        assert_eq!((read("a").as_deref(), read("sub/b")), (Some("3"), None));
        assert!(!dir.join(first).exists());
        assert!(!dir.join("sub").is_symlink());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn paths() {
        for (path, good) in [
            ("a", true),
            ("a/b", true),
            ("..data", false),
            ("a/../b", false),
            ("/a", false),
            ("", false),
        ] {
            assert_eq!(check(path).is_ok(), good, "{path}");
        }
    }
}
