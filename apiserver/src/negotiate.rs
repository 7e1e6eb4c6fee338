//! Which form a client takes its answer in, and which form it sent its body in.

use apimachinery::protobuf;
use apimachinery::status::{Result, Status};
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};

use crate::query::Query;
use crate::registry::decode::Media;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Json,
    Pretty,
    Yaml,
    /// For documents of kinds that have such a form; others are answered in JSON.
    Protobuf,
}

/// What the objects are turned into before they are sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Shape {
    #[default]
    Plain,
    /// Rows for people.
    Table,
    /// Metadata only.
    Partial,
    /// A list of metadata only.
    PartialList,
}

/// How to answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Accept {
    pub format: Format,
    pub shape: Shape,
}

const ACCEPTED: [&str; 3] = ["application/json", "application/yaml", protobuf::MEDIA_TYPE];

/// The media types of a resource: all but protobuf for a custom one.
fn accepted(protobuf: bool) -> &'static [&'static str] {
    &ACCEPTED[..if protobuf { 3 } else { 2 }]
}

impl Accept {
    /// The best of the client's media ranges that can be served; 406 if there is none.
    pub fn read(headers: &HeaderMap, query: &Query) -> Result<Self> {
        Self::read_for(headers, query, true)
    }

    /// The form of a failure, whatever the form of a success would have been: protobuf for those who take that first.
    #[must_use]
    pub fn of_failure(headers: &HeaderMap) -> Self {
        let ranges = ranges(headers);
        let plain = ranges.iter().find_map(|(_, range)| {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next()?;
            (shape(parts) == Some(Shape::Plain)).then_some(media)
        });
        Self {
            format: match plain {
                Some(protobuf::MEDIA_TYPE) => Format::Protobuf,
                _ => Format::Json,
            },
            shape: Shape::Plain,
        }
    }

    /// The same for a resource that may lack a protobuf form. Its metadata always has one.
    pub fn read_for(headers: &HeaderMap, query: &Query, protobuf: bool) -> Result<Self> {
        Self::choose(headers, query, protobuf, |_| true)
    }

    /// The same for what has no metadata, so that neither tables nor metadata can be made of it.
    pub fn read_plain(headers: &HeaderMap, query: &Query) -> Result<Self> {
        Self::choose(headers, query, true, |shape| shape == Shape::Plain)
    }

    fn choose(
        headers: &HeaderMap,
        query: &Query,
        protobuf: bool,
        offered: impl Fn(Shape) -> bool,
    ) -> Result<Self> {
        let pretty = match query.get("pretty") {
            Some(value) => !matches!(value, "" | "0" | "false"),
            None => headers
                .get(USER_AGENT)
                .and_then(|v| v.to_str().ok())
                .is_some_and(|agent| {
                    ["curl", "Wget", "Mozilla/5.0"]
                        .iter()
                        .any(|known| agent.starts_with(known))
                }),
        };
        let json = if pretty { Format::Pretty } else { Format::Json };
        let ranges = ranges(headers);
        if ranges.is_empty() {
            return Ok(Self {
                format: json,
                shape: Shape::Plain,
            });
        }
        let found = ranges.iter().find_map(|(_, range)| {
            let mut parts = range.split(';').map(str::trim);
            let format = match parts.next()? {
                "application/json" | "application/*" | "*/*" | "application/json;stream=watch" => {
                    json
                }
                "application/yaml" => Format::Yaml,
                protobuf::MEDIA_TYPE => Format::Protobuf,
                _ => return None,
            };
            let shape = shape(parts).filter(|shape| offered(*shape))?;
            match (format, shape) {
                (Format::Protobuf, Shape::Table) => None,
                (Format::Protobuf, Shape::Plain) if !protobuf => None,
                _ => Some(Self { format, shape }),
            }
        });
        found.ok_or_else(|| Status::not_acceptable(accepted(protobuf)))
    }

    /// The `Content-Type` of the answer.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self.format {
            Format::Yaml => "application/yaml",
            Format::Protobuf => protobuf::MEDIA_TYPE,
            _ => "application/json",
        }
    }
}

/// The client's media ranges, the best first; among equals, the client's order counts.
pub(crate) fn ranges(headers: &HeaderMap) -> Vec<(u32, &str)> {
    let mut ranges: Vec<(u32, &str)> = Vec::new();
    for value in headers.get_all(ACCEPT) {
        let text = value.to_str().unwrap_or_default();
        ranges.extend(
            text.split(',')
                .map(|range| (quality(range), range.trim()))
                .filter(|(_, r)| !r.is_empty()),
        );
    }
    ranges.sort_by_key(|(quality, _)| std::cmp::Reverse(*quality));
    ranges
}

fn quality(range: &str) -> u32 {
    let value = range
        .split(';')
        .find_map(|part| part.trim().strip_prefix("q="));
    value
        .and_then(|text| text.parse::<f32>().ok())
        .map_or(1000, |q| (q.clamp(0.0, 1.0) * 1000.0) as u32)
}

/// `as=Table;v=v1;g=meta.k8s.io` and the like; `None` for what is not served.
fn shape<'a>(parameters: impl Iterator<Item = &'a str>) -> Option<Shape> {
    let (mut name, mut group, mut version) = ("", "", "");
    for parameter in parameters {
        match parameter.split_once('=') {
            Some(("as", value)) => name = value,
            Some(("g", value)) => group = value,
            Some(("v", value)) => version = value,
            _ => {}
        }
    }
    if name.is_empty() {
        return Some(Shape::Plain);
    }
    if group != "meta.k8s.io" || version != "v1" {
        return None;
    }
    match name {
        "Table" => Some(Shape::Table),
        "PartialObjectMetadata" => Some(Shape::Partial),
        "PartialObjectMetadataList" => Some(Shape::PartialList),
        _ => None,
    }
}

/// The media type of a request's body, without parameters; empty if not said.
#[must_use]
pub fn content_type(headers: &HeaderMap) -> &str {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// The media of a body that is an object; 415 for what is not understood.
pub fn media(headers: &HeaderMap) -> Result<Media> {
    media_for(headers, true)
}

/// The same for the body of a resource that may lack a protobuf form.
pub fn media_for(headers: &HeaderMap, protobuf: bool) -> Result<Media> {
    match content_type(headers) {
        "" | "application/json" => Ok(Media::Json),
        "application/yaml" => Ok(Media::Yaml),
        protobuf::MEDIA_TYPE if protobuf => Ok(Media::Protobuf),
        _ => Err(Status::unsupported_media_type(accepted(protobuf))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn accepts() {
        const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        #[rustfmt::skip]
        let table = [
            ("", Some((Format::Json, Shape::Plain))),
            ("*/*", Some((Format::Json, Shape::Plain))),
            ("application/vnd.kubernetes.protobuf,application/json", Some((Format::Protobuf, Shape::Plain))),
            ("application/vnd.kubernetes.protobuf;stream=watch", Some((Format::Protobuf, Shape::Plain))),
            ("application/vnd.kubernetes.protobuf;q=0.5,application/json;q=0.9", Some((Format::Json, Shape::Plain))),
            ("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", None),
            ("text/html", None),
            (TABLE, Some((Format::Json, Shape::Table))),
            ("application/json;as=Table;v=v9;g=meta.k8s.io, application/json", Some((Format::Json, Shape::Plain))),
            ("application/json;q=0.5, application/yaml", Some((Format::Yaml, Shape::Plain))),
            ("application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
             Some((Format::Protobuf, Shape::Partial))),
        ];
        for (accept, expected) in table {
            let mut headers = HeaderMap::new();
            if !accept.is_empty() {
                headers.insert(ACCEPT, HeaderValue::from_static(accept));
            }
            let got = Accept::read(&headers, &Query::default())
                .ok()
                .map(|a| (a.format, a.shape));
            assert_eq!(got, expected, "{accept}");
        }
    }

    #[test]
    fn what_has_no_metadata_has_no_table() {
        const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
        let read = |accept: &'static str| {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
            Accept::read_plain(&headers, &Query::default()).map(|a| a.format)
        };
        assert_eq!(read(TABLE).unwrap_err().code, 406);
        assert_eq!(
            read("application/json;as=Table;v=v1;g=meta.k8s.io,application/json").unwrap(),
            Format::Json
        );
    }

    #[test]
    fn custom_resources_have_no_protobuf_but_of_their_metadata() {
        const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
        const PARTIAL: &str =
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        let read = |accept: &'static str| {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
            Accept::read_for(&headers, &Query::default(), false).map(|a| a.format)
        };
        assert_eq!(read(PROTOBUF).unwrap_err().code, 406);
        assert_eq!(
            read("application/vnd.kubernetes.protobuf,application/json").unwrap(),
            Format::Json
        );
        assert_eq!(read(PARTIAL).unwrap(), Format::Protobuf);
        let sent = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(PROTOBUF))]);
        assert_eq!(media_for(&sent, false).unwrap_err().code, 415);
        assert_eq!(media(&sent).unwrap(), Media::Protobuf);
    }

    #[test]
    fn failures() {
        for (accept, format) in [
            ("application/vnd.kubernetes.protobuf, */*", Format::Protobuf),
            (
                "application/json, application/vnd.kubernetes.protobuf",
                Format::Json,
            ),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json",
                Format::Json,
            ),
            ("text/html", Format::Json),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(Accept::of_failure(&headers).format, format, "{accept}");
        }
    }
}
