//! IP addresses and CIDR blocks in fields, checked as Kubernetes 1.36 does: strictly, but what was stored before
//! may stay.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use apimachinery::field::Path;

use super::check::Checks;

pub const NOT_AN_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const NOT_A_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// Parses as old Kubernetes versions did: the parts of an IPv4 address may begin with zeros.
#[must_use]
pub fn sloppy_ip(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let parts: Vec<&str> = text.split('.').collect();
    if parts.len() != 4 {
        return None;
    }
    let mut bytes = [0; 4];
    for (byte, part) in bytes.iter_mut().zip(parts) {
        if part.is_empty() || !part.bytes().all(|c| c.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *byte = if digits.is_empty() {
            0
        } else {
            digits.parse().ok()?
        };
    }
    Some(IpAddr::from(bytes))
}

fn mapped(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped(),
        IpAddr::V4(_) => None,
    }
}

/// What Go's library shows: an IPv4 address that is written as IPv6 is an IPv4 address.
#[must_use]
pub fn canonical(ip: IpAddr) -> IpAddr {
    mapped(ip).map_or(ip, IpAddr::V4)
}

#[must_use]
pub fn is_ipv6(ip: IpAddr) -> bool {
    canonical(ip).is_ipv6()
}

fn parse_ip(checks: &mut Checks, path: &Path, value: &str) -> Option<IpAddr> {
    let Some(ip) = sloppy_ip(value) else {
        checks.invalid(path, value, NOT_AN_IP);
        return None;
    };
    if value.parse::<IpAddr>().is_err() {
        checks.invalid(path, value, "must not have leading 0s");
        return None;
    }
    if mapped(ip).is_some() {
        checks.invalid(path, value, "must not be an IPv4-mapped IPv6 address");
        return None;
    }
    Some(ip)
}

/// An address in a field that existed before the strict rules: values of the old object stay valid.
pub fn legacy_ip<'a>(
    checks: &mut Checks,
    path: &Path,
    value: &str,
    old: impl IntoIterator<Item = &'a str>,
) -> bool {
    old.into_iter().any(|o| o == value) || parse_ip(checks, path, value).is_some()
}

/// An address in its one canonical form.
pub fn ip(checks: &mut Checks, path: &Path, value: &str) -> bool {
    let Some(ip) = parse_ip(checks, path, value) else {
        return false;
    };
    let canonical = ip.to_string();
    if canonical != value {
        let why = format!("must be in canonical form ({canonical:?})");
        checks.invalid(path, value, &why);
        return false;
    }
    true
}

/// A block: its address as written, the length of its prefix, and its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    pub address: IpAddr,
    pub prefix: u8,
    pub network: IpAddr,
}

impl Block {
    /// Parses as old Kubernetes versions did, zeros and all.
    #[must_use]
    pub fn sloppy(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        if prefix.is_empty() || !prefix.bytes().all(|c| c.is_ascii_digit()) {
            return None;
        }
        let address = sloppy_ip(address)?;
        let prefix: u8 = prefix.parse().ok()?;
        let network = network(address, prefix)?;
        Some(Self {
            address,
            prefix,
            network,
        })
    }

    #[must_use]
    pub fn contains(self, ip: IpAddr) -> bool {
        network(ip, self.prefix) == Some(self.network)
    }
}

impl std::fmt::Display for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

fn network(address: IpAddr, prefix: u8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(ip) => {
            let hosts = 32_u32.checked_sub(prefix.into())?;
            let mask = u32::MAX.checked_shl(hosts).unwrap_or(0);
            Some(Ipv4Addr::from(u32::from(ip) & mask).into())
        }
        IpAddr::V6(ip) => {
            let hosts = 128_u32.checked_sub(prefix.into())?;
            let mask = u128::MAX.checked_shl(hosts).unwrap_or(0);
            Some(Ipv6Addr::from(u128::from(ip) & mask).into())
        }
    }
}

fn parse_cidr(checks: &mut Checks, path: &Path, value: &str) -> Option<Block> {
    let Some(block) = Block::sloppy(value) else {
        checks.invalid(path, value, NOT_A_CIDR);
        return None;
    };
    let (address, prefix) = value.split_once('/').unwrap_or_default();
    let zeros = prefix.len() > 1 && prefix.starts_with('0');
    let why = if address.parse::<IpAddr>().is_err() || zeros {
        "must not have leading 0s in IP or prefix length"
    } else if mapped(block.address).is_some() {
        "must not have an IPv4-mapped IPv6 address"
    } else if block.address != block.network {
        "must not have bits set beyond the prefix length"
    } else {
        return Some(block);
    };
    checks.invalid(path, value, why);
    None
}

/// A block in a field that existed before the strict rules.
pub fn legacy_cidr<'a>(
    checks: &mut Checks,
    path: &Path,
    value: &str,
    old: impl IntoIterator<Item = &'a str>,
) -> bool {
    old.into_iter().any(|o| o == value) || parse_cidr(checks, path, value).is_some()
}

/// A block in its one canonical form.
pub fn cidr(checks: &mut Checks, path: &Path, value: &str) -> bool {
    let Some(block) = parse_cidr(checks, path, value) else {
        return false;
    };
    let canonical = block.to_string();
    if canonical != value {
        let why = format!("must be in canonical form ({canonical:?})");
        checks.invalid(path, value, &why);
        return false;
    }
    true
}

/// The address of an endpoint must be one that others can reach.
pub fn endpoint(checks: &mut Checks, path: &Path, value: &str) {
    let Some(ip) = sloppy_ip(value).map(canonical) else {
        checks.invalid(path, value, "must be a valid IP address");
        return;
    };
    if ip.is_unspecified() {
        checks.invalid(path, value, &format!("may not be unspecified ({value})"));
    }
    if ip.is_loopback() {
        let why = "may not be in the loopback range (127.0.0.0/8, ::1/128)";
        checks.invalid(path, value, why);
    }
    let (local, multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (
            ip.is_unicast_link_local(),
            ip.segments()[0] & 0xff0f == 0xff02,
        ),
    };
    if local {
        let why = "may not be in the link-local range (169.254.0.0/16, fe80::/10)";
        checks.invalid(path, value, why);
    }
    if multicast {
        let why = "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)";
        checks.invalid(path, value, why);
    }
}

/// What is odd about an address that is valid nevertheless.
#[must_use]
pub fn ip_warning(path: &Path, value: &str) -> Option<String> {
    let ip = sloppy_ip(value)?;
    if value.parse::<IpAddr>().is_err() || mapped(ip).is_some() {
        let better = canonical(ip);
        return Some(format!(
            "{path}: non-standard IP address {value:?} is invalid: use \"{better}\""
        ));
    }
    let canonical = ip.to_string();
    (ip.is_ipv6() && canonical != value).then(|| {
        format!(
            "{path}: IPv6 address {value:?} should be in RFC 5952 canonical format ({canonical:?})"
        )
    })
}

#[must_use]
pub fn cidr_warnings(path: &Path, value: &str) -> Vec<String> {
    let Some(block) = Block::sloppy(value) else {
        return Vec::new();
    };
    let mut warnings = Vec::new();
    if block.address != block.network {
        let width = if block.address.is_ipv4() { 32 } else { 128 };
        warnings.push(format!(
            "{path}: CIDR value {value:?} is ambiguous in this context (should be \"{block}\" or \"{}/{width}\"?)",
            block.address
        ));
    }
    let strict = value
        .split_once('/')
        .is_some_and(|(ip, _)| ip.parse::<IpAddr>().is_ok());
    if !strict || mapped(block.address).is_some() {
        warnings.push(format!(
            "{path}: non-standard CIDR value {value:?} is invalid: use \"{block}\""
        ));
    }
    let canonical = format!("{}/{}", block.address, block.prefix);
    if warnings.is_empty() && block.address.is_ipv6() && canonical != value {
        warnings.push(format!(
            "{path}: IPv6 CIDR value {value:?} should be in RFC 5952 canonical format ({canonical:?})"
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors<T>(check: impl Fn(&mut Checks, &Path) -> T) -> Vec<String> {
        let mut checks = Checks::default();
        check(&mut checks, &Path::new("f"));
        checks.done().0.iter().map(|e| e.detail.clone()).collect()
    }

    #[test]
    fn addresses() {
        for (value, want) in [
            ("10.0.0.1", vec![]),
            ("fd00::1", vec![]),
            ("x", vec![NOT_AN_IP]),
            ("10.0.0.256", vec![NOT_AN_IP]),
            ("010.0.0.1", vec!["must not have leading 0s"]),
            (
                "::ffff:10.0.0.1",
                vec!["must not be an IPv4-mapped IPv6 address"],
            ),
            ("FD00::1", vec!["must be in canonical form (\"fd00::1\")"]),
        ] {
            assert_eq!(errors(|c, p| ip(c, p, value)), want, "{value}");
        }
        assert!(errors(|c, p| legacy_ip(c, p, "010.0.0.1", ["010.0.0.1"])).is_empty());
        assert_eq!(errors(|c, p| legacy_ip(c, p, "FD00::1", [])), [""; 0]);
        for (value, count) in [
            ("127.0.0.1", 1),
            ("0.0.0.0", 1),
            ("169.254.1.1", 1),
            ("ff02::1", 1),
            ("10.1.1.1", 0),
        ] {
            assert_eq!(errors(|c, p| endpoint(c, p, value)).len(), count, "{value}");
        }
    }

    #[test]
    fn blocks() {
        for (value, want) in [
            ("10.0.0.0/8", vec![]),
            ("fd00::/64", vec![]),
            ("0.0.0.0/0", vec![]),
            ("10.0.0.0", vec![NOT_A_CIDR]),
            ("10.0.0.0/33", vec![NOT_A_CIDR]),
            (
                "10.0.0.1/8",
                vec!["must not have bits set beyond the prefix length"],
            ),
            (
                "10.0.0.0/08",
                vec!["must not have leading 0s in IP or prefix length"],
            ),
            (
                "FD00::/64",
                vec!["must be in canonical form (\"fd00::/64\")"],
            ),
        ] {
            assert_eq!(errors(|c, p| cidr(c, p, value)), want, "{value}");
        }
        let block = Block::sloppy("10.1.0.0/16").unwrap();
        assert!(block.contains("10.1.2.3".parse().unwrap()));
        assert!(!block.contains("10.2.0.0".parse().unwrap()));
    }

    #[test]
    fn oddities_are_told() {
        let path = Path::new("spec");
        assert_eq!(
            ip_warning(&path, "FD00::1").unwrap(),
            "spec: IPv6 address \"FD00::1\" should be in RFC 5952 canonical format (\"fd00::1\")"
        );
        assert!(ip_warning(&path, "10.0.0.1").is_none());
        assert_eq!(
            cidr_warnings(&path, "10.0.0.1/8"),
            [
                "spec: CIDR value \"10.0.0.1/8\" is ambiguous in this context (should be \"10.0.0.0/8\" or \"10.0.0.1/32\"?)"
            ]
        );
    }
}
