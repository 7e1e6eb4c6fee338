//! The kernel's side: routes over netlink, packet forwarding, and the masquerade rules.

use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail};
use futures::{Stream, StreamExt, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol,
};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::plan::Change;

/// Marks routes as ours (`ip route show proto 83`), so that stale ones are known after a restart.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(83);

/// A connection to the kernel's routing tables, and a stream that yields whenever routes or links may have changed.
pub fn connect() -> anyhow::Result<(Handle, impl Stream<Item = ()> + Unpin)> {
    let groups = [
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        // Routes over a link that goes down vanish without a word of their own.
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
    ];
    let (connection, handle, messages) =
        rtnetlink::new_multicast_connection(&groups).context("cannot open a netlink socket")?;
    tokio::spawn(connection);
    Ok((handle, messages.map(|_| ())))
}

/// The routes that carry our mark.
pub async fn routes(handle: &Handle) -> anyhow::Result<Vec<(IpNet, IpAddr)>> {
    let mut found = Vec::new();
    for any in [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ] {
        let mut dump = handle.route().get(any).execute();
        while let Some(route) = dump.try_next().await.context("cannot list routes")? {
            found.extend(ours(&route));
        }
    }
    Ok(found)
}

fn ours(route: &RouteMessage) -> Option<(IpNet, IpAddr)> {
    if route.header.protocol != PROTOCOL || route.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::from(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::from(*ip)),
        _ => None,
    };
    let (mut destination, mut gateway) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            _ => {}
        }
    }
    Some((
        IpNet::new(destination?, route.header.destination_prefix_length).ok()?,
        gateway?,
    ))
}

pub async fn change_route(handle: &Handle, change: &Change) -> anyhow::Result<()> {
    let message = |range: &IpNet, gateway: &IpAddr| -> anyhow::Result<RouteMessage> {
        let builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(range.addr(), range.prefix_len());
        let builder = builder
            .and_then(|b| b.gateway(*gateway))
            .map_err(|e| anyhow::anyhow!("{e}"))?;
        Ok(builder.protocol(PROTOCOL).build())
    };
    match change {
        Change::Set(range, gateway) => {
            let added = handle
                .route()
                .add(message(range, gateway)?)
                .replace()
                .execute()
                .await;
            added.with_context(|| {
                format!("cannot route {range} to {gateway}: the routes backend needs all nodes on one network")
            })
        }
        Change::Remove(range, gateway) => {
            let removed = handle.route().del(message(range, gateway)?).execute().await;
            removed.with_context(|| format!("cannot remove the route {range} to {gateway}"))
        }
    }
}

/// Lets the node forward, and bridged pod traffic meet the rules for Services. True when the latter works.
pub fn prepare(v6: bool) -> anyhow::Result<bool> {
    let on = |path: &str| -> std::io::Result<()> {
        // Read first: where /proc/sys is read-only, somebody else may have set it.
        if std::fs::read_to_string(path)?.trim() == "1" {
            Ok(())
        } else {
            std::fs::write(path, "1")
        }
    };
    on("/proc/sys/net/ipv4/ip_forward").context("cannot turn on net.ipv4.ip_forward")?;
    if v6 {
        on("/proc/sys/net/ipv6/conf/all/forwarding")
            .context("cannot turn on net.ipv6.conf.all.forwarding")?;
    }
    let bridged = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    if !Path::new(bridged).exists() {
        // Built as a module almost everywhere. If it cannot be loaded, pods get links of their own.
        let loaded = std::process::Command::new("modprobe")
            .arg("br_netfilter")
            .stderr(Stdio::null())
            .status();
        tracing::debug!(?loaded, "modprobe br_netfilter");
    }
    if !Path::new(bridged).exists() {
        return Ok(false);
    }
    on(bridged).context("cannot turn on net.bridge.bridge-nf-call-iptables")?;
    if v6 {
        on("/proc/sys/net/bridge/bridge-nf-call-ip6tables")
            .context("cannot turn on net.bridge.bridge-nf-call-ip6tables")?;
    }
    Ok(true)
}

const MASQUERADE: &str = "SKIFF-MASQ";
const FORWARD: &str = "SKIFF-FORWARD";

/// Pods reach the world with the node's address, and each other with their own. `FORWARD` must let them
/// through even where its policy is to drop; our jump comes last, so that whoever refuses earlier, wins.
/// `jumps` tells which of the jumps are there: from POSTROUTING, from FORWARD.
fn rules(pods: &IpNet, masquerade: bool, jumps: [bool; 2]) -> String {
    let mut text = format!("*nat\n:{MASQUERADE} - [0:0]\n");
    if !jumps[0] {
        text += &format!(
            "-A POSTROUTING -m comment --comment \"pod traffic that leaves the cluster\" -j {MASQUERADE}\n"
        );
    }
    if masquerade {
        let multicast = if pods.addr().is_ipv4() {
            "224.0.0.0/4"
        } else {
            "ff00::/8"
        };
        text += &format!("-A {MASQUERADE} ! -s {pods} -j RETURN\n");
        text += &format!("-A {MASQUERADE} -d {pods} -j RETURN\n");
        text += &format!("-A {MASQUERADE} ! -d {multicast} -j MASQUERADE --random-fully\n");
    }
    text += &format!("COMMIT\n*filter\n:{FORWARD} - [0:0]\n");
    if !jumps[1] {
        text += &format!("-A FORWARD -m comment --comment \"pod traffic\" -j {FORWARD}\n");
    }
    text +=
        &format!("-A {FORWARD} -s {pods} -j ACCEPT\n-A {FORWARD} -d {pods} -j ACCEPT\nCOMMIT\n");
    text
}

fn has_jump(save: &str, from: &str, to: &str) -> bool {
    save.lines()
        .any(|line| line.starts_with(&format!("-A {from} ")) && line.ends_with(&format!("-j {to}")))
}

fn program(pods: &IpNet, suffix: &str) -> String {
    format!(
        "{}{suffix}",
        if pods.addr().is_ipv4() {
            "iptables"
        } else {
            "ip6tables"
        }
    )
}

/// Writes our chains anew, and the jumps to them if they are missing, in one transaction per table.
pub async fn write_rules(pods: &IpNet, masquerade: bool) -> anyhow::Result<()> {
    let save = run(&program(pods, "-save"), &[], String::new()).await?;
    let jumps = [
        has_jump(&save, "POSTROUTING", MASQUERADE),
        has_jump(&save, "FORWARD", FORWARD),
    ];
    let text = rules(pods, masquerade, jumps);
    run(&program(pods, "-restore"), &["-w", "5", "--noflush"], text)
        .await
        .map(drop)
}

/// Whether our chains are still jumped to; a flush of the tables takes that away.
pub async fn rules_intact(pods: &IpNet) -> bool {
    for (table, from, to) in [
        ("nat", "POSTROUTING", MASQUERADE),
        ("filter", "FORWARD", FORWARD),
    ] {
        let listed = run(
            &program(pods, ""),
            &["-w", "5", "-t", table, "-S", from],
            String::new(),
        )
        .await;
        if !listed.is_ok_and(|rules| has_jump(&rules, from, to)) {
            return false;
        }
    }
    true
}

async fn run(program: &str, args: &[&str], input: String) -> anyhow::Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A child that does not read its input has failed, and says why itself.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child
        .wait_with_output()
        .await
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!(
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_are_added_once() {
        let pods = "10.244.0.0/16".parse().unwrap();
        let fresh = rules(&pods, true, [false, false]);
        assert_eq!(
            fresh,
            "*nat\n:SKIFF-MASQ - [0:0]\n\
             -A POSTROUTING -m comment --comment \"pod traffic that leaves the cluster\" -j SKIFF-MASQ\n\
             -A SKIFF-MASQ ! -s 10.244.0.0/16 -j RETURN\n-A SKIFF-MASQ -d 10.244.0.0/16 -j RETURN\n\
             -A SKIFF-MASQ ! -d 224.0.0.0/4 -j MASQUERADE --random-fully\nCOMMIT\n\
             *filter\n:SKIFF-FORWARD - [0:0]\n-A FORWARD -m comment --comment \"pod traffic\" -j SKIFF-FORWARD\n\
             -A SKIFF-FORWARD -s 10.244.0.0/16 -j ACCEPT\n-A SKIFF-FORWARD -d 10.244.0.0/16 -j ACCEPT\nCOMMIT\n"
        );
        assert!(
            has_jump(&fresh, "POSTROUTING", MASQUERADE) && has_jump(&fresh, "FORWARD", FORWARD)
        );
        let again = rules(&pods, false, [true, true]);
        assert!(
            !again.contains("-A POSTROUTING")
                && !again.contains("-A FORWARD ")
                && !again.contains("MASQUERADE")
        );
    }
}
