//! Ranges of addresses: members by number, and membership.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// `10.96.0.0/12`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    base: IpAddr,
    prefix: u8,
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("invalid CIDR address: {text}");
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let base: IpAddr = address.parse().map_err(|_| invalid())?;
        let prefix: u8 = prefix.parse().map_err(|_| invalid())?;
        let cidr = Self { base, prefix };
        if prefix > cidr.width() {
            return Err(invalid());
        }
        let network = cidr.number(base) & cidr.mask();
        Ok(Self {
            base: cidr.address(network),
            prefix,
        })
    }
}

impl Cidr {
    fn width(self) -> u8 {
        if self.base.is_ipv4() { 32 } else { 128 }
    }

    fn host_bits(self) -> u8 {
        self.width() - self.prefix
    }

    fn mask(self) -> u128 {
        let hosts = if self.host_bits() >= 128 {
            u128::MAX
        } else {
            (1 << self.host_bits()) - 1
        };
        !hosts
    }

    fn number(self, ip: IpAddr) -> u128 {
        match ip {
            IpAddr::V4(v4) => u128::from(u32::from(v4)),
            IpAddr::V6(v6) => u128::from(v6),
        }
    }

    fn address(self, number: u128) -> IpAddr {
        match self.base {
            // Masked to 32 bits, so that nothing is cut off.
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from((number & u128::from(u32::MAX)) as u32)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
        }
    }

    #[must_use]
    pub fn is_ipv4(self) -> bool {
        self.base.is_ipv4()
    }

    #[must_use]
    pub fn contains(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.base.is_ipv4()
            && self.number(ip) & self.mask() == self.number(self.base) & self.mask()
    }

    /// How many addresses can be given away: not the first, nor in IPv4 the last.
    #[must_use]
    pub fn usable(self) -> u64 {
        let all = 1_u64
            .checked_shl(u32::from(self.host_bits()))
            .unwrap_or(u64::MAX);
        all.saturating_sub(if self.is_ipv4() { 2 } else { 1 })
    }

    /// The n-th address of the range; 0 is the network itself.
    #[must_use]
    pub fn nth(self, n: u64) -> Option<IpAddr> {
        let ip = self.address(self.number(self.base).checked_add(u128::from(n))?);
        self.contains(ip).then_some(ip)
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let cidr: Cidr = "10.96.3.4/12".parse().unwrap();
        assert_eq!(
            (cidr.to_string(), cidr.usable()),
            ("10.96.0.0/12".into(), (1 << 20) - 2)
        );
        assert_eq!(cidr.nth(1), Some("10.96.0.1".parse().unwrap()));
        assert!(
            cidr.contains("10.111.255.255".parse().unwrap())
                && !cidr.contains("10.112.0.0".parse().unwrap())
        );
        assert_eq!(cidr.nth(1 << 20), None);
        let v6: Cidr = "fd00::/108".parse().unwrap();
        assert_eq!(
            (v6.nth(10), v6.usable()),
            (Some("fd00::a".parse().unwrap()), (1 << 20) - 1)
        );
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "x/8", "::/129"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
