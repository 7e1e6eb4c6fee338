//! Kubeconfig files: whole ones for the components, and the user's own, into which a cluster's context is merged as kind
//! does. A user's file is changed as a whole or not at all, under the lock that kubectl honours too, and never
//! written when it could not be read.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine;
use serde_json::{Map, Value, json};

use super::pki::Pair;
use super::spec;

/// One cluster, one user, and the context that joins them, all under the same name.
pub fn document(name: &str, server: &str, ca: &str, user: &Pair) -> Value {
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": encode(ca)}}],
        "users": [{"name": name, "user": {
            "client-certificate-data": encode(&user.certificate),
            "client-key-data": encode(&user.key),
        }}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    })
}

pub fn write(path: &Path, document: &Value) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    spec::write_atomic(path, serde_saphyr::to_string(document)?.as_bytes(), 0o600)
}

/// The file to merge into: the first of `$KUBECONFIG` that exists, else its last, else `~/.kube/config`.
pub fn user_file() -> Result<PathBuf> {
    choose(
        std::env::var_os("KUBECONFIG"),
        std::env::var_os("HOME"),
        Path::exists,
    )
}

fn choose(
    variable: Option<std::ffi::OsString>,
    home: Option<std::ffi::OsString>,
    exists: impl Fn(&Path) -> bool,
) -> Result<PathBuf> {
    let variable = variable.unwrap_or_default();
    let paths: Vec<PathBuf> = std::env::split_paths(&variable)
        .filter(|p| !p.as_os_str().is_empty())
        .collect();
    if let Some(path) = paths.iter().find(|p| exists(p)).or(paths.last()) {
        return Ok(path.clone());
    }
    match home.filter(|h| !h.is_empty()) {
        Some(home) => Ok(PathBuf::from(home).join(".kube/config")),
        None => bail!("neither KUBECONFIG nor HOME is set; name a file with --kubeconfig"),
    }
}

/// Puts the document's entries into the user's file in place of those of the same name, and makes its context current.
pub fn merge_into(path: &Path, document: &Value) -> Result<()> {
    edit(path, |config| {
        for list in LISTS {
            for entry in document[list].as_array().into_iter().flatten() {
                let entries = list_of(config, list)?;
                entries.retain(|e| e["name"] != entry["name"]);
                entries.push(entry.clone());
            }
        }
        config.insert(
            "current-context".into(),
            document["current-context"].clone(),
        );
        Ok(true)
    })
}

/// Takes the entries of this name out again. A file that has none of them is not touched.
pub fn remove_from(path: &Path, name: &str) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    edit(path, |config| {
        let mut changed = false;
        for list in LISTS {
            if config.get(list).is_some_and(Value::is_array) {
                let entries = list_of(config, list)?;
                let before = entries.len();
                entries.retain(|e| e["name"] != name);
                changed |= entries.len() != before;
            }
        }
        if config.get("current-context").is_some_and(|c| c == name) {
            config.insert("current-context".into(), json!(""));
            changed = true;
        }
        Ok(changed)
    })
}

const LISTS: [&str; 3] = ["clusters", "users", "contexts"];

/// A named list of the file; kubectl writes an empty one as null.
fn list_of<'a>(config: &'a mut Map<String, Value>, name: &str) -> Result<&'a mut Vec<Value>> {
    let list = config.entry(name).or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut()
        .with_context(|| format!("{name} is not a list"))
}

fn edit(path: &Path, change: impl FnOnce(&mut Map<String, Value>) -> Result<bool>) -> Result<()> {
    // A link, as dotfile managers make them, stays one: its target is what gets written.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let _lock = FileLock::take(path)?;
    let (text, old) = match fs::read_to_string(path) {
        Ok(text) => (text, Some(fs::metadata(path)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => (String::new(), None),
        Err(e) => return Err(e).with_context(|| format!("read {}", path.display())),
    };
    let context = || format!("change kubeconfig {} (left as it was)", path.display());
    let mut config = parse(&text).with_context(context)?;
    if !change(&mut config).with_context(context)? {
        return Ok(());
    }
    let text = serde_saphyr::to_string(&Value::Object(config)).with_context(context)?;
    // What was written must read back, or the old file stays.
    parse(&text).with_context(context)?;
    let mode = old
        .as_ref()
        .map_or(0o600, |m| m.permissions().mode() & 0o777);
    spec::write_atomic(path, text.as_bytes(), mode)?;
    if let Some(old) = old {
        let _ = chown(path, Some(old.uid()), Some(old.gid()));
    }
    Ok(())
}

fn parse(text: &str) -> Result<Map<String, Value>> {
    if text.trim().is_empty() {
        let new = json!({"apiVersion": "v1", "kind": "Config", "preferences": {}});
        return Ok(new.as_object().cloned().unwrap_or_default());
    }
    Ok(serde_saphyr::from_str(text)?)
}

/// `FILE.lock`, created exclusively: the convention of client-go.
struct FileLock(PathBuf);

impl FileLock {
    fn take(path: &Path) -> Result<FileLock> {
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        let lock = PathBuf::from(name);
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&lock)
            {
                Ok(_) => return Ok(FileLock(lock)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => bail!(
                    "{} is locked by another program; if none is running, remove {}",
                    path.display(),
                    lock.display()
                ),
                Err(e) => return Err(e).with_context(|| format!("lock {}", path.display())),
            }
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> Pair {
        Pair {
            certificate: "CERT".into(),
            key: "KEY".into(),
        }
    }

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let dir = std::env::temp_dir().join(format!("skiff-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Scratch(dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const EXISTING: &str = "apiVersion: v1
kind: Config
current-context: work
clusters:
- name: work
  cluster: {server: 'https://example.com', insecure-skip-tls-verify: true}
contexts:
- name: work
  context: {cluster: work, user: me, namespace: \"0123\"}
users:
- name: me
  user: {token: \"12345\", exec: {command: \"yes\", args: [\"on\", \"1e3\", \"null\"]}}
extensions: null
";

    #[test]
    fn merges_and_takes_out_just_its_own() {
        let scratch = Scratch::new("merge");
        let path = scratch.0.join("config");
        fs::write(&path, EXISTING).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let before = parse(EXISTING).unwrap();
        for server in ["https://127.0.0.1:1", "https://127.0.0.1:2"] {
            merge_into(&path, &document("skiff-a", server, "CA", &pair())).unwrap();
        }
        let merged = parse(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(merged["current-context"], "skiff-a");
        assert_eq!(merged["clusters"].as_array().unwrap().len(), 2);
        assert_eq!(
            merged["clusters"][1]["cluster"]["server"],
            "https://127.0.0.1:2"
        );
        assert_eq!(
            merged["users"][0], before["users"][0],
            "strings that look like numbers stay strings"
        );
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o640
        );
        remove_from(&path, "skiff-a").unwrap();
        let mut after = parse(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(after["current-context"], "");
        after.insert("current-context".into(), json!("work"));
        assert_eq!(after, before);
        assert_eq!(
            fs::read_dir(&scratch.0).unwrap().count(),
            1,
            "no lock or temporary file stays"
        );
    }

    #[test]
    fn makes_a_file_where_there_is_none() {
        let scratch = Scratch::new("fresh");
        let path = scratch.0.join("deep/config");
        remove_from(&path, "skiff-a").unwrap();
        assert!(!path.exists());
        merge_into(
            &path,
            &document("skiff-a", "https://127.0.0.1:1", "CA", &pair()),
        )
        .unwrap();
        let made = parse(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(made["users"][0]["user"]["client-key-data"], "S0VZ");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn leaves_alone_what_it_cannot_read_or_need_not_change() {
        let scratch = Scratch::new("alone");
        let path = scratch.0.join("config");
        for text in [
            "clusters: {a: b}\n",
            "a: [1, 2\n",
            "- just\n- a list\n",
            EXISTING,
        ] {
            fs::write(&path, text).unwrap();
            let merged = (text != EXISTING)
                .then(|| merge_into(&path, &document("skiff-a", "s", "CA", &pair())));
            assert!(merged.is_none_or(|r| r.is_err()), "{text}");
            let _ = remove_from(&path, "skiff-a");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn chooses_the_file_as_kubectl_does() {
        let home = || Some("/home/u".into());
        let exists = |p: &Path| p == Path::new("/b");
        for (variable, want) in [
            (None, "/home/u/.kube/config"),
            (Some(""), "/home/u/.kube/config"),
            (Some("/a"), "/a"),
            (Some("/a:/b:/c"), "/b"),
            (Some("/a::/c:"), "/c"),
        ] {
            let got = choose(variable.map(Into::into), home(), exists).unwrap();
            assert_eq!(got, PathBuf::from(want), "{variable:?}");
        }
        assert!(choose(None, None, exists).is_err());
    }
}
