//! Container images built without a registry and without a build tool: a tar file in OCI layout from files at hand.
//!
//! [`Image`] says what goes in; [`Image::tarball`] writes it out. An image of the same content is the same file, byte for
//! byte. The annotation `io.containerd.image.name` in the index is the name under which containerd imports it.
//! [`catalog`] has the images that the examples, the tests and every pod's sandbox use.

pub mod catalog;

use std::io;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// What lies at a path of an image.
#[derive(Clone, Debug)]
pub enum Content {
    File { bytes: Vec<u8>, mode: u32 },
    Link { target: String },
    Directory { mode: u32 },
}

/// An image of one layer.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// As pods name it: `skiff.local/busybox:1`
    pub name: String,
    /// Paths without a leading slash, parents before what is in them.
    pub files: Vec<(String, Content)>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    /// Empty for root.
    pub user: String,
    pub ports: Vec<String>,
}

impl Image {
    pub fn new(name: &str) -> Image {
        Image {
            name: name.into(),
            ..Image::default()
        }
    }

    pub fn directory(&mut self, path: &str, mode: u32) {
        self.files.push((path.into(), Content::Directory { mode }));
    }

    pub fn file(&mut self, path: &str, bytes: impl Into<Vec<u8>>, mode: u32) {
        let bytes = bytes.into();
        self.files
            .push((path.into(), Content::File { bytes, mode }));
    }

    pub fn link(&mut self, path: &str, target: &str) {
        let target = target.into();
        self.files.push((path.into(), Content::Link { target }));
    }

    /// The image as a tar file in OCI layout.
    pub fn tarball(&self) -> io::Result<Vec<u8>> {
        let layer = self.layer()?;
        let config = serde_json::to_vec(&self.config(&layer))?;
        let blob = |media: &str, bytes: &[u8]| json!({"mediaType": media, "digest": digest(bytes), "size": bytes.len()});
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": blob("application/vnd.oci.image.config.v1+json", &config),
            "layers": [blob("application/vnd.oci.image.layer.v1.tar", &layer)],
        }))?;
        let mut entry = blob(MANIFEST, &manifest);
        entry["annotations"] = json!({
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": self.name.rsplit(':').next(),
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry],
        });

        let mut tar = Builder::new(Vec::new());
        append(
            &mut tar,
            "oci-layout",
            br#"{"imageLayoutVersion":"1.0.0"}"#,
            0o644,
        )?;
        append(&mut tar, "index.json", &serde_json::to_vec(&index)?, 0o644)?;
        for bytes in [&layer, &config, &manifest] {
            append(
                &mut tar,
                &format!("blobs/{}", digest(bytes).replace(':', "/")),
                bytes,
                0o644,
            )?;
        }
        tar.into_inner()
    }

    fn layer(&self) -> io::Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        for (path, content) in &self.files {
            match content {
                Content::File { bytes, mode } => append(&mut tar, path, bytes, *mode)?,
                Content::Link { target } => {
                    let mut header = header(EntryType::Symlink, 0o777, 0);
                    tar.append_link(&mut header, path, target)?;
                }
                Content::Directory { mode } => {
                    let mut header = header(EntryType::Directory, *mode, 0);
                    tar.append_data(&mut header, format!("{path}/"), io::empty())?;
                }
            }
        }
        tar.into_inner()
    }

    fn config(&self, layer: &[u8]) -> Value {
        let mut env =
            vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_string()];
        env.extend(self.env.iter().cloned());
        let mut config = json!({"Env": env, "WorkingDir": "/"});
        let mut set = |name: &str, value: Value, empty: bool| {
            if !empty {
                config[name] = value;
            }
        };
        set(
            "Entrypoint",
            json!(self.entrypoint),
            self.entrypoint.is_empty(),
        );
        set("Cmd", json!(self.cmd), self.cmd.is_empty());
        set("User", json!(self.user), self.user.is_empty());
        let ports: serde_json::Map<String, Value> =
            self.ports.iter().map(|p| (p.clone(), json!({}))).collect();
        set("ExposedPorts", json!(ports), self.ports.is_empty());
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        json!({
            "architecture": architecture,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "skiff"}],
            "created": "1970-01-01T00:00:00Z",
        })
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().fold("sha256:".to_string(), |text, byte| {
        format!("{text}{byte:02x}")
    })
}

/// A header without anything of the moment or of the machine.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn append(tar: &mut Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut header = header(EntryType::Regular, mode, bytes.len() as u64);
    tar.append_data(&mut header, path, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    fn read(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(tar);
        let mut files = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(path, bytes);
        }
        files
    }

    fn example() -> Image {
        let mut image = Image::new("skiff.local/test:1");
        image.directory("bin", 0o755);
        image.file("bin/tool", *b"#!", 0o755);
        image.link("bin/other", "tool");
        image.entrypoint = vec!["/bin/tool".into()];
        image
    }

    #[test]
    fn every_reference_leads_to_its_blob() {
        let files = read(&example().tarball().unwrap());
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let follow = |reference: &Value| {
            let path = format!(
                "blobs/{}",
                reference["digest"].as_str().unwrap().replace(':', "/")
            );
            let bytes = &files[&path];
            assert_eq!(reference["size"], bytes.len());
            assert_eq!(reference["digest"], digest(bytes));
            bytes
        };
        let index = json(&files["index.json"]);
        let entry = &index["manifests"][0];
        assert_eq!(
            entry["annotations"]["io.containerd.image.name"],
            "skiff.local/test:1"
        );
        let manifest = json(follow(entry));
        let config = json(follow(&manifest["config"]));
        let layer = follow(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(layer));
        assert_eq!(config["config"]["Entrypoint"][0], "/bin/tool");
        assert!(config["config"].get("Cmd").is_none());
        assert_eq!(read(layer)["bin/tool"], b"#!");
    }

    #[test]
    fn the_same_content_is_the_same_file() {
        assert_eq!(example().tarball().unwrap(), example().tarball().unwrap());
    }
}
