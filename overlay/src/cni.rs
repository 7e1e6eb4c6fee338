//! Puts the CNI configuration where the container runtime finds it.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;

pub const FILE: &str = "10-skiff.conflist";

/// Writes the configuration unless it is there already. The runtime reads the directory whenever something in
/// it changes, so a file appears whole or not at all, and never changes for nothing.
pub fn write(directory: &Path, conflist: &Value) -> anyhow::Result<bool> {
    let path = directory.join(FILE);
    let text = format!("{conflist:#}\n");
    if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(false);
    }
    let context = || format!("cannot write {}", path.display());
    std::fs::create_dir_all(directory).with_context(context)?;
    // A name that the runtime does not take for a configuration.
    let draft = directory.join(format!(".{FILE}.new"));
    let mut file = std::fs::File::create(&draft).with_context(context)?;
    file.write_all(text.as_bytes()).with_context(context)?;
    // After a power cut an empty file would stop every pod of the node.
    file.sync_all().with_context(context)?;
    std::fs::rename(&draft, &path).with_context(context)?;
    Ok(true)
}

/// Says now what each pod would say later: which plugins are missing.
pub fn check_plugins(directory: &Path, plugins: &[&str]) -> anyhow::Result<()> {
    let missing: Vec<&str> = plugins
        .iter()
        .filter(|name| !directory.join(name).is_file())
        .copied()
        .collect();
    if !missing.is_empty() {
        bail!(
            "CNI plugins not found in {}: {} (Debian has them in containernetworking-plugins; see --cni-bin-dir)",
            directory.display(),
            missing.join(", ")
        );
    }
    Ok(())
}

/// The first of the usual plugin directories that exists: Debian's, else that of upstream packages.
pub fn default_bin_dir() -> PathBuf {
    let usual = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"].map(PathBuf::from);
    usual
        .iter()
        .find(|dir| dir.join("host-local").is_file())
        .unwrap_or(&usual[0])
        .clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn written_once_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("net.d");
        assert!(write(&below, &json!({"name": "a"})).unwrap());
        assert!(!write(&below, &json!({"name": "a"})).unwrap());
        assert!(write(&below, &json!({"name": "b"})).unwrap());
        let names: Vec<_> = std::fs::read_dir(&below)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, [FILE]);
    }

    #[test]
    fn missing_plugins_are_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("bridge"), "").unwrap();
        let error = check_plugins(dir.path(), &["bridge", "portmap"])
            .unwrap_err()
            .to_string();
        assert!(error.contains(": portmap ("), "{error}");
    }
}
