//! Links in what a proxied server answers: absolute paths of its own are put below the proxy's path, in redirects and
//! in HTML, so that a browser stays on the way it came.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::{DeflateDecoder, GzDecoder};
use flate2::write::{DeflateEncoder, GzEncoder};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use http_body_util::{BodyExt, Limited};

use crate::body::{Body, Reply};

/// Longer pages are passed on as they are.
const MAX_PAGE: usize = 16 << 20;

/// Where the page was asked for, and where it is really from.
#[derive(Debug, Clone)]
pub struct Place {
    /// The path of the proxy, without a slash at its end: `/api/v1/namespaces/n/pods/p/proxy`.
    pub prefix: String,
    /// Hosts that stand for the proxied server: the one the client has asked, and the server's own.
    pub hosts: [String; 2],
}

impl Place {
    /// A link as it has to be in the answer.
    #[must_use]
    pub fn link(&self, link: &str) -> String {
        let (host, rest) = match authority(link) {
            Some((host, rest)) => (Some(host), rest),
            None => (None, link),
        };
        let ours = host.is_none_or(|host| self.hosts.iter().any(|known| known == host));
        if !ours || !rest.starts_with('/') {
            return link.to_owned();
        }
        if rest.starts_with(&self.prefix) {
            return rest.to_owned();
        }
        format!("{}{rest}", self.prefix)
    }

    /// The answer with its links rewritten.
    pub async fn rewrite(&self, mut response: Reply) -> Reply {
        let redirect = response
            .headers()
            .get(LOCATION)
            .and_then(|v| v.to_str().ok());
        if let Some(redirect) = redirect.filter(|text| !text.is_empty()) {
            if let Ok(location) = HeaderValue::from_str(&self.link(redirect)) {
                response.headers_mut().insert(LOCATION, location);
            }
            return response;
        }
        let Some(encoding) = readable_page(response.headers()) else {
            return response;
        };
        let (mut parts, body) = response.into_parts();
        let Ok(page) = Limited::new(body, MAX_PAGE).collect().await else {
            parts.status = http::StatusCode::BAD_GATEWAY;
            return Reply::from_parts(parts, Body::empty());
        };
        let page = page.to_bytes();
        let rewritten = decode(&encoding, &page)
            .map(|page| self.html(&page))
            .and_then(|page| encode(&encoding, page));
        match rewritten {
            Ok(rewritten) => {
                parts.headers.remove(CONTENT_LENGTH);
                Reply::from_parts(parts, rewritten.into())
            }
            // What cannot be read is not touched.
            Err(_) => Reply::from_parts(parts, page.into()),
        }
    }

    /// A page with the links in its tags rewritten, and every other byte as it was.
    fn html(&self, page: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(page.len() + page.len() / 8);
        let mut rest = page;
        while let Some(start) = rest.iter().position(|b| *b == b'<') {
            out.extend_from_slice(&rest[..start]);
            rest = &rest[start..];
            if rest.starts_with(b"<!--") {
                let end = find(rest, b"-->").map_or(rest.len(), |end| end + 3);
                out.extend_from_slice(&rest[..end]);
                rest = &rest[end..];
                continue;
            }
            if !rest.get(1).is_some_and(u8::is_ascii_alphabetic) {
                out.push(b'<');
                rest = &rest[1..];
                continue;
            }
            let (tag, length) = self.tag(rest, &mut out);
            rest = &rest[length..];
            // What is in these is no markup.
            if matches!(tag.as_str(), "script" | "style" | "textarea" | "title") {
                let close = format!("</{tag}");
                let end = find_ignoring_case(rest, close.as_bytes()).unwrap_or(rest.len());
                out.extend_from_slice(&rest[..end]);
                rest = &rest[end..];
            }
        }
        out.extend_from_slice(rest);
        out
    }

    /// Copies one tag, links rewritten. Gives its name and length.
    fn tag(&self, text: &[u8], out: &mut Vec<u8>) -> (String, usize) {
        let end_of_name = text[1..]
            .iter()
            .position(|b| b.is_ascii_whitespace() || matches!(b, b'/' | b'>'))
            .map_or(text.len(), |n| n + 1);
        let name = String::from_utf8_lossy(&text[1..end_of_name]).to_ascii_lowercase();
        out.extend_from_slice(&text[..end_of_name]);
        let mut at = end_of_name;
        while at < text.len() {
            let byte = text[at];
            if byte == b'>' {
                out.push(byte);
                return (name, at + 1);
            }
            if byte.is_ascii_whitespace() || byte == b'/' {
                out.push(byte);
                at += 1;
                continue;
            }
            let start = at;
            while at < text.len()
                && !matches!(text[at], b'=' | b'>' | b'/')
                && !text[at].is_ascii_whitespace()
            {
                at += 1;
            }
            // A tag of equal signs would stand still here.
            at = at.max(start + usize::from(text[start] == b'='));
            let attribute = String::from_utf8_lossy(&text[start..at]).to_ascii_lowercase();
            let mut value_at = at;
            let blank = |n: usize| text.get(n).is_some_and(u8::is_ascii_whitespace);
            while blank(value_at) {
                value_at += 1;
            }
            if text.get(value_at) != Some(&b'=') || text[start] == b'=' {
                out.extend_from_slice(&text[start..at]);
                continue;
            }
            value_at += 1;
            while blank(value_at) {
                value_at += 1;
            }
            let (from, to, next) = value(text, value_at);
            out.extend_from_slice(&text[start..from]);
            match std::str::from_utf8(&text[from..to]) {
                Ok(link) if has_link(&name, &attribute) => {
                    out.extend_from_slice(self.link(link).as_bytes());
                }
                _ => out.extend_from_slice(&text[from..to]),
            }
            out.extend_from_slice(&text[to..next]);
            at = next;
        }
        (name, at)
    }
}

/// The encoding of a page that can be read; `None` for what is passed on as it is.
fn readable_page(headers: &HeaderMap) -> Option<String> {
    let text = |name| {
        let value = headers.get(name).and_then(|v| v.to_str().ok());
        value.unwrap_or_default().trim()
    };
    let kind = text(CONTENT_TYPE).split(';').next().unwrap_or_default();
    let encoding = text(CONTENT_ENCODING);
    let length: usize = text(CONTENT_LENGTH).parse().unwrap_or(0);
    (kind.trim() == "text/html"
        && matches!(encoding, "" | "gzip" | "deflate")
        && length <= MAX_PAGE)
        .then(|| encoding.to_owned())
}

/// Where an attribute's value begins and ends, and what comes after its quotes.
fn value(text: &[u8], at: usize) -> (usize, usize, usize) {
    let rest = text.get(at..).unwrap_or_default();
    match rest.first() {
        Some(quote @ (b'"' | b'\'')) => {
            let end = rest[1..].iter().position(|b| b == quote);
            end.map_or((at + 1, text.len(), text.len()), |end| {
                (at + 1, at + 1 + end, at + 2 + end)
            })
        }
        _ => {
            let end = rest
                .iter()
                .position(|b| b.is_ascii_whitespace() || *b == b'>')
                .map_or(text.len(), |end| at + end);
            (at, end, end)
        }
    }
}

/// The host of a link that names one, and the link's path.
fn authority(link: &str) -> Option<(&str, &str)> {
    let rest = match link.strip_prefix("//") {
        Some(rest) => rest,
        None => {
            let (scheme, rest) = link.split_once("://")?;
            let is_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
            (!scheme.is_empty() && scheme.chars().all(is_scheme)).then_some(rest)?
        }
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let path = match &rest[end..] {
        "" => "/",
        path => path,
    };
    Some((&rest[..end], path))
}

/// Whether an attribute of a tag is an address.
fn has_link(tag: &str, attribute: &str) -> bool {
    match attribute {
        "href" => matches!(tag, "a" | "area" | "base" | "link"),
        "src" => matches!(
            tag,
            "audio"
                | "embed"
                | "frame"
                | "iframe"
                | "img"
                | "input"
                | "script"
                | "source"
                | "video"
        ),
        "action" => tag == "form",
        "formaction" => matches!(tag, "button" | "input"),
        "cite" => matches!(tag, "blockquote" | "del" | "ins" | "q"),
        "poster" => tag == "video",
        "longdesc" => matches!(tag, "frame" | "iframe" | "img"),
        "usemap" => matches!(tag, "img" | "input" | "object"),
        "background" => tag == "body",
        "icon" => tag == "command",
        "manifest" => tag == "html",
        "data" | "classid" => tag == "object",
        "codebase" => matches!(tag, "applet" | "object"),
        "profile" => tag == "head",
        _ => false,
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len())
        .position(|window| window == wanted)
}

fn find_ignoring_case(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len())
        .position(|window| window.eq_ignore_ascii_case(wanted))
}

fn decode(encoding: &str, page: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let limit = MAX_PAGE as u64 + 1;
    let read = match encoding {
        "gzip" => GzDecoder::new(page).take(limit).read_to_end(&mut out)?,
        "deflate" => DeflateDecoder::new(page)
            .take(limit)
            .read_to_end(&mut out)?,
        _ => return Ok(page.to_vec()),
    };
    if read > MAX_PAGE {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(out)
}

fn encode(encoding: &str, page: Vec<u8>) -> std::io::Result<Vec<u8>> {
    match encoding {
        "gzip" => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&page)?;
            encoder.finish()
        }
        "deflate" => {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&page)?;
            encoder.finish()
        }
        _ => Ok(page),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            prefix: "/api/v1/namespaces/n/pods/p:80/proxy".into(),
            hosts: ["localhost:8001".into(), "10.0.0.1:80".into()],
        }
    }

    #[test]
    fn links_stay_below_the_proxy() {
        const P: &str = "/api/v1/namespaces/n/pods/p:80/proxy";
        let table = [
            ("/rewriteme", format!("{P}/rewriteme")),
            ("/a/?q=1#f", format!("{P}/a/?q=1#f")),
            ("http://10.0.0.1:80/a", format!("{P}/a")),
            ("https://localhost:8001/a", format!("{P}/a")),
            ("//10.0.0.1:80", format!("{P}/")),
            ("http://example.com/a", "http://example.com/a".into()),
            ("relative/a", "relative/a".into()),
            ("#top", "#top".into()),
            ("mailto:a@b", "mailto:a@b".into()),
            (&format!("{P}/x"), format!("{P}/x")),
        ];
        for (link, wanted) in table {
            assert_eq!(place().link(link), wanted, "{link}");
        }
    }

    #[test]
    fn pages_change_only_in_their_links() {
        let table = [
            (
                r#"<a href="/rewriteme">test</a>"#,
                r#"<a href="PREFIX/rewriteme">test</a>"#,
            ),
            (
                "<IMG alt='<' SRC = /x.png><p title=\"/no\">1 < 2</p>",
                "<IMG alt='<' SRC = PREFIX/x.png><p title=\"/no\">1 < 2</p>",
            ),
            (
                "<!-- <a href=\"/c\"> --><script src='/s'>if (a<b) '<a href=\"/n\">'</SCRIPT><form action=/f>",
                "<!-- <a href=\"/c\"> --><script src='PREFIX/s'>if (a<b) '<a href=\"/n\">'</SCRIPT><form action=PREFIX/f>",
            ),
            ("<a ==x href", "<a ==x href"),
            ("<a href=\"/open", "<a href=\"PREFIX/open"),
            ("plain < text <", "plain < text <"),
        ];
        for (page, wanted) in table {
            let got = String::from_utf8(place().html(page.as_bytes())).unwrap();
            let wanted = wanted.replace("PREFIX", &place().prefix);
            assert_eq!(got, wanted, "{page}");
        }
    }

    #[tokio::test]
    async fn compressed_pages_too() {
        let page = encode("gzip", b"<a href='/x'>".to_vec()).unwrap();
        let response = http::Response::builder()
            .header("content-type", "text/html; charset=utf-8")
            .header("content-encoding", "gzip")
            .body(Body::from(page))
            .unwrap();
        let rewritten = place().rewrite(response).await;
        let bytes = rewritten.into_body().collect().await.unwrap().to_bytes();
        let page = String::from_utf8(decode("gzip", &bytes).unwrap()).unwrap();
        assert_eq!(page, format!("<a href='{}/x'>", place().prefix));
    }
}
